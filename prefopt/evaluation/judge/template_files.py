"""Prompts from a user's file: MT-Bench's judge_prompts.jsonl, or one in AlpacaEval's ChatML form.

Sources: FastChat `fastchat/llm_judge` (`NEED_REF_CATS` in common.py, the names of the prompts in
gen_judgment.py) and alpaca_eval `evaluators_configs/*/*.txt`.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefopt.errors import UserError
from prefopt.evaluation.files import read_lines
from prefopt.evaluation.judge.templates import OwnPrompts, Prompts, digest, level_name
from prefopt.evaluation.judge.texts import check_turns, first_request
from prefopt.evaluation.suites.references import NEED_REFERENCE
from prefopt.evaluation.types import Answer, Kind, Message, PairQuestion, Prompt, Question

_WITH_REFERENCE = frozenset({*NEED_REFERENCE, "arena-hard-200"})
_MT_BENCH_NAMES = frozenset(
    f"{form}{turns}"
    for form in ("pair-v2", "pair-math-v1", "single-v1", "single-math-v1")
    for turns in ("", "-multi-turn")
)
_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)
_ALPACA_PLACES = ("instruction", "output_1", "output_2")


def load_prompts(
    path: str | None,
    *,
    is_bare: bool,
    levels: Sequence[float],
    labels: tuple[str, ...] | None,
) -> Prompts:
    """The prompts that a judge's section asks for.

    Args:
        path: the file, .jsonl for MT-Bench's and .txt for AlpacaEval's; None for our own.
        is_bare: which of our own.
        levels: of scores.
        labels: of pairs; None for those that go with the file.

    Raises:
        UserError: if the file is not there or is neither.
    """
    if path is None:
        return OwnPrompts(is_bare=is_bare, levels=levels, pair_labels=labels or ("A", "B"))
    if path.endswith(".jsonl"):
        return MtBenchPrompts(Path(path), levels=levels, pair_labels=labels or ("A", "B", "C"))
    if path.endswith(".txt"):
        return AlpacaPrompts(Path(path), pair_labels=labels or ("m", "M"))
    raise UserError(
        f"judge.templates: {path} is neither a .jsonl in MT-Bench's form nor a .txt in "
        "AlpacaEval's. Rename it, or leave the key out for our own prompts."
    )


class MtBenchPrompts:
    """The eight prompts of MT-Bench: pair or single, one or two turns, with or without reference.

    Math, reasoning and coding are judged with the reference answer.
    """

    kinds: frozenset[Kind] = frozenset({"pair", "score"})
    is_bare = False

    def __init__(
        self, path: Path, *, levels: Sequence[float], pair_labels: tuple[str, ...]
    ) -> None:
        rows = {str(row.get("name")): row for row in read_lines(path)}
        lacking = sorted(_MT_BENCH_NAMES - rows.keys())
        if lacking:
            raise UserError(f"judge.templates: {path} lacks the prompt {lacking[0]}.")
        for name in sorted(_MT_BENCH_NAMES):
            for key in ("system_prompt", "prompt_template"):
                if not isinstance(rows[name].get(key), str):
                    raise UserError(f"judge.templates: {path}, prompt {name}: {key} is no text.")
        self._rows = {name: rows[name] for name in _MT_BENCH_NAMES}
        self.pair_labels = pair_labels
        self.level_labels = tuple(level_name(level) for level in levels)
        sha = digest(path.read_text(encoding="utf-8"))
        self.identity = {"name": f"mt-bench:{path.name}", "sha": sha}

    def messages(self, question: Question) -> list[Message]:
        """System and user message, of the prompt that fits category and turn.

        Raises:
            UserError: for a third turn, or if a reference is needed and not there.
        """
        check_turns(question)
        if question.turn > 2:
            raise UserError("MT-Bench's prompts know two turns. Judge turns 1 and 2 only.")
        row = self._rows[prompt_name(question)]
        places = _mt_bench_places(question)
        return [
            Message(role="system", content=str(row["system_prompt"])),
            Message(role="user", content=_filled(str(row["prompt_template"]), places)),
        ]


def prompt_name(question: Question) -> str:
    """Which of MT-Bench's eight prompts a question goes with."""
    needs_reference = question.prompt.category in _WITH_REFERENCE
    if isinstance(question, PairQuestion):
        form = "pair-math-v1" if needs_reference else "pair-v2"
    else:
        form = "single-math-v1" if needs_reference else "single-v1"
    return form + "-multi-turn" * (question.turn > 1)


