"""The losses of one optimiser step's micro-batches on one rank, ready for their backward passes."""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prefopt.models.head import TokenSlopes
from prefopt.models.reference import Reference
from prefopt.objectives import Objective
from prefopt.train.metrics import StepSums, group_metrics
from prefopt.train.normalise import GradientNorms, token_factors
from prefopt.train.scoring import Scored, inputs_of, joined, loss_of, score, with_leaves
from prefopt.train.share import StepShare
from prefopt.train.step_record import StepRecord
from prefopt.types import GroupBatch, ObjectiveInputs


class StepLosses:
    """Loss after loss, and the numbers of all of them.

    A group that is larger than a micro-batch goes through two passes. The first, without gradient,
    finds what the loss wants of each token; in the second each piece is a weighted sum of its own
    log-probs, so that no two pieces need to be there at once.
    """

    def __init__(
        self,
        objective: Objective,
        model: nn.Module,
        reference: Reference | None,
        share: StepShare,
        statistics: Float[Tensor, "S C"] | None,
        device: torch.device,
        norms: GradientNorms | None = None,
    ) -> None:
        """Runs the first pass of large groups.

        Args:
            objective: what is trained on.
            model: the policy inside whatever wraps it.
            reference: there if the objective needs one.
            share: this rank's part of the step.
            statistics: of all groups of the step, where the objective couples them.
            device: of the policy.
            norms: with it, gradients of the responses of a group are made equally long.
        """
        self._norms = norms
        self.sums, self.record = StepSums(), StepRecord()
        self._objective, self._model, self._reference = objective, model, reference
        self._share, self._statistics, self._device = share, statistics, device
        self._needs_whole_call = objective.couples_micro_batch or (
            objective.couples_groups and statistics is None
        )
        self._wanted: dict[int, Scored] = {}
        if share.num_first_passes:
            self._first_pass()

    def loss_of(self, number: int) -> Float[Tensor, ""]:
        """One micro-batch's part of the step's loss, with its gradient.

        A piece of a large group has the gradient alone: the group's loss has been counted.
        """
        batch = self._share.micro_batches[number].to(self._device)
        wanted = self._wanted.get(number)
        if wanted is not None:
            return self._piece(batch, wanted)
        factors = None if self._norms is None else token_factors(batch, self._norms.of(batch))

        def slopes_given(reference_logps: Tensor | None) -> TokenSlopes:
            return lambda first, stop, logps: self._slopes(
                batch, first, stop, logps, reference_logps, factors
            )

        is_filler = number >= self._share.num_real
        scored = score(
            self._objective,
            self._model,
            self._reference,
            batch,
            None if self._needs_whole_call else slopes_given,
        )
        if factors is not None and scored["logps"].requires_grad:
            scored["logps"].register_hook(lambda slopes: slopes * factors)
        inputs = inputs_of(self._objective, batch, scored, self._statistics)
        loss = self._counted(inputs, batch, is_filler=is_filler)
        if "surrogate" in scored:
            loss = loss.detach() + scored["surrogate"]
        # A filler keeps ranks in step: its graph is used, its value is not.
        return loss * 0.0 if is_filler else loss

    def _slopes(
        self,
        batch: GroupBatch,
        first: int,
        stop: int,
        logps: Float[Tensor, " n"],
        reference_logps: Float[Tensor, " N"] | None,
        factors: Float[Tensor, " N"] | None,
    ) -> Float[Tensor, " n"]:
        """What the loss wants of the tokens of whole groups, whatever those of others are."""
        everywhere = logps.new_zeros(batch.targets.shape[0])
        everywhere[first:stop] = logps
        leaf = everywhere.requires_grad_()
        scored = {"logps": leaf}
        if reference_logps is not None:
            scored["reference_logps"] = reference_logps
        inputs = inputs_of(self._objective, batch, scored, self._statistics)
        (slopes,) = torch.autograd.grad(
            loss_of(self._objective(inputs), self._share.denominators), leaf
        )
        return slopes[first:stop] if factors is None else (slopes * factors)[first:stop]

    def _counted(
        self, inputs: ObjectiveInputs, batch: GroupBatch, *, is_filler: bool
    ) -> Float[Tensor, ""]:
        """The groups' part of the step's loss, after their numbers are added to the step's."""
        output = self._objective(inputs)
        loss = loss_of(output, self._share.denominators)
        counted = loss.detach() * (0.0 if is_filler else 1.0)
        self.sums.add("loss:sum", counted)
        self.sums.add("non_finite", (~torch.isfinite(counted)).sum())
        self.sums.add_groups(group_metrics(inputs, output), is_filler=is_filler)
        if not is_filler:
            self.record.add(batch.ids, inputs, output)
        return loss

    def _first_pass(self) -> None:
        pieces = [i for group in self._share.large for i in group.pieces]
        scored: dict[int, Scored] = {}
        with torch.no_grad():
            # Another rank may have more pieces, and ranks stay in step.
            for i in [*pieces, *[0] * (self._share.num_first_passes - len(pieces))]:
                batch = self._share.micro_batches[i].to(self._device)
                scored[i] = score(self._objective, self._model, self._reference, batch)
        for group in self._share.large:
            whole, leaves = with_leaves(joined([scored[i] for i in group.pieces]))
            batch = group.batch.to(self._device)
            inputs = inputs_of(self._objective, batch, whole, self._statistics)
            loss = self._counted(inputs, batch, is_filler=False)
            assert next(iter(leaves)) == "logps"
            found = list(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True))
            if self._norms is not None and found[0] is not None:
                parts = [self._share.micro_batches[i].to(self._device) for i in group.pieces]
                norms = torch.cat([self._norms.of(each) for each in parts])
                found[0] = found[0] * token_factors(batch, norms)
            for name, gradient in zip(leaves, found, strict=True):
                ends = torch.tensor([0, *(len(scored[i][name]) for i in group.pieces)]).cumsum(0)
                for i, (start, stop) in zip(group.pieces, pairwise(ends.tolist()), strict=True):
                    wanted = self._wanted.setdefault(i, {})
                    if gradient is not None:
                        wanted[name] = gradient[start:stop]

    def _piece(self, batch: GroupBatch, wanted: Scored) -> Float[Tensor, ""]:
        """Of value 0, with the gradient of the whole group's loss through this piece."""
        logps = wanted.get("logps", torch.zeros(batch.targets.shape, device=self._device))
        scored = score(
            self._objective,
            self._model,
            self._reference,
            batch,
            lambda reference_logps: lambda first, stop, _: logps[first:stop],
        )
        if "surrogate" in scored:
            return scored["surrogate"]
        # All of them, so that every parameter gets a gradient even if it is 0.
        products = [
            (scored[name] * wanted.get(name, 0.0)).sum()
            for name in ("logps", "top_logps", "reference_kl")
            if name in scored
        ]
        loss = torch.stack(products).sum()
        return loss - loss.detach()
