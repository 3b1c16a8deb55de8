"""Builders of inputs, and the few ways in which tests look at an objective."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from prefopt.objectives import Objective
from prefopt.types import ObjectiveInputs

GOLDEN = Path(__file__).parents[1] / "golden"


def inputs_of(
    policy: Sequence[Sequence[float]],
    reference: Sequence[Sequence[float]] | None,
    scores: Sequence[Sequence[float]],
    *,
    num_tokens: Sequence[Sequence[int]] | None = None,
    where: Sequence[Sequence[bool]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> ObjectiveInputs:
    """Inputs from numbers; one token per response and every slot in use unless said otherwise."""
    policy_logps = torch.tensor(policy, dtype=dtype, requires_grad=True)
    ones = torch.ones_like(policy_logps)
    return ObjectiveInputs(
        policy_logps=policy_logps,
        reference_logps=None if reference is None else torch.tensor(reference, dtype=dtype),
        num_tokens=ones.long() if num_tokens is None else torch.tensor(num_tokens),
        scores=torch.tensor(scores, dtype=dtype),
        where=ones.bool() if where is None else torch.tensor(where),
    )


def random_inputs(
    needs: str, *, seed: int = 0, num_groups: int = 6, num_slots: int = 4
) -> ObjectiveInputs:
    """Groups of 1 to K responses, some of which tie, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> Tensor:
        unit = torch.rand(num_groups, num_slots, generator=generator, dtype=torch.float64)
        return low + (high - low) * unit

    num_responses = torch.arange(num_groups) % num_slots + 1
    where = torch.arange(num_slots) < num_responses.unsqueeze(1)
    # Few values, so that many responses tie.
    scores = draw(0, 2).floor() if needs == "labels" else draw(0, 6).floor() / 4
    return ObjectiveInputs(
        policy_logps=draw(-60, -5).requires_grad_(),
        reference_logps=draw(-60, -5),
        num_tokens=torch.where(where, draw(1, 30).long(), 0),
        scores=torch.where(where, scores, 0.0),
        where=where,
    )


def losses_and_gradient(objective: Objective, inputs: ObjectiveInputs) -> tuple[Tensor, Tensor]:
    """Losses [G] and the gradient of their sum with respect to the policy's log-probs [G K]."""
    policy_logps = inputs.policy_logps.detach().clone().requires_grad_()
    losses = objective(replace(inputs, policy_logps=policy_logps)).losses
    (gradient,) = torch.autograd.grad(losses.sum(), policy_logps)
    return losses.detach(), gradient


def step_loss(objective: Objective, micro_batches: Sequence[ObjectiveInputs]) -> Tensor:
    """The loss of a whole optimiser step, as the trainer puts it together."""
    outputs = [objective(inputs) for inputs in micro_batches]
    loss = outputs[0].losses.new_zeros(())
    for name in outputs[0].all_terms():
        terms = [output.all_terms()[name] for output in outputs]
        weight = torch.stack([term.weight.sum() for term in terms]).sum()
        if weight > 0:
            total = torch.stack([term.losses.sum() for term in terms]).sum()
            loss = loss + terms[0].coefficient * total / weight
    return loss


def one_by_one(inputs: ObjectiveInputs) -> list[ObjectiveInputs]:
    """G calls of one group each."""
    return [select(inputs, slice(g, g + 1)) for g in range(inputs.where.shape[0])]


def select(inputs: ObjectiveInputs, groups: slice | Tensor) -> ObjectiveInputs:
    """Some of the groups."""
    reference = inputs.reference_logps
    return ObjectiveInputs(
        policy_logps=inputs.policy_logps[groups],
        reference_logps=None if reference is None else reference[groups],
        num_tokens=inputs.num_tokens[groups],
        scores=inputs.scores[groups],
        where=inputs.where[groups],
    )


def cast(inputs: ObjectiveInputs, dtype: torch.dtype) -> ObjectiveInputs:
    """The same numbers in another floating-point type."""
    reference = inputs.reference_logps
    return replace(
        inputs,
        policy_logps=inputs.policy_logps.detach().to(dtype).requires_grad_(),
        reference_logps=None if reference is None else reference.to(dtype),
        scores=inputs.scores.to(dtype),
    )


def golden_cases() -> list[dict[str, object]]:
    """All recorded cases of all files, whether or not their objective exists yet."""
    return [
        {"file": path.name, **case}
        for path in sorted(GOLDEN.glob("*.json"))
        for case in json.loads(path.read_text(encoding="utf-8"))
    ]


def gradients_are_exact(objective: Objective, inputs: ObjectiveInputs) -> bool:
    """Whether autograd agrees with finite differences in float64."""

    def losses(policy_logps: Tensor) -> Tensor:
        return objective(replace(inputs, policy_logps=policy_logps)).losses

    return torch.autograd.gradcheck(losses, (inputs.policy_logps,))
