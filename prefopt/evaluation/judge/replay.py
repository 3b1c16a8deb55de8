"""What was judged before, looked up by the texts: other statistics on it cost nothing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import UserError
from prefopt.evaluation.judge.base import answers_of, as_text, one_line
from prefopt.evaluation.judge.judgments import read_judgments
from prefopt.evaluation.judge.section import ReplaySection
from prefopt.evaluation.judge.templates import digest
from prefopt.evaluation.judge.texts import check_turns
from prefopt.evaluation.types import Answer, Judgment, Kind, Prompt, Question, Reply

TEXTS = "texts"


def text_digests(question: Question) -> list[str]:
    """A hash of each answer, of the turns that are judged; lines of judgments keep them."""
    return [text_digest(answer, question.turn) for answer in answers_of(question)]


def text_digest(answer: Answer, turn: int) -> str:
    """A hash of an answer up to a turn."""
    return digest(as_text(list(answer.turns[:turn])))


class ReplayJudge:
    """Replies from a file of judgments, or from AlpacaEval's annotations.json.

    AlpacaEval asked in one order only, drawn at random, and its file does not say in which; so both
    orders get that one reply, seen from either side.

    Args:
        section: which file.

    Raises:
        UserError: if the file is absent, holds something else or holds no texts to look up by.
    """

    def __init__(self, section: ReplaySection) -> None:
        path = Path(section.path)
        if not path.is_file():
            raise UserError(f"judge.path: no file {path}.")
        self._path = path
        self.levels: tuple[float, ...] = ()
        self.num_in_flight = 1
        self.max_calls = section.max_calls
        self._replies: dict[tuple[str, ...], Reply] = {}
        if path.suffix == ".json":
            judged_by = self._read_annotations()
            self.kinds: frozenset[Kind] = frozenset({"pair"})
        else:
            judged_by, self.kinds = self._read_judgments()
        self.name = section.name or judged_by
        sha = digest(path.read_text(encoding="utf-8"))
        self.identity: dict[str, Any] = {
            "backend": section.backend,
            "judged_by": judged_by,
            "file": path.name,
            "sha": sha,
        }

    def rendered(self, question: Question) -> str:
        """Prompt and hashes of the answers.

        Raises:
            UserError: if the file has no such judgment.
        """
        check_turns(question)
        key = _key(question)
        if key not in self._replies:
            shown = one_line(question.prompt.turns[0], 60)
            raise UserError(
                f"{self._path} has no {question.kind} judgment of these answers to the prompt "
                f"'{shown}', turn {question.turn}. Replay needs the answers that were judged."
            )
        return as_text(key)

    def ask(self, question: Question) -> Reply:
        """What the file says."""
        return self._replies[_key(question)]

    def close(self) -> None:
        """Nothing to give back."""

    def _read_judgments(self) -> tuple[str, frozenset[Kind]]:
        header, judgments = read_judgments(self._path)
        if not judgments:
            raise UserError(f"judge.path: {self._path} holds no judgments yet.")
        for judgment in judgments:
            self._replies[_key_of_line(judgment, self._path)] = judgment.reply
        levels = {each.levels for each in judgments if each.kind == "score"}
        if len(levels) > 1:
            raise UserError(f"judge.path: {self._path} holds scores of different levels.")
        self.levels = next(iter(levels), ())
        return str(header["judge"]["name"]), frozenset(each.kind for each in judgments)

    def _read_annotations(self) -> str:
        try:
            rows = json.loads(self._path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"judge.path: {self._path} is no JSON: {error}.") from None
        if not isinstance(rows, list) or not rows:
            raise UserError(f"judge.path: {self._path} is no list of annotations.")
        for number, row in enumerate(rows):
            self._add_annotation(row, f"{self._path}, row {number}")
        return str(rows[0].get("annotator", "alpaca_eval"))

    def _add_annotation(self, row: Any, where: str) -> None:
        if not isinstance(row, dict):
            raise UserError(f"judge.path: {where} is no object.")
        texts = [row.get(key) for key in ("instruction", "output_1", "output_2")]
        if not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"judge.path: {where} has no instruction, output_1 and output_2 to look it up by."
            )
        instruction, *outputs = (str(text) for text in texts)
        first, second = (digest(as_text([output])) for output in outputs)
        preference = _preference(row, where)
        prompt_id = Prompt(turns=(instruction,)).prompt_id
        self._replies["pair", prompt_id, "1", first, second] = _from_preference(preference)
        swapped = None if preference is None else 3 - preference
        self._replies["pair", prompt_id, "1", second, first] = _from_preference(swapped)


def _preference(row: Mapping[str, Any], where: str) -> float | None:
    """1: output_1 is better, 2: output_2, 1.5: a tie; None where AlpacaEval could not read it."""
    value = row.get("preference")
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 1 <= number <= 2:
        raise UserError(f"judge.path: {where}: preference {value!r} is not between 1 and 2.")
    return number


def _from_preference(preference: float | None) -> Reply:
    if preference is None:
        problem = "AlpacaEval could not read this judgment"
        return Reply(status="parse_error", problem=problem, num_attempts=0)
    raw = f"preference {preference:g}"
    tie = float(preference == 1.5)
    second = 0.0 if tie else preference - 1
    return Reply(status="ok", probs=(1 - second - tie, second, tie), raw=raw, num_attempts=0)


def _key(question: Question) -> tuple[str, ...]:
    digests = text_digests(question)
    return (question.kind, question.prompt.prompt_id, str(question.turn), *digests)


def _key_of_line(judgment: Judgment, path: Path) -> tuple[str, ...]:
    digests = judgment.extra.get(TEXTS)
    if not isinstance(digests, list):
        raise UserError(f"judge.path: {path} does not say which texts were judged.")
    return (judgment.kind, judgment.prompt_id, str(judgment.turn), *digests)
