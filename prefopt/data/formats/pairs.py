"""Formats with one preferred and one rejected response per row."""

import re
from dataclasses import replace

from prefopt.data.formats.base import Content, Format, Row, RowError
from prefopt.data.formats.read import (
    messages,
    number,
    sharegpt_messages,
    text_at,
    text_or_messages,
    value_at,
)
from prefopt.types import Message

_PAIR = ("chosen", "rejected")
_SCORE_COLUMNS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)
_ALL_SCORE_COLUMNS = tuple(name for names in _SCORE_COLUMNS for name in names)
_TURN = re.compile(r"\n\n(Human|Assistant):")
_LAST_ANSWER = "\n\nAssistant:"


def graded_scores(row: Row) -> tuple[float, float] | None:
    """Scores of chosen and rejected where the row has them."""
    for chosen, rejected in _SCORE_COLUMNS:
        if row.get(chosen) is not None and row.get(rejected) is not None:
            scores = number(row[chosen], chosen), number(row[rejected], rejected)
            if scores[0] < scores[1]:
                raise RowError(
                    chosen,
                    "the chosen response has the lower score",
                    f"Hide the scores: columns: {{{chosen}: null, {rejected}: null}}",
                )
            return scores
    return None


def _pair(row: Row, prompt: str | list[Message], responses: list[str | list[Message]]) -> Content:
    scores = graded_scores(row)
    return Content(
        prompt=prompt,
        responses=tuple(responses),
        scores=scores or (1.0, 0.0),
        columns=_PAIR,
        is_graded=scores is not None,
    )


def _convert_pair(row: Row) -> Content:
    chosen, rejected = (text_or_messages(value_at(row, name), name) for name in _PAIR)
    if "prompt" not in row:
        return _implicit_prompt(row, chosen, rejected)
    prompt = text_or_messages(row["prompt"], "prompt")
    if isinstance(prompt, str):
        if isinstance(chosen, str) and isinstance(rejected, str):
            return _pair(row, prompt, [chosen, rejected])
        raise RowError("prompt", "is text, but chosen and rejected are not both text")
    return _pair(row, prompt, [_answer(prompt, chosen), _answer(prompt, rejected)])


def _answer(prompt: list[Message], response: str | list[Message]) -> list[Message]:
    """What follows the prompt: also where the response repeats the prompt, or is bare text."""
    if isinstance(response, str):
        return [{"role": "assistant", "content": response}]
    repeats = len(response) > len(prompt) and response[: len(prompt)] == prompt
    return response[len(prompt) :] if repeats else response


def _implicit_prompt(
    row: Row, chosen: str | list[Message], rejected: str | list[Message]
) -> Content:
    if isinstance(chosen, str) and isinstance(rejected, str):
        cut = _shared_words(chosen, rejected)
        return _pair(row, chosen[:cut], [chosen[cut:], rejected[cut:]])
    if isinstance(chosen, str) or isinstance(rejected, str):
        raise RowError("rejected", "one of chosen and rejected is text, the other messages")
    turns = _shared_turns(chosen, rejected)
    if turns == 0:
        raise RowError("rejected", "shares no first message with chosen, and there is no prompt")
    return _pair(row, chosen[:turns], [chosen[turns:], rejected[turns:]])


def _shared_words(chosen: str, rejected: str) -> int:
    """Length of the shared beginning, up to the last whitespace, which goes to the responses."""
    shared = 0
    for a, b in zip(chosen, rejected, strict=False):
        if a != b:
            break
        shared += 1
    if shared == min(len(chosen), len(rejected)):
        raise RowError(
            "rejected",
            "chosen and rejected do not differ, or one continues the other",
            "Give the prompt a column of its own",
        )
    while shared and not chosen[shared - 1].isspace():
        shared -= 1
    return len(chosen[:shared].rstrip())


def _shared_turns(chosen: list[Message], rejected: list[Message]) -> int:
    """Number of first messages in common, leaving each side at least one."""
    limit = min(len(chosen), len(rejected)) - 1
    turns = 0
    while turns < limit and chosen[turns] == rejected[turns]:
        turns += 1
    return turns


def _convert_binarized(row: Row) -> Content:
    """The text prompt repeats the first user message, so the conversations say it all."""
    chosen, rejected = (messages(value_at(row, name), name) for name in _PAIR)
    content = _implicit_prompt(row, chosen, rejected)
    said = [message["content"] for message in content.prompt if isinstance(message, dict)]
    if text_at(row, "prompt") not in said:
        raise RowError("prompt", "is no message that chosen and rejected share")
    return content


def _convert_sharegpt(row: Row) -> Content:
    prompt = sharegpt_messages(value_at(row, "conversations"), "conversations")
    if row.get("system"):
        prompt = [{"role": "system", "content": text_at(row, "system")}, *prompt]
    answers = [sharegpt_messages(value_at(row, name), name) for name in _PAIR]
    return _pair(row, prompt, [*answers])


def _is_transcript(row: Row) -> bool:
    return "prompt" not in row and all(
        isinstance(row[name], str) and row[name].lstrip().startswith("Human:") for name in _PAIR
    )


def _convert_transcript(row: Row) -> Content:
    prompts, answers = [], []
    for name in _PAIR:
        transcript = text_at(row, name)
        cut = transcript.rfind(_LAST_ANSWER)
        if cut < 0:
            raise RowError(name, 'has no "\\n\\nAssistant:" turn')
        prompts.append(transcript[: cut + len(_LAST_ANSWER)])
        answers.append(transcript[cut + len(_LAST_ANSWER) :])
    if prompts[0] != prompts[1]:
        raise RowError("rejected", "differs from chosen before the last Assistant turn")
    return _pair(row, prompts[0], [*answers])


def transcript_messages(transcript: str, column: str) -> list[Message]:
    """Turns of a "Human: ... Assistant: ..." text, without the empty one that asks for more."""
    pieces = _TURN.split("\n\n" + transcript.lstrip())
    if len(pieces) < 3 or pieces[0].strip():
        raise RowError(column, 'does not start with "Human:"')
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [
        {"role": roles[speaker], "content": said.strip()}
        for speaker, said in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"]:
        turns.pop()
    return turns


def _transcript_to_messages(content: Content) -> Content:
    answers: list[str | list[Message]] = [
        [{"role": "assistant", "content": answer.strip()}]
        for answer in content.responses
        if isinstance(answer, str)
    ]
    prompt = transcript_messages(str(content.prompt), "chosen")
    return replace(content, prompt=prompt, responses=tuple(answers))


SHAREGPT_PAIRS = Format(
    name="sharegpt_pairs",
    required=("conversations", *_PAIR),
    optional=("system", *_ALL_SCORE_COLUMNS),
    convert=_convert_sharegpt,
)
TRANSCRIPTS = Format(
    name="transcripts",
    required=_PAIR,
    convert=_convert_transcript,
    matches=_is_transcript,
    to_messages=_transcript_to_messages,
)
BINARIZED = Format(
    name="ultrafeedback_binarized",
    required=("prompt", *_PAIR),
    optional=_ALL_SCORE_COLUMNS,
    convert=_convert_binarized,
    matches=lambda row: (
        isinstance(row["prompt"], str) and all(isinstance(row[name], list) for name in _PAIR)
    ),
)
PAIRS = Format(
    name="pairs",
    required=_PAIR,
    optional=("prompt", *_ALL_SCORE_COLUMNS),
    convert=_convert_pair,
)
