"""Score transforms, and which responses of a record stay."""

from dataclasses import replace

from prefopt.data.identity import number
from prefopt.data.section import Keep, Role, ScoreTransform
from prefopt.types import PreferenceRecord

_SCORE_OF_ROLE: dict[Role, float] = {"forget": 0.0, "retain": 1.0}


def select(
    record: PreferenceRecord,
    *,
    scores: ScoreTransform,
    keep: Keep,
    top_k: int | None,
    seed: int,
    role: Role | None = None,
) -> PreferenceRecord:
    """The record with transformed scores, reduced to the responses to keep.

    Scores are transformed among all responses of the record, before any is left out. A role gives
    all that stay the same score.
    """
    transformed = transform_scores(record.scores, scores)
    chosen = _chosen(transformed, keep, top_k, f"{seed}:{record.id}")
    return replace(
        record,
        responses=tuple(record.responses[k] for k in chosen),
        scores=tuple(transformed[k] if role is None else _SCORE_OF_ROLE[role] for k in chosen),
        token_weights=record.token_weights and tuple(record.token_weights[k] for k in chosen),
    )


def transform_scores(scores: tuple[float, ...], transform: ScoreTransform) -> tuple[float, ...]:
    """The scores, mapped to [0, 1], or each as the number of responses that it beats.

    A tie counts half a beaten response; where all tie, `minmax` gives 0.5. A single score has
    nothing to be compared with and stays as it is.
    """
    if transform == "raw" or len(scores) == 1:
        return scores
    if transform == "rank":
        return tuple(
            sum(score > other for other in scores)
            + (sum(score == other for other in scores) - 1) / 2
            for score in scores
        )
    low, high = min(scores), max(scores)
    if low == high:
        return (0.5,) * len(scores)
    return tuple((score - low) / (high - low) for score in scores)


def best_response(scores: tuple[float, ...]) -> int:
    """Index of the highest score, the first of several."""
    return scores.index(max(scores))


def _chosen(scores: tuple[float, ...], keep: Keep, top_k: int | None, key: str) -> list[int]:
    """Indices to keep: best first for the two-response ways, else in the record's order."""
    everything = range(len(scores))
    if keep == "all" or len(scores) == 1:
        return list(everything)
    if keep == "top_k":
        # Sorting is stable: of equal scores the first stay.
        ranked = sorted(everything, key=lambda k: -scores[k])
        return sorted(ranked[:top_k])
    best = best_response(scores)
    others = [k for k in everything if k != best]
    if keep == "best_worst":
        return [best, min(others, key=lambda k: scores[k])]
    return [best, others[number(key) % len(others)]]
