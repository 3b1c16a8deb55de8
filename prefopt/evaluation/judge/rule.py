"""A function of Python as judge, straight or with biases of known size."""

import hashlib
import importlib
import importlib.util
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefopt.errors import UserError, did_you_mean
from prefopt.evaluation.judge.base import as_text, one_line, sigmoid
from prefopt.evaluation.judge.section import RuleSection
from prefopt.evaluation.judge.templates import digest
from prefopt.evaluation.judge.texts import check_turns
from prefopt.evaluation.judge.verdict import on_levels
from prefopt.evaluation.types import Kind, PairQuestion, Question, Reply


class RuleJudge:
    """P(first better) from a rule's scores, or from what the rule says of the pair.

    Args:
        section: which function, and which biases.

    Raises:
        UserError: if there is no such function.
    """

    def __init__(self, section: RuleSection) -> None:
        self._section = section
        self._function, source = _load(section.function)
        is_score = section.form == "score"
        self.name = section.name or section.function.rpartition(":")[2]
        self.kinds: frozenset[Kind] = frozenset({"pair", "score"} if is_score else {"pair"})
        self.levels = section.levels if is_score else ()
        self.num_in_flight = 1
        self.max_calls = section.max_calls
        kept = section.model_dump(mode="json", exclude={"name", "max_calls"})
        self.identity: dict[str, Any] = {**kept, "source_sha": source}

    def rendered(self, question: Question) -> str:
        """The texts that the function is given."""
        return as_text(_texts(question))

    def ask(self, question: Question) -> Reply:
        """What the rule says, with the section's biases.

        Raises:
            UserError: if the function gives something else than a number.
        """
        section = self._section
        seed = as_text([section.seed, _texts(question)])
        rng = random.Random(hashlib.sha256(seed.encode()).digest())
        if rng.random() < section.drop_rate:
            return Reply(status="refusal", problem="dropped, as judge.drop_rate asks")
        if isinstance(question, PairQuestion):
            return self._pair(_texts(question), rng)
        return self._score(_texts(question))

    def close(self) -> None:
        """Nothing to give back."""

    def _score(self, texts: list[str]) -> Reply:
        score = self._number(*texts)
        probs = on_levels(score, self.levels)
        if probs is None:
            problem = (
                f"{score:g} is outside judge.levels, {self.levels[0]:g} to {self.levels[-1]:g}"
            )
            return Reply(status="parse_error", raw=f"{score:.6g}", problem=problem)
        return Reply(status="ok", probs=probs, raw=f"{score:.6g}")

    def _pair(self, texts: list[str], rng: random.Random) -> Reply:
        prompt, first, second = texts
        section = self._section
        if section.form == "pair":
            prob = self._number(prompt, first, second)
            if not 0 <= prob <= 1:
                raise UserError(f"judge.function gave {prob:g}, which is no probability.")
            raw, logit = f"{prob:.6g}", _logit(prob)
        else:
            scores = self._number(prompt, first), self._number(prompt, second)
            raw = f"scores {scores[0]:.6g}, {scores[1]:.6g}"
            if section.temperature == 0:
                return Reply(status="ok", probs=_hard(*scores), raw=raw)
            logit = (scores[0] - scores[1]) / section.temperature
        longer = math.tanh((len(first) - len(second)) / section.length_scale)
        logit += section.slot_bias + section.length_bias * longer + rng.gauss(0, section.noise)
        better = sigmoid(logit)
        return Reply(status="ok", probs=(better, 1 - better, 0.0), raw=raw)

    def _number(self, *texts: str) -> float:
        try:
            value = self._function(*texts)
        except Exception as error:
            raise UserError(
                f"judge.function {self._section.function} failed: {type(error).__name__}: "
                f"{one_line(str(error))}"
            ) from error
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(
                f"judge.function {self._section.function} gave {value!r}. It must give a number."
            )
        return float(value)


def _texts(question: Question) -> list[str]:
    """Prompt and answers of the turn that is judged."""
    check_turns(question)
    at = question.turn - 1
    if isinstance(question, PairQuestion):
        return [question.prompt.turns[at], question.first.turns[at], question.second.turns[at]]
    return [question.prompt.turns[at], question.answer.turns[at]]


def _hard(first: float, second: float) -> tuple[float, float, float]:
    return float(first > second), float(first < second), float(first == second)


def _logit(prob: float) -> float:
    if prob in (0.0, 1.0):
        return math.inf if prob else -math.inf
    return math.log(prob) - math.log1p(-prob)


def _load(entry: str) -> tuple[Callable[..., Any], str]:
    """The function, and a hash of the file that it is in."""
    where, colon, name = entry.rpartition(":")
    if not colon or not where or not name:
        raise UserError(
            f"judge.function: '{entry}' is no entry point. Write package.module:function or "
            "file.py:function."
        )
    module = _from_file(Path(where)) if where.endswith(".py") else _imported(where)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        raise UserError(
            f"judge.function: {where} has no function '{name}'. {did_you_mean(name, known)}"
        )
    file = getattr(module, "__file__", None)
    return function, digest(Path(file).read_text(encoding="utf-8")) if file else ""


def _from_file(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"judge.function: no file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _imported(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise UserError(
            f"judge.function: no module {error.name}. Install it, or write file.py:function."
        ) from error
