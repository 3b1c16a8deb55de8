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
from prefopt.train.loader import step_loader
from prefopt.train.metrics import LogWindow, StepSums, group_metrics, means_of
from prefopt.train.scoring import scored_without_gradient, statistics_of
from prefopt.train.share import StepShare
from prefopt.train.step_losses import StepLosses
from prefopt.train.steps import StepDataset
from prefopt.train.stopping import StopAgreement, StopBetweenSteps
from prefopt.types import GroupBatch


class PreferenceTrainer(Trainer):
    """Trains a policy with any objective; everything but the step itself is transformers'."""

    objective: Objective
    reference: Reference | None
    _losses: StepLosses

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
        callbacks: Sequence[TrainerCallback] = (),
        stop: StopAgreement | None = None,
    ) -> None:
        """Takes a policy with a log-prob head, and a reference where the objective needs one."""
        assert (reference is not None) == objective.needs_reference
        self.objective = objective
        self.reference = reference
        self.window = LogWindow()
        self.stop = stop or StopAgreement()
        self._num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._packed: Tensor | None = None
        self._is_saving = False
        self._head_is_checked = False
        self._training_since: float | None = None
        self._num_tokens = 0
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
        """Gradients of one optimiser step, from a StepShare; returns its loss over all ranks."""
        assert isinstance(inputs, StepShare)
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
            self.objective, model, self.reference, inputs, statistics, self.args.device
        )
        for i in range(len(inputs.micro_batches)):
            is_last = i == len(inputs.micro_batches) - 1
            self.accelerator.gradient_state._set_sync_gradients(is_last)
            with self._gradients_of(model, is_last):
                loss = self._losses.loss_of(i)
                if is_last:
                    self._reduce_sums(inputs)
                self.accelerator.backward(loss * self.accelerator.num_processes, **self._deepspeed)
        return self._losses.sums.values["loss:sum"].to(torch.float32)

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
        self._num_tokens = share.num_tokens
        if self._is_deepspeed:
            self._read_sums(self._packed.tolist())

    def _read_sums(self, packed: list[float]) -> None:
        sums = self._losses.sums.read(packed)
        self.stop.agree(sums)
        if sums.pop("non_finite") > 0:
            self._losses.guard.stop_on_loss(self.state.global_step + 1)
        self._losses.sums.values["loss:sum"] = torch.tensor(
            sums["loss:sum"], device=self.args.device
        )
        self.window.add({**sums, "loss:count": 1.0, "num_tokens": float(self._num_tokens)})

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """The gradient norm before clipping; stops the run if it or the loss is not finite."""
        grad_norm = Trainer._get_grad_norm(self, model, grad_norm)
        if self._is_deepspeed:
            norm = float(grad_norm)
        else:
            assert self._packed is not None
            whole = grad_norm.full_tensor() if hasattr(grad_norm, "full_tensor") else grad_norm
            *packed, norm = torch.cat([self._packed, whole.double().reshape(1)]).tolist()
            self._read_sums(packed)
        if not math.isfinite(norm):
            self._losses.guard.stop_on_gradient(self.state.global_step + 1, norm)
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
        """Loss and metrics over all held-out groups, each counted once.

        Every term of the loss has its own denominator over the whole set.
        """
        began = time.perf_counter()
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        assert isinstance(dataset, StepDataset)
        sums, coefficients = StepSums(), dict[str, float]()
        model = self.model_wrapped
        was_training = model.training
        model.eval()
        for step in range(dataset.plan.steps_per_epoch):
            share = dataset[0, step]
            statistics = self._step_statistics(model, share)
            scored = scored_without_gradient(
                self.objective,
                model,
                self.reference,
                share.micro_batches,
                share.large,
                self.args.device,
                statistics,
            )
            for which, inputs in scored:
                is_filler = isinstance(which, int) and which >= share.num_real
                output = self.objective(inputs)
                for name, term in output.all_terms().items():
                    coefficients[name] = term.coefficient
                    sums.add(f"term/{name}:sum", term.losses.sum() * (not is_filler))
                    sums.add(f"term/{name}:count", term.weight.sum() * (not is_filler))
                sums.add_groups(group_metrics(inputs, output), is_filler=is_filler)
        model.train(was_training)
        reduced = self.accelerator.reduce(sums.pack(), reduction="sum").tolist()
        means = means_of(sums.read(reduced))
        loss = sum(
            coefficient * means.pop(f"term/{name}", 0.0)
            for name, coefficient in coefficients.items()
        )
        metrics = {
            f"{metric_key_prefix}_{name}": value for name, value in {"loss": loss, **means}.items()
        }
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
            logs = {**logs, **self.window.drain()}
            logs["tokens_per_second"] = num_tokens / (time.perf_counter() - self._training_since)
            self._training_since = None
        if "train_loss" in logs:
            # The Trainer's own mean forgets the steps before a resume.
            logs["train_loss"] = self.window.total_loss / max(self.state.global_step, 1)
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
