"""Numbers of one measured group, as sums over ranks."""

import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.diagnostics.entanglement import (
    CLASSES,
    Pairs,
    broken_conditions,
    class_of,
    pairs_of,
    predicted_changes,
    sums_by,
)
from prefopt.diagnostics.parts import PARTS, part_of
from prefopt.train.influence import GroupInfluence
from prefopt.train.metrics import StepSums
from prefopt.types import GroupBatch


def add_group(
    sums: StepSums,
    batch: GroupBatch,
    found: GroupInfluence,
    realised: Float[Tensor, " K"],
    *,
    learning_rate: float,
    is_filler: bool,
) -> None:
    """Add one group's numbers, over its pairs, or over its responses where a name has no pairs.

    Args:
        sums: gets them, by names that are the same on all ranks.
        batch: the group.
        found: what was measured before the step.
        realised: by how much each log-prob has changed since.
        learning_rate: of the step.
        is_filler: whether the group is only there to keep ranks in step.
    """
    scores, where = batch.scores[0], batch.where[0]
    total = found.gram.total
    pairs = pairs_of(total, scores, where)
    add = _Adder(sums, is_filler)
    add("cosine", pairs.cosine)
    add("gradient_norm/chosen", pairs.chosen)
    add("gradient_norm/rejected", pairs.rejected)
    names = {name: part_of(name) for name in found.gram.of_parameter}
    of_part = sums_by(found.gram.of_parameter, names)
    for part in PARTS:
        # One name on all ranks, whichever parts have any parameters.
        gram = of_part.get(part, torch.zeros_like(total))
        add(f"cosine/{part}", pairs_of(gram, scores, where).cosine)
    _add_changes(add, "realised", pairs, realised)
    if found.influence is None:
        return
    predicted = learning_rate * predicted_changes(found.influence)
    chosen, rejected = broken_conditions(found.influence, pairs)
    add("chosen_condition_broken", chosen)
    add("rejected_condition_broken", rejected)
    _add_changes(add, "predicted", pairs, predicted)
    agrees = predicted.sign() == realised.sign()
    add("sign_agreement", agrees[(predicted != 0) & (realised != 0)])


class _Adder:
    def __init__(self, sums: StepSums, is_filler: bool) -> None:
        self._sums, self._factor = sums, 0 if is_filler else 1

    def __call__(self, name: str, values: Tensor) -> None:
        """Add values where they are numbers."""
        known = values.double()[~values.double().isnan()]
        self._sums.add(f"{name}:sum", known.sum() * self._factor)
        self._sums.add(f"{name}:count", torch.tensor(len(known) * self._factor).to(values.device))


def _add_changes(add: _Adder, name: str, pairs: Pairs, changes: Float[Tensor, " K"]) -> None:
    index = torch.tensor(pairs.index, dtype=torch.int64, device=changes.device).reshape(-1, 2)
    of_pairs = changes[index]
    add(f"{name}/chosen", of_pairs[:, 0])
    add(f"{name}/rejected", of_pairs[:, 1])
    classes = [class_of(*each) for each in of_pairs.tolist()]
    known = [each for each in classes if each is not None]
    for kind in CLASSES:
        add(f"{name}/{kind}", changes.new_tensor([float(each == kind) for each in known]))
