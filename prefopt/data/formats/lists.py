"""Formats with several scored responses per prompt."""

from prefopt.data.formats.base import Content, Format, Row, RowError
from prefopt.data.formats.pairs import transcript_messages
from prefopt.data.formats.read import (
    list_at,
    number,
    table,
    text,
    text_at,
    text_at_path,
    text_or_messages,
    value_at,
)
from prefopt.types import Message


def _convert_list(row: Row) -> Content:
    prompt = text_or_messages(value_at(row, "prompt"), "prompt")
    values = list_at(row, "responses")
    columns = tuple(f"responses[{k}]" for k in range(len(values)))
    responses = [text_or_messages(*pair) for pair in zip(values, columns, strict=True)]
    if not isinstance(prompt, str):
        responses = [
            [{"role": "assistant", "content": response}] if isinstance(response, str) else response
            for response in responses
        ]
    elif not all(isinstance(response, str) for response in responses):
        raise RowError("prompt", "is text, but not all responses are")
    return Content(
        prompt=prompt,
        responses=tuple(responses),
        scores=_list_scores(row, len(values)),
        columns=columns,
        token_weights=_token_weights(row, len(values)),
        is_graded=True,
    )


def _list_scores(row: Row, num_responses: int) -> tuple[float, ...]:
    column = "scores" if row.get("scores") is not None else "ranks"
    if column not in row:
        raise RowError("scores", "missing column, and there are no ranks either")
    values = list_at(row, column)
    if len(values) != num_responses:
        raise RowError(column, f"{num_responses} responses but {len(values)} {column}")
    numbers = [number(value, f"{column}[{k}]") for k, value in enumerate(values)]
    return tuple(numbers if column == "scores" else [num_responses - rank for rank in numbers])


def _token_weights(row: Row, num_responses: int) -> tuple[tuple[float, ...], ...] | None:
    name = "token_weights"
    if row.get(name) is None:
        return None
    lists = list_at(row, name)
    if len(lists) != num_responses:
        raise RowError(name, f"{num_responses} responses but weights for {len(lists)}")
    weights = []
    for k, values in enumerate(lists):
        if not isinstance(values, list):
            raise RowError(f"{name}[{k}]", f"must be a list of numbers, got {values!r}")
        weights.append(tuple(number(value, f"{name}[{k}]") for value in values))
    return tuple(weights)


def _convert_ultrafeedback(row: Row) -> Content:
    completions = list_at(row, "completions")
    columns = tuple(f"completions[{k}]" for k in range(len(completions)))
    tables = [table(*pair) for pair in zip(completions, columns, strict=True)]
    pairs = list(zip(tables, columns, strict=True))
    return Content(
        prompt=text_at(row, "instruction"),
        responses=tuple(text_at_path(fields, "response", column) for fields, column in pairs),
        scores=tuple(
            number(fields.get("overall_score"), f"{column}.overall_score")
            for fields, column in pairs
        ),
        columns=tuple(f"{column}.response" for column in columns),
        is_graded=True,
    )


def _is_ultrafeedback(row: Row) -> bool:
    completions = row["completions"]
    return isinstance(completions, list) and all(isinstance(each, dict) for each in completions)


def _convert_nectar(row: Row) -> Content:
    answers = list_at(row, "answers")
    columns = tuple(f"answers[{k}]" for k in range(len(answers)))
    tables = [table(*pair) for pair in zip(answers, columns, strict=True)]
    pairs = list(zip(tables, columns, strict=True))
    ranks = [number(fields.get("rank"), f"{column}.rank") for fields, column in pairs]
    responses: list[str | list[Message]] = [
        [{"role": "assistant", "content": text_at_path(fields, "answer", column)}]
        for fields, column in pairs
    ]
    return Content(
        prompt=transcript_messages(text_at(row, "prompt"), "prompt"),
        responses=tuple(responses),
        scores=tuple(len(ranks) - rank for rank in ranks),
        columns=tuple(f"{column}.answer" for column in columns),
        is_graded=True,
    )


def _is_nectar(row: Row) -> bool:
    answers = row["answers"]
    return isinstance(answers, list) and all(
        isinstance(each, dict) and "rank" in each for each in answers
    )


def _convert_helpsteer2(row: Row) -> Content:
    rows = [table(each, "rows") for each in list_at(row, "rows")]
    return Content(
        prompt=text(row["prompt"], "prompt"),
        responses=tuple(text_at(each, "response") for each in rows),
        scores=tuple(number(value_at(each, "helpfulness"), "helpfulness") for each in rows),
        columns=tuple(f"response of row {k + 1} of this prompt" for k in range(len(rows))),
        is_graded=True,
    )


def _convert_helpsteer3(row: Row) -> Content:
    """The preference runs from -3 (first much better) over 0 (a tie) to 3 (second much better)."""
    preference = number(value_at(row, "overall_preference"), "overall_preference")
    names = ("response1", "response2")
    prompt = text_or_messages(value_at(row, "context"), "context")
    texts = [text_at(row, name) for name in names]
    responses: list[str | list[Message]] = [*texts]
    if not isinstance(prompt, str):
        responses = [[{"role": "assistant", "content": said}] for said in texts]
    return Content(
        prompt=prompt,
        responses=tuple(responses),
        scores=(max(-preference, 0.0), max(preference, 0.0)),
        columns=names,
        is_graded=True,
    )


LISTS = Format(
    name="lists",
    required=("prompt", "responses"),
    optional=("scores", "ranks", "token_weights"),
    convert=_convert_list,
)
ULTRAFEEDBACK = Format(
    name="ultrafeedback",
    required=("instruction", "completions"),
    convert=_convert_ultrafeedback,
    matches=_is_ultrafeedback,
)
NECTAR = Format(
    name="nectar", required=("prompt", "answers"), convert=_convert_nectar, matches=_is_nectar
)
HELPSTEER2 = Format(
    name="helpsteer2",
    required=("prompt", "response", "helpfulness"),
    convert=_convert_helpsteer2,
    group_by="prompt",
)
HELPSTEER3 = Format(
    name="helpsteer3",
    required=("context", "response1", "response2", "overall_preference"),
    convert=_convert_helpsteer3,
)
