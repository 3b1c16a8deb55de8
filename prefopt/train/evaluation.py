"""Loss and metrics over held-out groups."""

from collections.abc import Callable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from prefopt.models.reference import Reference
from prefopt.objectives import Objective
from prefopt.train.metrics import StepSums, group_metrics, means_of
from prefopt.train.scoring import scored_without_gradient
from prefopt.train.share import StepShare
from prefopt.train.steps import StepDataset


def held_out_means(
    objective: Objective,
    model: nn.Module,
    reference: Reference | None,
    dataset: StepDataset,
    accelerator: Accelerator,
    statistics_of_step: Callable[[nn.Module, StepShare], Tensor | None],
) -> dict[str, float]:
    """Loss and metrics by name, each group counted once.

    Every term of the loss has its own denominator over the whole set.

    Args:
        objective: what is trained on.
        model: the policy inside whatever wraps it, in evaluation mode.
        reference: there if the objective needs one.
        dataset: this rank's shares of the held-out groups.
        accelerator: adds up what ranks have.
        statistics_of_step: of all groups of a step, where the objective couples them.
    """
    sums, coefficients = StepSums(), dict[str, float]()
    for step in range(dataset.plan.steps_per_epoch):
        share = dataset[0, step]
        scored = scored_without_gradient(
            objective,
            model,
            reference,
            share.micro_batches,
            share.large,
            torch.device(accelerator.device),
            statistics_of_step(model, share),
        )
        for which, inputs in scored:
            is_filler = isinstance(which, int) and which >= share.num_real
            output = objective(inputs)
            for name, term in output.all_terms().items():
                coefficients[name] = term.coefficient
                sums.add(f"term/{name}:sum", term.losses.sum() * (not is_filler))
                sums.add(f"term/{name}:count", term.weight.sum() * (not is_filler))
            sums.add_groups(group_metrics(inputs, output), is_filler=is_filler)
    reduced = accelerator.reduce(sums.pack(), reduction="sum").tolist()
    means = means_of(sums.read(reduced))
    loss = sum(
        coefficient * means.pop(f"term/{name}", 0.0) for name, coefficient in coefficients.items()
    )
    return {"loss": loss, **means}
