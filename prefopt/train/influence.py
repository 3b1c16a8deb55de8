"""What an objective's gradient does to each response of a group: Gram and coefficients together."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefopt.data.collate import repeat_responses
from prefopt.diagnostics.entanglement import influence_of
from prefopt.diagnostics.gram import Gram, GramMeter, without_dropout
from prefopt.models.reference import Reference
from prefopt.objectives import Objective
from prefopt.train.normalise import token_factors
from prefopt.train.scoring import Scored, inputs_of, loss_of, score
from prefopt.types import GroupBatch


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupInfluence:
    """Of one group's K responses."""

    gram: Gram
    logps: Float[Tensor, " K"]
    """Summed log-probs, without gradient."""
    coefficients: Float[Tensor, " K"] | None
    """Derivative of the loss by each; None if the objective reads single tokens, or it is not
    known."""
    influence: Float[Tensor, "K K"] | None
    """As in prefopt.diagnostics.entanglement; None if it is not known."""


def why_no_influence(objective: Objective) -> str | None:
    """Why nothing can be said of what the objective does to a group, as a clause; usually None."""
    if objective.num_top_logits or objective.needs_reference_distribution:
        return f"{objective.name} also learns from whole distributions, not from log-probs alone"
    if objective.couples_micro_batch:
        return f"what {objective.name} does to a group depends on its micro-batch"
    return None


class InfluenceMeter:
    """Measures groups, one after the other, for one objective and one policy."""

    def __init__(
        self,
        objective: Objective,
        meter: GramMeter,
        reference: Reference | None,
        policy: nn.Module,
        *,
        normalises: bool = False,
    ) -> None:
        """Takes an objective and what its log-probs come from.

        Args:
            objective: what is trained on.
            meter: of the policy.
            reference: there if the objective needs one.
            policy: the policy inside whatever wraps it.
            normalises: whether gradients of a group are made equally long before a step.
        """
        self._objective, self._normalises = objective, normalises
        self._is_known = why_no_influence(objective) is None
        self._meter, self._reference, self._policy = meter, reference, policy

    @property
    def model(self) -> nn.Module:
        """What is measured, without wrapper."""
        return self._meter.model

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those that are trained."""
        return [p for p in self._meter.model.parameters() if p.requires_grad]

    def measure(
        self,
        batch: GroupBatch,
        denominators: Mapping[str, float],
        step_statistics: Float[Tensor, "S C"] | None = None,
    ) -> GroupInfluence:
        """Gram and influence of one group.

        Args:
            batch: the group alone, on the device, with what the objective reads of tokens.
            denominators: of the terms of the loss.
            step_statistics: of all groups of the step, where the objective couples them.
        """
        gram = self._meter.measure(batch)
        logps = batch.sum_over_tokens(gram.token_logps)[0]
        if not self._is_known:
            return GroupInfluence(gram=gram, logps=logps, coefficients=None, influence=None)
        slopes = self._slopes(batch, gram, denominators, step_statistics)
        if self._normalises:
            slopes = slopes * token_factors(batch, _lengths(gram))
        # By the objective and not by what it says of this group: ranks run as many passes.
        if self._objective.needs_tokens:
            influence = self._of_tokens(batch, slopes)
            return GroupInfluence(gram=gram, logps=logps, coefficients=None, influence=influence)
        coefficients = slopes[_first_tokens(batch)]
        influence = influence_of(gram.total, coefficients.double())
        return GroupInfluence(
            gram=gram, logps=logps, coefficients=coefficients, influence=influence
        )

    def logps(self, batch: GroupBatch) -> Float[Tensor, " K"]:
        """Summed log-probs of one group as they are now, without gradient."""
        return batch.sum_over_tokens(self._meter.token_logps(batch))[0]

    def gradients(
        self, batch: GroupBatch, denominators: Mapping[str, float]
    ) -> dict[nn.Parameter, Tensor]:
        """The loss gradient of one group by an ordinary backward pass, for trained parameters."""
        with without_dropout(self._meter.model), torch.enable_grad():
            scored = score(self._objective, self._policy, self._reference, batch)
            if self._normalises:
                factors = token_factors(batch, _lengths(self._meter.measure(batch)))
                scored["logps"].register_hook(lambda slopes: slopes * factors)
            inputs = inputs_of(self._objective, batch, scored, None)
            loss = loss_of(self._objective(inputs), denominators)
        found = torch.autograd.grad(
            loss, self.parameters, allow_unused=True, materialize_grads=True
        )
        return dict(zip(self.parameters, found, strict=True))

    def _slopes(
        self,
        batch: GroupBatch,
        gram: Gram,
        denominators: Mapping[str, float],
        step_statistics: Float[Tensor, "S C"] | None,
    ) -> Float[Tensor, " N"]:
        """Derivative of the loss by each token's log-prob."""
        leaf = gram.token_logps.clone().requires_grad_()
        scored: Scored = {"logps": leaf}
        if self._reference is not None:
            scored["reference_logps"] = self._reference.token_logps(batch, self._policy)
        with torch.enable_grad():
            inputs = inputs_of(self._objective, batch, scored, step_statistics)
            loss = loss_of(self._objective(inputs), denominators)
        (slopes,) = torch.autograd.grad(loss, [leaf], materialize_grads=True, allow_unused=True)
        return slopes

    def _of_tokens(self, batch: GroupBatch, slopes: Float[Tensor, " N"]) -> Float[Tensor, "K K"]:
        """Products of plain gradients with those of responses whose tokens count unequally."""
        num = batch.layout.num_slots
        both = repeat_responses(batch)
        found = self._meter.measure(both, torch.cat([torch.ones_like(slopes), slopes]))
        return found.total[:num, num:]


def _lengths(gram: Gram) -> Float[Tensor, " K"]:
    return gram.total.diagonal().sqrt().to(gram.token_logps.dtype)


def _first_tokens(batch: GroupBatch) -> Tensor:
    lengths = batch.num_tokens[0]
    return lengths.cumsum(dim=0) - lengths
