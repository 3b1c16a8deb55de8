"""Builders of inputs, and the few ways in which tests look at an objective."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor

from prefopt.objectives import Objective
from prefopt.types import ObjectiveInputs, TokenInputs

GOLDEN = Path(__file__).parents[1] / "golden"
VOCABULARY = 23


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


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Random inputs, as a function of the one tensor that all that has a gradient comes from.

    That tensor is the policy's log-probs [G K], or for an objective that reads single tokens its
    logits [N V].
    """

    leaf: Tensor
    inputs_from: Callable[[Tensor], ObjectiveInputs]

    @property
    def inputs(self) -> ObjectiveInputs:
        return self.inputs_from(self.leaf)


def draw(objective: Objective, *, seed: int = 0, num_groups: int = 6, num_slots: int = 4) -> Draw:
    """Groups of 1 to K responses, some of which tie, in float64."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        unit = torch.rand(num_groups, num_slots, generator=generator, dtype=torch.float64)
        return low + (high - low) * unit

    num_responses = torch.arange(num_groups) % num_slots + 1
    where = torch.arange(num_slots) < num_responses.unsqueeze(1)
    return draw_for(
        objective,
        # Few values, so that many responses tie.
        scores=torch.where(where, scores_for(objective, uniform(0, 1)), 0.0),
        where=where,
        num_tokens=torch.where(where, uniform(1, 12).long(), 0),
        seed=seed,
    )


def scores_for(objective: Objective, unit: Tensor) -> Tensor:
    """Scores that the objective reads, a few different ones, from numbers in [0, 1)."""
    if objective.needs == "labels":
        return (2 * unit).floor()
    low, high = objective.score_range or (0.0, 1.25)
    return low + (high - low) * (6 * unit).floor() / 5


def draw_for(
    objective: Objective,
    *,
    scores: Tensor,
    where: Tensor,
    num_tokens: Tensor,
    seed: int = 0,
    at_reference: bool = False,
    policy_scale: float = 1.0,
    reference_scale: float = 1.0,
    dtype: torch.dtype = torch.float64,
) -> Draw:
    """Random log-probs for given data.

    Args:
        objective: decides whether there are tokens.
        scores, where, num_tokens: the data, [G K].
        seed: of the draws.
        at_reference: policy and reference are the same.
        policy_scale, reference_scale: factors of the log-probs, or of the logits.
        dtype: of all that is not an integer.
    """
    generator = torch.Generator().manual_seed(seed + 1000)
    lengths = num_tokens.masked_fill(~where, 0).flatten()
    shape = (int(lengths.sum()), VOCABULARY) if objective.needs_tokens else tuple(where.shape)

    def numbers(scale: float) -> Tensor:
        unit = torch.rand(shape, generator=generator, dtype=torch.float64)
        values = 6 * unit - 3 if objective.needs_tokens else -60 + 55 * unit
        return (scale * values).to(dtype)

    policy, reference = numbers(policy_scale), numbers(reference_scale)
    reference = policy.clone() if at_reference else reference
    scores = scores.to(dtype)
    response = torch.repeat_interleave(torch.arange(where.numel()), lengths)
    labels = torch.randint(VOCABULARY, response.shape, generator=generator)
    weights = torch.rand(response.shape, generator=generator, dtype=torch.float64)
    noise = torch.rand(response.shape, generator=generator, dtype=torch.float64)
    differs = torch.rand(response.shape, generator=generator) < 0.5

    data = {"num_tokens": num_tokens, "scores": scores, "where": where}

    def from_logps(leaf: Tensor) -> ObjectiveInputs:
        return ObjectiveInputs(policy_logps=leaf, reference_logps=reference, **data)

    def from_logits(leaf: Tensor) -> ObjectiveInputs:
        distribution, base = leaf.log_softmax(dim=1), reference.log_softmax(dim=1)
        top = leaf.topk(max(objective.num_top_logits, 1), dim=1).indices
        tokens = TokenInputs(
            policy_logps=distribution.gather(1, labels.unsqueeze(1)).squeeze(1),
            reference_logps=base.gather(1, labels.unsqueeze(1)).squeeze(1),
            response=response,
            labels=labels,
            weights=weights.to(dtype),
            top_logps=distribution.gather(1, top),
            top_ids=top,
            reference_kl=(base.exp() * (base - distribution)).sum(dim=1),
            noise=noise.to(dtype),
            differs=differs,
        )
        return ObjectiveInputs(
            policy_logps=_sums(tokens.policy_logps, response, where),
            reference_logps=_sums(tokens.reference_logps, response, where),
            tokens=tokens,
            **data,
        )

    return Draw(
        leaf=policy.requires_grad_(),
        inputs_from=from_logits if objective.needs_tokens else from_logps,
    )


def _sums(per_token: Tensor, response: Tensor, where: Tensor) -> Tensor:
    return per_token.new_zeros(where.numel()).index_add(0, response, per_token).view_as(where)


def losses_and_gradient(objective: Objective, inputs: ObjectiveInputs) -> tuple[Tensor, Tensor]:
    """Losses [G] and the gradient of their sum with respect to the policy's log-probs [G K]."""
    policy_logps = inputs.policy_logps.detach().clone().requires_grad_()
    losses = objective(replace(inputs, policy_logps=policy_logps)).losses
    (gradient,) = torch.autograd.grad(losses.sum(), policy_logps)
    return losses.detach(), gradient


def loss_gradient(loss: Tensor, leaf: Tensor) -> Tensor:
    """Gradient of a sum of losses, 0 where the loss does not depend on the tensor."""
    (gradient,) = torch.autograd.grad(loss.sum(), leaf, retain_graph=True, materialize_grads=True)
    return gradient


