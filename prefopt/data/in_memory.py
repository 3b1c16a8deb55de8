"""Records that a program made itself, as a micro-batch: no file, no cache, no recipe."""

from collections.abc import Sequence

import torch

from prefopt.data.boundary import split_records
from prefopt.data.collate import collate
from prefopt.data.tokenize import Encoder, Tokenizer
from prefopt.types import GroupBatch, PreferenceRecord, TokenizedRecord


def batch_of(records: Sequence[PreferenceRecord], tokenizer: Tokenizer) -> GroupBatch:
    """The groups of some records in the tokens that training would use, none cut or dropped.

    Token weights and what `data.scores` and `data.keep` do are not looked at.

    Args:
        records: G >= 1 prompts with their responses and scores; text, or messages for a tokenizer
            with a chat template.
        tokenizer: of the model that shall score them.

    Raises:
        UserError: naming the record that cannot be tokenised.
    """
    splits = split_records(records, Encoder(tokenizer))
    return collate(
        [
            TokenizedRecord(
                id=record.id,
                prompt_ids=torch.tensor(split.prompt_ids),
                response_ids=tuple(torch.tensor(ids) for ids in split.response_ids),
                scores=record.scores,
            )
            for record, split in zip(records, splits, strict=True)
        ]
    )
