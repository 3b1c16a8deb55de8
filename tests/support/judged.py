"""Judgments for tests, by hand and of whole worlds."""

from collections.abc import Callable, Sequence

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
