"""How a row of each known format becomes a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefopt.data.formats import FORMATS as PREFERENCE_FORMATS
from prefopt.data.formats import Row
from prefopt.data.formats.base import RowError
from prefopt.data.formats.read import list_at, messages, text, text_at, text_or_messages
from prefopt.errors import UserError
from prefopt.evaluation.types import Answer, Message, Prompt

_OWN = ("prompt", "turns", "messages")
_RESPONSES = ("chosen", "rejected", "responses", "completion", "completions", "label", "output")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptFormat:
    """A way to lay out prompts in rows."""

    name: str
    accepts: Callable[[Row], bool]
    """Whether a row looks like it."""
    convert: Callable[[Row], Prompt]
    """A row to a prompt; raises RowError."""
    may_repeat: bool = False
    """Whether the same prompt may stand in several rows, of which the first counts."""


def baseline_answer(row: Row, prompt: Prompt, place: str) -> Answer:
    """The output beside an instruction.

    Raises:
        UserError: if it is no text.
    """
    try:
        return Answer(prompt_id=prompt.prompt_id, turns=(text_at(row, "output"),))
    except RowError as error:
        raise UserError(f"{place}:{error}") from error


def _from_question(row: Row) -> Prompt:
    # The `reference` that some questions bring is not what FastChat shows its judges.
    return Prompt(
        turns=_texts(row, "turns"),
        category=_optional_text(row, "category"),
        source_id=str(row["question_id"]),
    )


def _from_instruction(row: Row) -> Prompt:
    if row.get("input"):
        raise RowError(
            "input",
            "is beside the instruction, which AlpacaEval does not know",
            'Write both into one text: {"prompt": TEXT}',
        )
    return Prompt(turns=(text_at(row, "instruction"),), dataset=_optional_text(row, "dataset"))


def _from_own(row: Row) -> Prompt:
    given = [name for name in _OWN if row.get(name) is not None]
    if len(given) != 1:
        raise RowError(given[1], f"stands beside {given[0]}", "Give one of them")
    context: Sequence[Message] = ()
    if given == ["turns"]:
        turns = _texts(row, "turns")
    else:
        context, last = _split(text_or_messages(row[given[0]], given[0]), given[0])
        turns = (last,)
    name = row.get("id")
    return Prompt(
        turns=turns,
        context=tuple(context),
        category=_optional_text(row, "category"),
        reference=_reference(row, len(turns)),
        source_id=None if name is None else str(name),
        dataset=_optional_text(row, "dataset"),
    )


def _from_preferences(row: Row) -> Prompt:
    format = next(each for each in PREFERENCE_FORMATS if each.accepts(row))
    prompt = format.convert(row).prompt
    context, last = _split(prompt, "prompt")
    return Prompt(turns=(last,), context=tuple(context))


def _split(value: object, column: str) -> tuple[Sequence[Message], str]:
    """What was said before, and the user's last word."""
    if isinstance(value, str):
        return (), value
    said = messages(value, column)
    for i, each in enumerate(said):
        more = sorted(set(each) - {"role", "content"})
        if more:
            raise RowError(f"{column}[{i}].{more[0]}", "is no part of a prompt", "Remove it")
    plain = [
        Message(role=str(each["role"]), content=text(each.get("content"), f"{column}[{i}].content"))
        for i, each in enumerate(said)
    ]
    if not plain or plain[-1]["role"] != "user":
        raise RowError(column, "do not end with a message of the user", "End with the question")
    return plain[:-1], plain[-1]["content"]


def _texts(row: Row, column: str) -> tuple[str, ...]:
    values = list_at(row, column)
    if not values:
        raise RowError(column, "is empty", "Give at least one turn")
    return tuple(text(value, f"{column}[{i}]") for i, value in enumerate(values))


def _reference(row: Row, num_turns: int) -> tuple[str, ...] | None:
    value = row.get("reference")
    if value is None:
        return None
    texts = (value,) if isinstance(value, str) else _texts(row, "reference")
    if len(texts) != num_turns:
        raise RowError(
            "reference", f"has {len(texts)} texts for {num_turns} turns", "Give one each"
        )
    return texts


def _optional_text(row: Row, column: str) -> str | None:
    return None if row.get(column) is None else text_at(row, column)


def _is_own(row: Row) -> bool:
    has_response = any(row.get(name) is not None for name in _RESPONSES)
    return not has_response and any(row.get(name) is not None for name in _OWN)


FORMATS: tuple[PromptFormat, ...] = (
    PromptFormat(
        name="mt_bench",
        accepts=lambda row: "question_id" in row and "turns" in row,
        convert=_from_question,
    ),
    PromptFormat(name="prompts", accepts=_is_own, convert=_from_own),
    PromptFormat(
        name="alpaca_eval", accepts=lambda row: "instruction" in row, convert=_from_instruction
    ),
    PromptFormat(
        name="preferences",
        accepts=lambda row: any(each.accepts(row) for each in PREFERENCE_FORMATS),
        convert=_from_preferences,
        may_repeat=True,
    ),
)
"""All formats, in the order in which detection asks them."""
