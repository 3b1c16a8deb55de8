"""The trainer: transformers.Trainer whose batch is one optimiser step's share of a rank.

It computes policy and reference log-probs, hands them to an objective, and divides by denominators
that are known before the first backward pass. It knows no objective's name.
"""

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from prefopt.models.reference import Reference
from prefopt.models.self_check import compare_with_plain_logits
from prefopt.objectives import Objective
from prefopt.train.arguments import keep_log_probs_wide
from prefopt.train.checkpoint import save_atomically
from prefopt.train.durable import staging_folder
from prefopt.train.epoch_end import EpochEnd
from prefopt.train.evaluation import held_out_means
from prefopt.train.guard import StepGuard, hold_update
from prefopt.train.loader import step_loader
from prefopt.train.metrics import LogWindow
from prefopt.train.normalise import GradientNorms
from prefopt.train.scoring import statistics_of
from prefopt.train.share import StepShare
from prefopt.train.spikes import watch_loss
from prefopt.train.step_losses import StepLosses
from prefopt.train.steps import StepDataset
from prefopt.train.stopping import StopAgreement, StopBetweenSteps
from prefopt.types import GroupBatch


class PreferenceTrainer(Trainer):
    """Trains a policy with any objective; everything but the step itself is transformers'."""

    objective: Objective
    reference: Reference | None
    norms: GradientNorms | None = None
    _losses: StepLosses
    _packed: Tensor
    _sums: dict[str, float]
    _num_tokens: float

    def __init__(
        self,
        *,
        model: nn.Module,
        args: TrainingArguments,
        objective: Objective,
        reference: Reference | None,
        train_dataset: StepDataset,
        eval_dataset: StepDataset | None,
        tokenizer: PreTrainedTokenizerBase,
        guard: StepGuard,
        callbacks: Sequence[TrainerCallback] = (),
        stop: StopAgreement | None = None,
    ) -> None:
        """Takes a policy with a log-prob head, and a reference where the objective needs one."""
        assert (reference is not None) == objective.needs_reference
        self.objective = objective
        self.reference = reference
        self.guard = guard
        self.window = LogWindow()
        self.stop = stop or StopAgreement()
        self._num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._is_saving = False
        self._head_is_checked = False
        self._training_since: float | None = None
        self._is_left_out = False
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=tokenizer,
            callbacks=list(callbacks),
        )
        self.epoch_end = EpochEnd(self)
        self.add_callback(self.epoch_end)
        self.add_callback(StopBetweenSteps(self))
        keep_log_probs_wide(self.accelerator)
        if reference is not None:
            reference.prepare(self.accelerator)

    def get_train_dataloader(self) -> DataLoader[StepShare]:
        """One item per optimiser step; not prepared by accelerate, since it is sharded already."""
        assert isinstance(self.train_dataset, StepDataset)
        num_steps = self.args.max_steps
        if num_steps <= 0:
            steps_per_epoch = self.train_dataset.plan.steps_per_epoch
            num_steps = math.ceil(self.args.num_train_epochs * steps_per_epoch)
        return step_loader(
            self.train_dataset,
            num_steps=num_steps,
            num_workers=self.args.dataloader_num_workers,
        )

    def _get_num_items_in_batch(self, batch_samples: Any, device: torch.device) -> None:
        """Nothing to count: a share carries the denominators of its step."""

    def training_step(
        self, model: nn.Module, inputs: Any, num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Gradients of one optimiser step, from a StepShare; returns this rank's part of its loss.

        What the Trainer makes of that is not logged: it would mix in steps that are left out.
        """
        assert isinstance(inputs, StepShare)
        self._is_left_out = False
        if not self._head_is_checked:
            assert isinstance(self.train_dataset, StepDataset)
            excerpt = self._prepare_inputs(self.train_dataset.excerpt())
            compare_with_plain_logits(model, excerpt, is_low_precision=self._is_bfloat16(model))
            self._head_is_checked = True
        model.train()
        if self._training_since is None:
            self._training_since = time.perf_counter()
        statistics = self._step_statistics(model, inputs)
        self._losses = StepLosses(
            self.objective, model, self.reference, inputs, statistics, self.args.device, self.norms
        )
        for i in range(len(inputs.micro_batches)):
            is_last = i == len(inputs.micro_batches) - 1
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            with self._gradients_of(model, is_last):
                loss = self._losses.loss_of(i)
                if is_last:
                    self._reduce_sums(inputs)
                    # DeepSpeed leaves a step out by itself if its gradients are not finite.
                    loss = loss * torch.nan if self._is_left_out else loss
                self.accelerator.backward(loss * self.accelerator.num_processes, **self._deepspeed)
        return self._losses.sums.values["loss:sum"].float().nan_to_num(0.0, 0.0, 0.0)

    def _is_bfloat16(self, model: nn.Module) -> bool:
        is_autocast = self.accelerator.mixed_precision == "bf16"
        return is_autocast or any(p.dtype == torch.bfloat16 for p in model.parameters())

    def _gradients_of(
        self, model: nn.Module, is_last: bool
    ) -> contextlib.AbstractContextManager[Any]:
        """Reduce gradients over ranks with the last micro-batch only; DeepSpeed decides itself."""
        if is_last or self._is_deepspeed:
            return contextlib.nullcontext()
        context: contextlib.AbstractContextManager[Any] = self.accelerator.no_sync(model)
        return context

    def _step_statistics(self, model: nn.Module, share: StepShare) -> Tensor | None:
        if not share.statistic_batches:
            return None
        mine = statistics_of(self.objective, model, self.reference, share, self.args.device)
        reduced: Tensor = self.accelerator.reduce(mine, reduction="sum")
        return reduced

    @property
    def tokens_per_micro_batch(self) -> int:
        """The budget that splits steps."""
        assert isinstance(self.train_dataset, StepDataset)
        return self.train_dataset.tokens_per_micro_batch

    @property
    def _is_deepspeed(self) -> bool:
        return bool(self.accelerator.distributed_type == DistributedType.DEEPSPEED)

    @property
    def _deepspeed(self) -> dict[str, Any]:
        return {"scale_wrt_gas": False} if self._is_deepspeed else {}

    def _reduce_sums(self, share: StepShare) -> None:
        """Sum the step's numbers over ranks, before its last backward pass.

        They are read on the host with the gradient norm, in one synchronisation. DeepSpeed moves
        the optimiser inside the backward pass, so there they are read at once.
        """
        self.stop.wish(self._losses.sums, self.args.device)
        self._packed = self.accelerator.reduce(self._losses.sums.pack(), reduction="sum")
        self._num_tokens = float(share.num_tokens)
        if self._is_deepspeed:
            self._read_sums(self._packed.tolist())

    def _read_sums(self, packed: list[float], norm: float | None = None) -> None:
        self._sums = self._losses.sums.read(packed)
        self.stop.agree(self._sums)
        if self._sums.pop("non_finite") > 0:
            self._leave_out(is_loss_finite=False, norm=norm)

    def _leave_out(self, *, is_loss_finite: bool, norm: float | None) -> None:
        self._is_left_out = True
        step, record, window = self.state.global_step + 1, self._losses.record, self.window
        self.guard.leave_out(step, record, window, is_loss_finite=is_loss_finite, grad_norm=norm)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float | None:
        """The gradient norm before clipping, or None for a step that is left out.

        Stops the run if the norm or the loss is not finite and the step may not be left out.
        """
        grad_norm = Trainer._get_grad_norm(self, model, grad_norm)
        if self._is_deepspeed:
            norm = float(grad_norm)
            assert self.accelerator.optimizer_step_was_skipped == (not math.isfinite(norm))
        else:
            whole = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm
            *packed, norm = torch.cat([self._packed, whole.double().reshape(1)]).tolist()
            self._read_sums(packed, norm)
        if not (self._is_left_out or math.isfinite(norm)):
            self._leave_out(is_loss_finite=True, norm=norm)
        if not self._is_deepspeed:
            hold_update(self.accelerator, self.optimizer, is_left_out=self._is_left_out)
        if self._is_left_out:
            self.window.leave_out(self._num_tokens)
            return None
        loss, step = self._sums["loss:sum"], self.state.global_step + 1
        watch_loss(loss, step, self._losses.record, self.window, self.guard.say)
        self.window.add({**self._sums, "loss:count": 1.0, "num_tokens": self._num_tokens})
        return norm

    def _prepare_inputs(self, inputs: Any) -> Any:
        """Move a micro-batch to the device and leave its dtypes alone, whatever the engine's."""
        assert isinstance(inputs, GroupBatch)
        return inputs.to(self.args.device)

    def floating_point_ops(self, inputs: Any) -> int:
        """6 operations per parameter and token for forward and backward pass, of this rank."""
        assert isinstance(inputs, StepShare)
        num_tokens = sum(batch.input_ids.shape[0] for batch in inputs.micro_batches)
        return int(6 * num_tokens * self._num_parameters)

    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Loss and metrics over all held-out groups, each counted once."""
        began = time.perf_counter()
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(dataset, StepDataset)
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        means = held_out_means(
            self.objective,
            model,
            self.reference,
            dataset,
            self.accelerator,
            self._step_statistics,
        )
        model.train(was_training)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        self._pause(began)
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        self.epoch_end.after_evaluation(self.state, self.control)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log; a training line gets the means over all groups since the last one."""
        if "learning_rate" in logs:
            num_tokens = self.window.sums.pop("num_tokens")
            assert self._training_since is not None
            logs = {name: value for name, value in logs.items() if name != "loss"}
            logs |= self.window.drain() | self.window.counts()
            logs["tokens_per_second"] = num_tokens / (time.perf_counter() - self._training_since)
            self._training_since = None
        if "train_loss" in logs:
            # The Trainer's own mean forgets the steps before a resume.
            num_steps = self.state.global_step - self.window.num_skipped
            logs["train_loss"] = self.window.total_loss / max(num_steps, 1)
            # It counts one sample a step.
            logs.pop("train_samples_per_second")
        super().log(logs, start_time)

    def _get_output_dir(self, trial: Any) -> str:
        folder = super()._get_output_dir(trial)
        return str(staging_folder(Path(folder))) if self._is_saving else folder

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        def save() -> None:
            self._is_saving = True
            super(PreferenceTrainer, self)._save_checkpoint(model, trial)
            self._is_saving = False

        began = time.perf_counter()
        save_atomically(self, save)
        self._pause(began)

    def _pause(self, began: float) -> None:
        """Leave the time since then out of tokens per second."""
        if self._training_since is not None:
            self._training_since += time.perf_counter() - began
