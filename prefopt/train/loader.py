"""Shares of optimiser steps as an ordinary data loader."""

import os
from collections.abc import Iterator

import torch
from torch.utils.data import DataLoader, Sampler

from prefopt.train.share import StepKey, StepShare
from prefopt.train.steps import StepDataset


class StepSampler(Sampler[list[StepKey]]):
    """Keys of an epoch's steps, one per batch.

    transformers.Trainer sets the epoch on what it finds at `batch_sampler.batch_sampler` of the
    loader, which is where a loader that skips the first batches of a resumed epoch keeps this.
    """

    def __init__(self, steps_per_epoch: int, num_steps: int) -> None:
        """Takes the steps of an epoch and of the whole run; the last epoch may be cut short."""
        self.steps_per_epoch = steps_per_epoch
        self.num_steps = num_steps
        self.epoch = 0

    @property
    def batch_sampler(self) -> "StepSampler":
        """Itself, so that the epoch arrives whether or not batches are skipped."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Which epoch the next iteration is."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Steps in a whole epoch."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[list[StepKey]]:
        # Without the cut, a run resumed from its very last step would take one more.
        left = self.num_steps - self.epoch * self.steps_per_epoch
        for step in range(min(left, self.steps_per_epoch)):
            yield [(self.epoch, step)]


def step_loader(
    dataset: StepDataset, *, num_steps: int, num_workers: int = 0
) -> DataLoader[StepShare]:
    """A loader that yields one share per optimiser step, `num_steps` in all epochs together."""
    if num_workers:
        # By default every tensor that a worker hands over keeps a file open, and a step has many.
        torch.multiprocessing.set_sharing_strategy("file_system")
    return DataLoader(
        dataset,
        batch_sampler=StepSampler(dataset.plan.steps_per_epoch, num_steps),
        collate_fn=_the_only,
        num_workers=num_workers,
        worker_init_fn=_stand_apart,
    )


def _stand_apart(worker: int) -> None:
    """Keep a signal to the whole group of this process, as launchers send it, from its workers.

    The process needs them for the step at whose end it saves.
    """
    os.setpgid(0, 0)


def _the_only(shares: list[StepShare]) -> StepShare:
    (share,) = shares
    return share