def step_loss(
    objective: Objective,
    micro_batches: Sequence[ObjectiveInputs],
    mismatched: Sequence[ObjectiveInputs] | None = None,
) -> Tensor:
    """The loss of a whole optimiser step, as the trainer puts it together.

    Args:
        objective: any.
        micro_batches: what the step is split into.
        mismatched: what statistics are taken of, where the objective wants it so.
    """
    if objective.mismatches_responses:
        assert mismatched is not None
        micro_batches = _with_statistics(objective, micro_batches, mismatched)
    elif objective.couples_groups and len(micro_batches) > 1:
        micro_batches = _with_statistics(objective, micro_batches, micro_batches)
    outputs = [objective(inputs) for inputs in micro_batches]
    loss = outputs[0].losses.new_zeros(())
    for name in outputs[0].all_terms():
        terms = [output.all_terms()[name] for output in outputs]
        weight = torch.stack([term.weight.sum() for term in terms]).sum()
        if weight > 0:
            total = torch.stack([term.losses.sum() for term in terms]).sum()
            loss = loss + terms[0].coefficient * total / weight
    return loss


def _with_statistics(
    objective: Objective,
    micro_batches: Sequence[ObjectiveInputs],
    read: Sequence[ObjectiveInputs],
) -> list[ObjectiveInputs]:
    with torch.no_grad():
        statistics = torch.cat([objective.statistic(inputs) for inputs in read])
    return [replace(inputs, step_statistics=statistics) for inputs in micro_batches]


def one_by_one(inputs: ObjectiveInputs) -> list[ObjectiveInputs]:
    """G calls of one group each."""
    return [select(inputs, [g]) for g in range(inputs.where.shape[0])]


def select(inputs: ObjectiveInputs, groups: Sequence[int]) -> ObjectiveInputs:
    """Some of the groups, in this order."""
    num_slots = inputs.where.shape[1]
    slots = [g * num_slots + k for g in groups for k in range(num_slots)]
    return _take(inputs, slots, (len(groups), num_slots))


def permute(inputs: ObjectiveInputs, order: Sequence[int]) -> ObjectiveInputs:
    """The responses of every group in another order: slot k is what slot order[k] was."""
    num_groups, num_slots = inputs.where.shape
    slots = [g * num_slots + k for g in range(num_groups) for k in order]
    return _take(inputs, slots, (num_groups, num_slots))


def _take(inputs: ObjectiveInputs, slots: Sequence[int], shape: tuple[int, int]) -> ObjectiveInputs:
    """Inputs whose slot i is what slot slots[i] was."""

    def taken(values: Tensor | None) -> Tensor | None:
        return None if values is None else values.flatten()[list(slots)].view(shape)

    new_slot = {old: new for new, old in enumerate(slots)}
    return ObjectiveInputs(
        policy_logps=taken(inputs.policy_logps),
        reference_logps=taken(inputs.reference_logps),
        num_tokens=taken(inputs.num_tokens),
        scores=taken(inputs.scores),
        where=taken(inputs.where),
        tokens=_moved(inputs.tokens, new_slot),
        step_statistics=inputs.step_statistics,
    )


def _moved(tokens: TokenInputs | None, new_slot: dict[int, int]) -> TokenInputs | None:
    """The tokens of some slots, in the order of their new numbers."""
    if tokens is None:
        return None
    moved = torch.tensor([new_slot.get(slot, -1) for slot in tokens.response.tolist()]).long()
    order = torch.argsort(moved, stable=True)
    order = order[moved[order] >= 0]
    values = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    taken = {name: None if value is None else value[order] for name, value in values.items()}
    return TokenInputs(**{**taken, "response": moved[order]})


def pad(inputs: ObjectiveInputs, absurd: float) -> ObjectiveInputs:
    """Two more slots before and after those of every group, absurd numbers in all unused ones."""
    num_groups, num_slots = inputs.where.shape
    unused = torch.full((num_groups, 2), absurd, dtype=torch.float64)
    where = torch.cat([unused.bool() & False, inputs.where, unused.bool() & False], dim=1)

    def padded(values: Tensor, filler: float) -> Tensor:
        return torch.where(where, torch.nn.functional.pad(values, (2, 2)), filler)

    new_slot = {
        g * num_slots + k: g * (num_slots + 4) + k + 2
        for g in range(num_groups)
        for k in range(num_slots)
    }
    return ObjectiveInputs(
        policy_logps=padded(inputs.policy_logps, absurd),
        reference_logps=padded(inputs.reference_logps, -absurd),
        num_tokens=padded(inputs.num_tokens, -7),
        scores=padded(inputs.scores, 50.0),
        where=where,
        tokens=_moved(inputs.tokens, new_slot),
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
    """All recorded cases of [G, K] log-probs of all files, also of objectives not there yet."""
    return [
        {"file": path.name, **case}
        for path in sorted(GOLDEN.glob("*.json"))
        for case in json.loads(path.read_text(encoding="utf-8"))
        if "objective" in case
    ]


def gradients_are_exact(objective: Objective, drawn: Draw) -> bool:
    """Whether autograd agrees with finite differences in float64.

    Of hundreds of logits only random projections of the Jacobian are compared, which finds any
    entry that is wrong.
    """
    return torch.autograd.gradcheck(
        lambda leaf: objective(drawn.inputs_from(leaf)).losses,
        (drawn.leaf,),
        fast_mode=objective.needs_tokens,
    )
