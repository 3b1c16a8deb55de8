"""Whether the data gives an objective what it reads, before any weight is loaded."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from prefopt.data.prepare import PreparedData
from prefopt.data.store import TokenStore
from prefopt.data.summary import SourceSummary
from prefopt.errors import UserError
from prefopt.objectives import Objective
from prefopt.train.share import facts_of

_RECORDS_AT_ONCE = 2**16
_READS = {
    "preferred_pairs": "pairs of responses of which one scores higher",
    "graded": "lists of scored responses",
    "labels": "labels: 1 for responses to learn or keep, 0 for those to avoid or forget",
    "responses": "the responses that it selects",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Fit:
    """What an objective makes of data that it can learn from."""

    num_counted: int
    """Training records that say something to it."""
    warnings: tuple[str, ...]
    """What the user should know before training, a line each."""


def check_needs(objective: Objective, data: PreparedData) -> Fit:
    """What the objective makes of the training data, and whether it can be evaluated.

    Raises:
        UserError: naming source, column or record, if the data lacks what the objective reads.
    """
    sides = [("data", data.train, data.summary.sources)]
    if data.evaluation is not None:
        own = data.summary.evaluation_sources or data.summary.sources
        sides.append(("data.evaluation", data.evaluation, own))
    for key, store, sources in sides:
        for part in objective.parts():
            _check_sources(part, key, store, sources)
            _check_scores(part, store)
    _check_roles(data)
    num_counted, weights = _weigh(objective, data.train)
    for term, weight in weights.items():
        if weight == 0 or num_counted == 0:
            raise UserError(_nothing_for(objective, "data", data.train, term, len(weights) > 1))
    facts = facts_of(data.train, np.arange(min(_RECORDS_AT_ONCE, len(data.train))))
    warnings = [objective.warning(facts.scores, facts.where)]
    if data.evaluation is not None:
        warnings.append(_check_evaluation(objective, data.evaluation))
    return Fit(num_counted=num_counted, warnings=tuple(line for line in warnings if line))


def _weigh(objective: Objective, store: TokenStore) -> tuple[int, dict[str, float]]:
    """How many records the objective counts, and the whole weight of each of its terms."""
    num_counted, weights = 0, Counter[str]()
    for start in range(0, len(store), _RECORDS_AT_ONCE):
        records = np.arange(start, min(start + _RECORDS_AT_ONCE, len(store)))
        output = facts_of(store, records).weigh(objective)
        num_counted += int(output.counted.sum())
        weights.update({name: float(t.weight.sum()) for name, t in output.all_terms().items()})
    return num_counted, dict(weights)


def _check_evaluation(objective: Objective, store: TokenStore) -> str | None:
    """Raise if held-out data says nothing to the objective; say so if it feeds only some terms."""
    num_counted, weights = _weigh(objective, store)
    idle = [term for term, weight in weights.items() if weight == 0]
    if num_counted == 0:
        raise UserError(
            _nothing_for(objective, "data.evaluation", store, idle[0], len(weights) > 1)
        )
    if not idle:
        return None
    terms = " and ".join(f"'{term}'" for term in idle)
    return f"Held-out data says nothing to {terms}: eval_loss lacks that part."


def _nothing_for(
    objective: Objective, key: str, store: TokenStore, term: str, is_one_of_several: bool
) -> str:
    which = f"the '{term}' term of " if is_one_of_several else ""
    needs = objective.owner_of(term).needs
    way_out = "Look at the scores with prefopt validate, or choose another objective."
    if needs == "labels":
        way_out = (
            "Give both labels: rows with label true and false, or sources with role: retain and "
            "role: forget."
        )
    elif needs != "responses" and int(store.num_responses.max()) == 1:
        way_out = "Every record has one response: give columns chosen and rejected, or responses."
    return (
        f"{key}: none of the {len(store)} records says anything to {which}objective.name: "
        f"{objective.name}, which reads {_READS[needs]} there. {way_out}"
    )


def _check_sources(
    objective: Objective, key: str, store: TokenStore, sources: Sequence[SourceSummary]
) -> None:
    """Raise where the columns of a source cannot hold what the objective reads."""
    for number, source in enumerate(sources):
        if objective.needs == "graded" and not source.is_graded:
            raise UserError(
                f"{key}.sources[{number}]: {source.path} says which response is better and not by "
                f"how much, but objective.name: {objective.name} reads graded scores. Add columns "
                "score_chosen and score_rejected (or responses and scores), or choose an "
                "objective for pairs, such as dpo."
            )
    if objective.needs_token_weights and not store.has_token_weights:
        raise UserError(
            f"{key}.sources: no row has a column token_weights, which objective.name: "
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


def _check_roles(data: PreparedData) -> None:
    """Raise if no record is left to train on for one of the roles."""
    left = Counter[str]()
    for source, num in zip(data.summary.sources, data.train.records_per_source, strict=True):
        if source.role is not None:
            left[source.role] += num
    for role, num_records in left.items():
        if num_records == 0:
            raise UserError(
                f"data.evaluation: holds out every record of role: {role}. Hold out fewer, or give "
                "data.evaluation.sources of their own."
            )
