"""What forward and backward pass of a micro-batch hold, by a run without memory."""

import torch

from prefopt.models.blueprint import Blueprint
from prefopt.models.dry_run import Row, working_memory
from prefopt.ops.logps import tokens_per_tile
from prefopt.train.footprint import Pass, head_memory


def pass_of(blueprint: Blueprint, row: Row, *, is_autocast: bool, is_recomputed: bool) -> Pass:
    """The bytes of a micro-batch, of which the head's are told apart by arithmetic.

    Args:
        blueprint: the model.
        row: the micro-batch.
        is_autocast: whether products run in bfloat16 beside weights of another type.
        is_recomputed: whether there is gradient checkpointing.
    """
    working = working_memory(blueprint, row, is_autocast=is_autocast, is_recomputed=is_recomputed)
    config = blueprint.model.config.get_text_config()
    head = head_memory(
        blueprint.counts,
        hidden=config.hidden_size,
        scored=sum(row.responses),
        tile=tokens_per_tile(config.vocab_size),
        is_cast=is_autocast or next(blueprint.model.parameters()).dtype == torch.bfloat16,
    )
    return Pass(activations=working - head, head=head)
