"""Whether the data gives an objective what it reads, before any weight is loaded."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from prefopt.data.prepare import PreparedData
from prefopt.data.store import TokenStore
from prefopt.errors import UserError
from prefopt.objectives import Objective
from prefopt.train.steps import Facts, facts_of

_RECORDS_AT_ONCE = 2**16
_READS = {
    "preferred_pairs": "pairs of responses of which one scores higher",
    "graded": "scores",
    "labels": "labels: 1 for responses to learn or keep, 0 for those to avoid or forget",
    "responses": "the responses that it selects",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What an objective makes of data that it can learn from."""

    num_counted: int
    """Records that say something to it."""
    warning: str | None
    """What the user should know before training, in one line."""


def check_needs(objective: Objective, data: PreparedData) -> Fit:
    """What the objective makes of the training data.

    Raises:
        UserError: naming source, column or record, if the data lacks what the objective reads.
    """
    store = data.train
    _check_sources(objective, data)
    _check_scores(objective, store)
    num_counted, weights, first = 0, Counter[str](), None
    for start in range(0, len(store), _RECORDS_AT_ONCE):
        facts = facts_of(store, np.arange(start, min(start + _RECORDS_AT_ONCE, len(store))))
        output = facts.weigh(objective)
        num_counted += int(output.counted.sum())
        weights.update({name: float(t.weight.sum()) for name, t in output.all_terms().items()})
        first = first or facts
    for term, weight in weights.items():
        if weight == 0 or num_counted == 0:
            raise UserError(_nothing_for(objective, store, term, len(weights) > 1))
    return Fit(num_counted=num_counted, warning=_warning(objective, first))


def _warning(objective: Objective, facts: Facts | None) -> str | None:
    return None if facts is None else objective.warning(facts.scores, facts.where)


def _nothing_for(
    objective: Objective, store: TokenStore, term: str, is_one_of_several: bool
) -> str:
    which = f"the '{term}' term of " if is_one_of_several else ""
    way_out = "Look at the scores with prefopt validate, or choose another objective."
    if objective.needs == "labels":
        way_out = (
            "Give both labels: rows with label true and false, or sources with role: retain and "
            "role: forget."
        )
    elif objective.needs == "preferred_pairs" and int(store.num_responses.max()) == 1:
        way_out = "Every record has one response: give columns chosen and rejected, or responses."
    return (
        f"data: none of the {len(store)} records says anything to {which}objective.name: "
        f"{objective.name}, which reads {_READS[objective.needs]}. {way_out}"
    )


def _check_sources(objective: Objective, data: PreparedData) -> None:
    """Raise where the columns of a source cannot hold what the objective reads."""
    for number, source in enumerate(data.summary.sources):
        if objective.needs == "graded" and not source.is_graded:
            raise UserError(
                f"data.sources[{number}]: {source.path} says which response is better and not by "
                f"how much, but objective.name: {objective.name} reads graded scores. Add columns "
                "score_chosen and score_rejected (or responses and scores), or choose an "
                "objective for pairs, such as dpo."
            )
    if objective.needs_token_weights and not data.train.has_token_weights:
        raise UserError(
            f"data.sources: no row has a column token_weights, which objective.name: "
            f"{objective.name} reads with these parameters. Add it to rows of prompt, responses "
            "and scores: for each response a list with a number per token."
        )


def _check_scores(objective: Objective, store: TokenStore) -> None:
    """Raise at the first score that the objective is not defined for."""
    if objective.needs == "labels":
        wrong = ~np.isin(store.all_scores, (0.0, 1.0))
        says = "labels, 0 or 1. Label the data, or choose an objective for scored lists."
    elif objective.score_range is not None:
        low, high = objective.score_range
        wrong = (store.all_scores < low) | (store.all_scores > high)
        says = f"scores in [{low:g}, {high:g}]. Set data.scores: minmax, or rescale the column."
    else:
        return
    if wrong.any():
        first = int(wrong.argmax())
        record = int(np.searchsorted(store.first_responses, first, side="right")) - 1
        raise UserError(
            f"{store.record_id(record)}: score {store.all_scores[first]:g}, but objective.name: "
            f"{objective.name} needs {says}"
        )
