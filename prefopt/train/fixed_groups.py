"""A few fixed groups, scored again and again while a run trains."""

import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor, nn

from prefopt.diagnostics.ranking import HeldOut
from prefopt.models.layout import token_logps
from prefopt.models.reference import Reference
from prefopt.objectives import Objective
from prefopt.ops.pairs import preferred_pairs
from prefopt.train.scoring import inputs_of, score
from prefopt.train.share import facts_of
from prefopt.train.steps import StepDataset
from prefopt.types import GroupBatch


class FixedGroups:
    """The first groups of a data set's plan, shared among ranks."""

    def __init__(self, dataset: StepDataset, num_groups: int) -> None:
        """Takes a rank's data set and how many groups to look at."""
        self._dataset = dataset
        numbers = dataset.plan.groups(0, 0)[:num_groups]
        self._numbers: list[int] = numbers.tolist()
        self._facts = facts_of(dataset.store, numbers)

    @property
    def shape(self) -> tuple[int, int]:
        """G and K."""
        num_groups, num_slots = self._facts.where.shape
        return num_groups, num_slots

    @property
    def num_pairs(self) -> int:
        """Pairs that scores tell apart."""
        return int(preferred_pairs(self._facts.scores, self._facts.where).sum())

    def score(
        self,
        objective: Objective | None,
        model: nn.Module,
        reference: Reference | None,
        accelerator: Accelerator,
        start_logps: Float[Tensor, "G K"] | None,
    ) -> HeldOut:
        """What models say now, on the host and the same on all ranks.

        Args:
            objective: gives rewards; None where nothing does.
            model: the policy inside whatever wraps it.
            reference: there if the objective needs one.
            accelerator: adds up what ranks have.
            start_logps: what the policy said when the run began, if it is known.
        """
        device = accelerator.device
        # Policy, reference, rewards; each row is 0 on all ranks but one.
        columns = torch.zeros(3, *self.shape, dtype=torch.float64, device=device)
        rank, num_ranks = self._dataset.rank, self._dataset.num_ranks
        was_training = model.training
        model.eval()
        for first in range(0, len(self._numbers), num_ranks):
            is_real = first + rank < len(self._numbers)
            # All ranks take part in every pass.
            row = first + rank if is_real else 0
            batch = self._dataset.group(self._numbers[row]).to(device)
            with torch.no_grad():
                found = _numbers_of(objective, model, reference, batch)
            if is_real:
                for column, values in zip(columns, found, strict=True):
                    if values is not None:
                        column[row, : values.shape[1]] = values[0]
        model.train(was_training)
        policy, of_reference, rewards = accelerator.reduce(columns, reduction="sum").cpu()
        return HeldOut(
            policy_logps=policy,
            start_logps=start_logps,
            reference_logps=None if reference is None else of_reference,
            num_tokens=self._facts.num_tokens,
            scores=self._facts.scores,
            where=self._facts.where,
            rewards=None if objective is None else rewards,
        )


def _numbers_of(
    objective: Objective | None, model: nn.Module, reference: Reference | None, batch: GroupBatch
) -> list[Tensor | None]:
    """Log-probs of policy and reference, and rewards; None for what is not known."""
    if objective is None:
        known = None if reference is None else reference.token_logps(batch, model)
        of_reference = None if known is None else batch.sum_over_tokens(known)
        return [batch.sum_over_tokens(token_logps(model, batch)), of_reference, None]
    inputs = inputs_of(objective, batch, score(objective, model, reference, batch), None)
    return [inputs.policy_logps, inputs.reference_logps, objective(inputs).rewards]


def reward_per_nat(held_out: HeldOut) -> float | None:
    """Beta, where the objective's reward is beta times the log-ratio of policy and reference.

    None if it is anything else, or policy and reference still agree.
    """
    if held_out.reference_logps is None or held_out.rewards is None:
        return None
    ratios = (held_out.policy_logps - held_out.reference_logps)[held_out.where]
    rewards = held_out.rewards[held_out.where]
    size = ratios.square().sum()
    if size == 0:
        return None
    beta = (ratios * rewards).sum() / size
    is_exact = torch.allclose(rewards, beta * ratios, rtol=1e-4, atol=1e-5 * float(beta.abs()))
    return float(beta) if is_exact and beta > 0 else None