class AlpacaPrompts:
    """A pairwise prompt with {instruction}, {output_1} and {output_2}, whose reply is one label.

    What is shown first is output_1.
    """

    kinds: frozenset[Kind] = frozenset({"pair"})
    is_bare = True
    level_labels: tuple[str, ...] = ()

    def __init__(self, path: Path, *, pair_labels: tuple[str, ...]) -> None:
        if not path.is_file():
            raise UserError(f"judge.templates: no file {path}.")
        text = path.read_text(encoding="utf-8")
        self._messages = [(role, content.strip()) for role, content in _CHATML.findall(text)]
        # The last message is the start of the reply, with nothing in it.
        self._messages = [each for each in self._messages if each[1]]
        told = "".join(content for _, content in self._messages)
        lacking = [place for place in _ALPACA_PLACES if f"{{{place}}}" not in told]
        if lacking:
            raise UserError(
                f"judge.templates: {path} has no {{{lacking[0]}}} in a message between "
                "<|im_start|> and <|im_end|>."
            )
        self.pair_labels = pair_labels
        self.identity = {"name": f"alpaca:{path.name}", "sha": digest(text)}

    def messages(self, question: Question) -> list[Message]:
        """The file's messages with the texts in their places.

        Raises:
            UserError: for a second turn.
        """
        assert isinstance(question, PairQuestion)
        check_turns(question)
        if question.turn > 1:
            raise UserError("AlpacaEval's prompts know one turn. Judge turn 1 only.")
        places = {
            "instruction": first_request(question.prompt),
            "output_1": question.first.turns[0],
            "output_2": question.second.turns[0],
        }
        return [Message(role=role, content=_filled(text, places)) for role, text in self._messages]


def _filled(template: str, places: Mapping[str, str]) -> str:
    """The template with texts in place of {names}; braces inside the texts stay as they are."""
    names = "|".join(map(re.escape, places))
    return re.sub(rf"\{{({names})\}}", lambda match: places[match[1]], template)


def _mt_bench_places(question: Question) -> dict[str, str]:
    prompt = question.prompt
    requests = [first_request(prompt), *prompt.turns[1 : question.turn]]
    places = {"question": requests[0]}
    places |= {f"question_{n}": text for n, text in enumerate(requests, start=1)}
    if isinstance(question, PairQuestion):
        places |= _answer_places(question.first, question.turn, "_a")
        places |= _answer_places(question.second, question.turn, "_b")
    else:
        places |= _answer_places(question.answer, question.turn, "")
    if prompt.category in _WITH_REFERENCE:
        places |= _reference_places(prompt, question.turn)
    return places


def _answer_places(answer: Answer, turn: int, who: str) -> dict[str, str]:
    shown = {f"answer{who}": answer.turns[0]}
    return shown | {f"answer{who}_{n}": text for n, text in enumerate(answer.turns[:turn], start=1)}


def _reference_places(prompt: Prompt, turn: int) -> dict[str, str]:
    reference = prompt.reference or ()
    if len(reference) < turn:
        raise UserError(
            f"prompt {prompt.source_id or prompt.prompt_id} of category {prompt.category} is "
            f"judged with a reference answer, and has none for turn {turn}. Give the suite its "
            "reference answers."
        )
    return {f"ref_answer_{n}": text for n, text in enumerate(reference[:turn], start=1)}
