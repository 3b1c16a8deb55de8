"""First-order predictions against what one small step of gradient descent does to log-probs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefopt.diagnostics.entanglement import predicted_changes
from prefopt.train.influence import GroupInfluence, InfluenceMeter
from prefopt.types import GroupBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """Predictions against what happened, over all responses, for several learning rates."""

    learning_rates: list[float]
    relative_errors: list[float]
    """|realised - predicted| / |predicted|, norms over all responses."""
    sign_agreement: list[float]
    """Share of the responses whose log-prob went where it was predicted to go."""
    num_responses: int
    realised: list[list[float]]
    """Of each group, by the smallest rate: the changes of its log-probs, in nats."""


def verify(
    meter: InfluenceMeter,
    measured: Sequence[tuple[GroupBatch, GroupInfluence]],
    denominators: Mapping[str, float],
    learning_rates: Sequence[float],
) -> Verification:
    """Take a step of plain gradient descent on each group alone, look, and take it back.

    The gradient is that of an ordinary backward pass, so that nothing of a Gram is in it. Weights
    are the same bits afterwards. Responses that are predicted not to move at all do not count.

    Args:
        meter: of the policy and its objective.
        measured: groups and what was measured of them.
        denominators: of the terms of the loss, as they were measured.
        learning_rates: of the steps, the smallest last.
    """
    predicted, realised, of_groups = [], [], []
    for batch, found in measured:
        assert found.influence is not None
        change = predicted_changes(found.influence)
        is_moved = change != 0
        gradients = meter.gradients(batch, denominators)
        before = meter.logps(batch)
        after = [_after_step(meter, batch, gradients, rate) - before for rate in learning_rates]
        of_groups.append(after[-1].tolist())
        predicted.append(change[is_moved])
        realised.append(torch.stack(after).double()[:, is_moved])
    expected = torch.cat(predicted)
    rates = torch.tensor(learning_rates, dtype=torch.float64, device=expected.device)[:, None]
    errors = torch.cat(realised, dim=1) - rates * expected
    agrees = torch.cat(realised, dim=1).sign() == expected.sign()
    return Verification(
        learning_rates=list(learning_rates),
        relative_errors=(errors.norm(dim=1) / (rates[:, 0] * expected.norm())).tolist(),
        sign_agreement=agrees.double().mean(dim=1).tolist(),
        num_responses=len(expected),
        realised=of_groups,
    )


def small_rates(
    measured: Sequence[GroupInfluence], sizes: Sequence[float] = (0.3, 0.1, 0.03)
) -> list[float]:
    """Learning rates at which the median predicted change of a log-prob has such sizes, in nats."""
    changes = torch.cat(
        [predicted_changes(each.influence) for each in measured if each.influence is not None]
    )
    median = float(changes[changes != 0].abs().median())
    return [size / median for size in sizes]


def _after_step(
    meter: InfluenceMeter,
    batch: GroupBatch,
    gradients: dict[nn.Parameter, Tensor],
    learning_rate: float,
) -> Float[Tensor, " K"]:
    before = {parameter: parameter.detach().clone() for parameter in gradients}
    with torch.no_grad():
        for parameter, gradient in gradients.items():
            parameter.sub_(learning_rate * gradient)
        logps = meter.logps(batch)
        for parameter, value in before.items():
            parameter.copy_(value)
    return logps
