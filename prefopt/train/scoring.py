"""From a micro-batch to what an objective sees: log-probs, and what it asks for of tokens."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefopt.models.head import ReferenceDistribution, Statistics, TokenSlopes
from prefopt.models.layout import score_tokens
from prefopt.models.reference import Reference
from prefopt.objectives import Objective
from prefopt.train.share import LargeGroup, StepShare
from prefopt.types import GroupBatch, ObjectiveInputs, ObjectiveOutput, TokenInputs

Scored = dict[str, Tensor]
"""What models say of a micro-batch's tokens: `logps` and `reference_logps` of the N scored ones,
`top_logps`, `top_ids` and `reference_kl` of the M whose statistics are asked for. Where `surrogate`
is there, the gradient is in this scalar and not in `logps`."""

SlopesGiven = Callable[[Float[Tensor, " N"] | None], TokenSlopes]
"""What the loss wants of each token, once the reference's log-probs are known."""

_WITH_GRADIENT = ("logps", "top_logps", "reference_kl")


def score(
    objective: Objective,
    model: nn.Module,
    reference: Reference | None,
    batch: GroupBatch,
    slopes_given: SlopesGiven | None = None,
) -> Scored:
    """One forward pass of the policy, and one of a live reference.

    Args:
        objective: its traits say what is computed.
        model: the policy inside whatever wraps it.
        reference: there if the objective needs one.
        batch: the micro-batch, on the policy's device.
        slopes_given: with it, a trained output projection may compute its gradient in this pass.
    """
    reference_logps, distribution = _of_reference(objective, model, reference, batch)
    if batch.statistic_tokens is None:
        slopes = None if slopes_given is None else slopes_given(reference_logps)
        found = score_tokens(model, batch, slopes=slopes)
        scored = found if isinstance(found, dict) else {"logps": found}
    else:
        assert batch.plain_tokens is not None
        statistics = Statistics(
            tokens=batch.statistic_tokens,
            others=batch.plain_tokens,
            num_top=objective.num_top_logits,
            reference=distribution,
        )
        scored = score_tokens(model, batch, statistics=statistics)
    assert scored["logps"].dtype in (torch.float32, torch.float64), "a wrapper rounds log-probs"
    return scored if reference_logps is None else {**scored, "reference_logps": reference_logps}


def inputs_of(
    objective: Objective,
    batch: GroupBatch,
    scored: Scored,
    step_statistics: Float[Tensor, "S C"] | None,
) -> ObjectiveInputs:
    """What the objective sees of a micro-batch, or of a whole large group, that was scored."""
    reference_logps = scored.get("reference_logps")
    tokens = None
    if objective.needs_tokens:
        tokens = _token_inputs(batch, scored)
    return ObjectiveInputs(
        policy_logps=batch.sum_over_tokens(scored["logps"]),
        reference_logps=None if reference_logps is None else batch.sum_over_tokens(reference_logps),
        num_tokens=batch.num_tokens,
        scores=batch.scores,
        where=batch.where,
        tokens=tokens,
        step_statistics=step_statistics,
    )


def loss_of(output: ObjectiveOutput, denominators: Mapping[str, float]) -> Float[Tensor, ""]:
    """Some groups' part of the loss of a step whose terms have such denominators."""
    loss = output.losses.sum() * 0.0
    for name, term in output.all_terms().items():
        denominator = denominators[name]
        if denominator > 0:
            loss = loss + term.coefficient / denominator * term.losses.sum()
    return loss


def joined(pieces: Sequence[Scored]) -> Scored:
    """A large group from its pieces, in the order of its responses."""
    return {name: torch.cat([each[name] for each in pieces]) for name in pieces[0]}


def with_leaves(scored: Scored) -> tuple[Scored, dict[str, Tensor]]:
    """The same with what has a gradient cut off from whatever computed it, and that by itself."""
    leaves = {
        name: scored[name].detach().requires_grad_() for name in _WITH_GRADIENT if name in scored
    }
    return {**scored, **leaves}, leaves


def scored_without_gradient(
    objective: Objective,
    model: nn.Module,
    reference: Reference | None,
    batches: Sequence[GroupBatch],
    large: Sequence[LargeGroup],
    device: torch.device,
    step_statistics: Float[Tensor, "S C"] | None = None,
) -> list[tuple[int | LargeGroup, ObjectiveInputs]]:
    """What the objective sees of each micro-batch, by its number, and of each large group.

    One forward pass per micro-batch, in their order; large groups come after all of them.
    """
    pieces: dict[int, Scored] = {i: {} for each in large for i in each.pieces}
    found: list[tuple[int | LargeGroup, ObjectiveInputs]] = []
    with torch.no_grad():
        for i, batch in enumerate(batches):
            moved = batch.to(device)
            scored = score(objective, model, reference, moved)
            if i in pieces:
                pieces[i] = scored
            else:
                found.append((i, inputs_of(objective, moved, scored, step_statistics)))
        for each in large:
            whole = joined([pieces[i] for i in each.pieces])
            moved = each.batch.to(device)
            found.append((each, inputs_of(objective, moved, whole, step_statistics)))
    return found


def _of_reference(
    objective: Objective, model: nn.Module, reference: Reference | None, batch: GroupBatch
) -> tuple[Float[Tensor, " N"] | None, ReferenceDistribution | None]:
    if reference is None:
        return None, None
    if objective.needs_reference_distribution:
        return reference.distribution(batch, model)
    return reference.token_logps(batch, model), None


def _token_inputs(batch: GroupBatch, scored: Scored) -> TokenInputs:
    def at_all_tokens(name: str) -> Tensor | None:
        """Statistics of some tokens, 0 at the others."""
        values = scored.get(name)
        if values is None:
            return None
        assert batch.statistic_tokens is not None
        everywhere = values.new_zeros(batch.targets.shape[0], *values.shape[1:])
        return everywhere.index_copy(0, batch.statistic_tokens, values)

    return TokenInputs(
        policy_logps=scored["logps"],
        reference_logps=scored.get("reference_logps"),
        response=batch.response_of_token,
        labels=batch.targets,
        weights=batch.token_weights,
        top_logps=at_all_tokens("top_logps"),
        top_ids=at_all_tokens("top_ids"),
        reference_kl=at_all_tokens("reference_kl"),
        noise=batch.noise,
        differs=batch.differs,
    )


def statistics_of(
    objective: Objective,
    model: nn.Module,
    reference: Reference | None,
    share: StepShare,
    device: torch.device,
) -> Float[Tensor, "S C"]:
    """A coupled objective's statistic of this rank's groups of a step, 0 in the rows of others.

    The sum over ranks is that of the whole step: every row is 0 in all summands but one, so that no
    split changes a bit of it.
    """
    summands = []
    found = scored_without_gradient(
        objective, model, reference, share.statistic_batches, share.statistic_large, device
    )
    for which, inputs in found:
        if isinstance(which, LargeGroup):
            positions: tuple[int, ...] = (which.position,)
        else:
            positions = share.statistic_positions[which]
        rows = objective.statistic(inputs)
        placed = rows.new_zeros(share.num_groups, rows.shape[1])
        if positions:
            placed = placed.index_copy(0, torch.tensor(positions, device=device), rows)
        summands.append(placed)
    return torch.stack(summands).sum(dim=0)
