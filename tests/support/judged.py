"""Judgments for tests, by hand and of whole worlds."""

import json
from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import expit

from prefopt.evaluation.analysis import judge_numbers
from prefopt.evaluation.types import Answer, Judgment, Prompt, Reply


def prompts_of(num_prompts: int, categories: Sequence[str | None] = (None,)) -> dict[str, Prompt]:
    """Prompt i says `question i`; categories take turns."""
    prompts = [
        Prompt(turns=(f"question {i}",), category=categories[i % len(categories)])
        for i in range(num_prompts)
    ]
    return {prompt.prompt_id: prompt for prompt in prompts}


def answer(prompt_id: str, length: int = 10, **fields) -> Answer:
    """An answer of so many characters."""
    return Answer(prompt_id=prompt_id, **{"turns": ("x" * length,), **fields})


def pair(prompt_id, first, second, probs, *, status="ok", turn=1, sample=0, mass=None) -> Judgment:
    """One order of a pair; `probs` are first, second, tie, or a win alone."""
    if isinstance(probs, float):
        probs = (probs, 1 - probs, 0.0)
    return _judgment(prompt_id, first, second, probs, (), status, turn, sample, mass)


def score(prompt_id, system, probs, levels, *, status="ok", turn=1, sample=0) -> Judgment:
    """One absolute judgment."""
    return _judgment(prompt_id, system, None, probs, levels, status, turn, sample, None)


def both_orders(
    prompts: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    judge: Callable[[str, str, str], float],
    **fields,
) -> list[Judgment]:
    """Every pair in both orders on every prompt; `judge(prompt, first, second)` is the win."""
    return [
        pair(prompt, first, second, float(judge(prompt, first, second)), **fields)
        for prompt in prompts
        for a, b in pairs
        for first, second in ((a, b), (b, a))
    ]


def _judgment(prompt_id, system, opponent, probs, levels, status, turn, sample, mass) -> Judgment:
    is_ok = status == "ok"
    return Judgment(
        key=f"{prompt_id}/{turn}/{sample}/{system}/{opponent}",
        prompt_id=prompt_id,
        turn=turn,
        sample=sample,
        kind="score" if opponent is None else "pair",
        system=system,
        opponent=opponent,
        levels=tuple(levels),
        judge="J",
        reply=Reply(
            status=status,
            probs=tuple(probs) if is_ok else (),
            label_mass=mass if is_ok else None,
            problem=None if is_ok else "said nothing",
        ),
        asked_at="2026-11-26T00:00:00Z",
    )


def numbers(judgments, methods, *, num_prompts=40, lengths=None, baseline="base", **fields):
    """Of a world whose answers have lengths by system and prompt, 10 where nothing is said."""
    prompts = fields.pop("prompts", None) or prompts_of(num_prompts)
    systems = [system for each in methods.values() for system in each]
    answers = {
        system: [
            answer(prompt, int((lengths or {}).get((system, prompt), 10))) for prompt in prompts
        ]
        for system in systems
    }
    report = judge_numbers(
        "J", {"model": "m"}, judgments, answers, methods, baseline, prompts, **fields
    )
    # What cannot be written to report.json shows here.
    json.dumps(report, allow_nan=False)
    return report


def one_each(*names):
    """Methods of one seed each, whose system has their name."""
    return {name: [name] for name in names}


def against(report, method):
    """The row of a method against the baseline."""
    [row] = [row for row in report["against_baseline"] if row["method"] == method]
    return row


def noisy(rng, quality, *, slot=0.0, noise=1.0, lengths=None, by_length=0.0):
    """A judge of drawn quality that leans to the first slot and to longer answers."""
    drawn = {}

    def judge(prompt, first, second):
        for system in (first, second):
            key = (system, prompt)
            if key not in drawn:
                drawn[key] = quality.get(system, 0.0) + noise * rng.standard_normal()
        margin = drawn[first, prompt] - drawn[second, prompt] + slot
        if lengths is not None:
            gap = lengths[first, prompt] - lengths[second, prompt]
            margin += by_length * np.tanh(gap / 300)
        return expit(margin)

    return judge
