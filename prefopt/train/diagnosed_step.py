"""What a whole step does to a pair: its own group and all others, to first order."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from prefopt.data.collate import collate
from prefopt.diagnostics.entanglement import influence_of
from prefopt.diagnostics.gram import GramMeter
from prefopt.train.diagnosed_group import DiagnosedGroup
from prefopt.types import TokenizedRecord

GROUPS_TOGETHER, TOKENS_TOGETHER = 8, 16384


def changes_of_step(
    groups: Sequence[DiagnosedGroup],
    meter: GramMeter,
    record_of: Callable[[int], TokenizedRecord],
    device: torch.device,
    groups_per_step: int,
) -> dict[str, Any] | None:
    """Changes of log-probs by a step of plain gradient descent, per unit of learning rate.

    What other groups do to a pair is measured between a few groups at a time, and taken as often as
    a step has other groups.

    Args:
        groups: measured ones; those without coefficients or pairs are left out.
        meter: of the policy.
        record_of: the record of a number.
        device: of the policy.
        groups_per_step: of the step.

    Returns:
        Means over pairs for `chosen` and `rejected`: by the pair's `own` group, by `each_other`
        one, and by the `whole` step; and shares of pairs. None where nothing is known.
    """
    known = [g for g in groups if g.found.coefficients is not None and g.pairs.index]
    found = [
        _together(chunk, meter, record_of, device) for chunk in _chunks(known) if len(chunk) > 1
    ]
    if not found:
        return None
    own, other = torch.cat(found, dim=2) / groups_per_step
    whole = own + (groups_per_step - 1) * other
    return {
        "groups_per_step": groups_per_step,
        "num_pairs": own.shape[1],
        "own": _means(own),
        "each_other": _means(other),
        "whole": _means(whole),
        "share_chosen_falls": _share(whole[0] < 0),
        "share_both_fall": _share((whole < 0).all(dim=0)),
        "share_chosen_falls_by_its_own": _share(own[0] < 0),
    }


def _chunks(groups: Sequence[DiagnosedGroup]) -> list[list[DiagnosedGroup]]:
    """Neighbours that one pass may hold."""
    chunks: list[list[DiagnosedGroup]] = []
    room = 0
    for group in groups:
        layout = group.batch.layout
        num_tokens = sum(layout.response_lengths) + layout.num_slots * layout.num_prompt_tokens
        if not chunks or len(chunks[-1]) == GROUPS_TOGETHER or num_tokens > room:
            chunks.append([])
            room = TOKENS_TOGETHER
        chunks[-1].append(group)
        room -= num_tokens
    return chunks


def _together(
    groups: Sequence[DiagnosedGroup],
    meter: GramMeter,
    record_of: Callable[[int], TokenizedRecord],
    device: torch.device,
) -> Float[Tensor, "2 2 P"]:
    """Of each pair: changes by its own group and by another on average, of chosen and rejected."""
    batch = collate([record_of(group.number) for group in groups]).to(device)
    coefficients = [g.found.coefficients for g in groups if g.found.coefficients is not None]
    influence = influence_of(meter.measure(batch).total, torch.cat(coefficients).double())
    sizes = torch.tensor([len(each) for each in coefficients], device=device)
    owner = torch.arange(len(groups), device=device).repeat_interleave(sizes)
    is_own = owner[:, None] == owner
    own = -influence.masked_fill(~is_own, 0.0).sum(dim=1)
    other = -influence.masked_fill(is_own, 0.0).sum(dim=1) / (len(groups) - 1)
    firsts = (sizes.cumsum(dim=0) - sizes).tolist()
    index = [
        [first + number for number in pair]
        for first, group in zip(firsts, groups, strict=True)
        for pair in group.pairs.index
    ]
    return torch.stack([own, other])[:, torch.tensor(index, device=device).T]


def _means(changes: Float[Tensor, "2 P"]) -> dict[str, float]:
    chosen, rejected = changes.mean(dim=1).tolist()
    return {"chosen": chosen, "rejected": rejected}


def _share(where: Tensor) -> float:
    return float(where.double().mean())
