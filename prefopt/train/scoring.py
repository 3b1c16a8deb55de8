"""From a micro-batch to what an objective sees: log-probs, and what it asks for of tokens."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefopt.models.head import ReferenceDistribution, Statistics
from prefopt.models.layout import score_tokens
from prefopt.models.reference import Reference
from prefopt.objectives import Objective
from prefopt.train.steps import StepShare
from prefopt.types import GroupBatch, ObjectiveInputs, TokenInputs


def score_batch(
    objective: Objective,
    model: nn.Module,
    reference: Reference | None,
    batch: GroupBatch,
    step_statistics: Float[Tensor, "S C"] | None = None,
) -> ObjectiveInputs:
    """What the objective sees of a micro-batch.

    Args:
        objective: its traits say what is computed.
        model: the policy inside whatever wraps it.
        reference: there if the objective needs one.
        batch: the micro-batch, on the policy's device.
        step_statistics: of all groups of the step, where the objective couples them.
    """
    reference_logps, distribution = _of_reference(objective, model, reference, batch)
    if batch.statistic_tokens is None:
        scored = {"logps": score_tokens(model, batch)}
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
    tokens = None
    if objective.needs_tokens:
        tokens = _token_inputs(batch, scored, reference_logps)
    return ObjectiveInputs(
        policy_logps=batch.sum_over_tokens(scored["logps"]),
        reference_logps=None if reference_logps is None else batch.sum_over_tokens(reference_logps),
        num_tokens=batch.num_tokens,
        scores=batch.scores,
        where=batch.where,
        tokens=tokens,
        step_statistics=step_statistics,
    )


def _of_reference(
    objective: Objective, model: nn.Module, reference: Reference | None, batch: GroupBatch
) -> tuple[Float[Tensor, " N"] | None, ReferenceDistribution | None]:
    if reference is None:
        return None, None
    if objective.needs_reference_distribution:
        return reference.distribution(batch, model)
    return reference.token_logps(batch, model), None


def _token_inputs(
    batch: GroupBatch,
    scored: dict[str, Tensor],
    reference_logps: Float[Tensor, " N"] | None,
) -> TokenInputs:
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
        reference_logps=reference_logps,
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
    for micro_batch, positions in zip(
        share.statistic_batches, share.statistic_positions, strict=True
    ):
        with torch.no_grad():
            inputs = score_batch(objective, model, reference, micro_batch.to(device))
            rows = objective.statistic(inputs)
        placed = rows.new_zeros(share.num_groups, rows.shape[1])
        if positions:
            placed = placed.index_copy(0, torch.tensor(positions, device=device), rows)
        summands.append(placed)
    return torch.stack(summands).sum(dim=0)
