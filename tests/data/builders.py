"""Tiny tokenizers and data files, made in code."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from prefopt.data.prepare import PreparedData, prepare_data
from prefopt.data.records import RecordsInfo, load_records
from prefopt.data.section import DataSection, SourceSection
from prefopt.data.sources import open_source
from prefopt.types import PreferenceRecord

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TIGHT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""ChatML without the line break after a turn: nothing follows the last end token."""

_LINES = [
    "the cat sat on the mat and what is four plus four",
    "a person asks a question and the assistant gives an answer",
    "user assistant system tool\n",
]
_SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def bpe_tokenizer(
    *, chat_template: str | None = CHATML, adds_bos: bool = False, eos: str | None = "<|im_end|>"
) -> PreTrainedTokenizerFast:
    """A byte-level BPE, like GPT-2's and its heirs."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=_SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_LINES * 20, trainer)
    if adds_bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token=eos, chat_template=chat_template
    )


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """A BPE that marks word starts and puts one before every text, like Llama 2's."""
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    backend.train_from_iterator(_LINES[:2] * 20, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    return tokenizer


def char_tokenizer(*, bos: str | None = None) -> PreTrainedTokenizerFast:
    """One token per character, so that lengths can be counted by eye."""
    characters = [chr(code) for code in range(32, 127)]
    vocab = {token: i for i, token in enumerate(["<unk>", "<eos>", "<bos>", *characters])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>", bos_token=bos
    )


def write_lines(path: Path, rows: list[Any]) -> Path:
    """A JSON lines file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def section(tmp_path: Path, *sources: Path | dict[str, Any], **options: Any) -> DataSection:
    """A data section over some files, with its cache in the test's folder."""
    return DataSection.model_validate(
        {
            "sources": [
                source if isinstance(source, dict) else {"path": str(source)} for source in sources
            ],
            "cache_dir": tmp_path / "cache",
            **options,
        }
    )


def prepare(
    tmp_path: Path,
    rows: list[Any],
    tokenizer: PreTrainedTokenizerFast | None = None,
    *,
    source: dict[str, Any] | None = None,
    **options: Any,
) -> PreparedData:
    """The data that some rows make, by characters unless a tokenizer is given."""
    path = write_lines(tmp_path / "rows.jsonl", rows)
    wanted = section(tmp_path, {"path": str(path), **(source or {})}, **options)
    return prepare_data(wanted, tokenizer or char_tokenizer())


def read(
    tmp_path: Path, rows: list[dict[str, Any]] | Path, *, invalid: str = "error", **source: Any
) -> tuple[RecordsInfo, list[PreferenceRecord]]:
    """The records of rows, or of a file, as one source of a recipe."""
    path = rows if not isinstance(rows, list) else write_lines(tmp_path / "rows.jsonl", rows)
    wanted = SourceSection(path=str(path), **source)
    parts = open_source(wanted, "data.sources[0]")
    names = tuple(part.name for part in parts)
    file = load_records(
        wanted,
        parts,
        key="data.sources[0]",
        invalid=invalid,
        cache=tmp_path / "cache",
        part_names=names,
        on_rows=lambda done: None,
    )
    stored = [each for n in range(file.num_batches) for each in file.batch(n)]
    return file.info, [each.record for each in stored]
