"""Reference log-probs from a live model: a frozen copy, the adapter off, or the adapter's start."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefopt.models.head import ReferenceDistribution
from prefopt.models.layout import score_tokens, token_logps
from prefopt.models.load import POLICY_ADAPTER, REFERENCE_ADAPTER, load_causal_lm, load_policy
from prefopt.models.logits import logit_transform
from prefopt.models.section import AdapterSection, ModelSection, ReferenceSection
from prefopt.types import GroupBatch


@runtime_checkable
class Reference(Protocol):
    """Where reference log-probs come from."""

    def prepare(self, accelerator: Accelerator) -> None:
        """Place and shard whatever the reference holds, as the policy is."""

    def token_logps(self, batch: GroupBatch, policy: nn.Module) -> Float[Tensor, " N"]:
        """Log-prob of every scored token under the reference, without gradient.

        Args:
            batch: the micro-batch.
            policy: the policy inside whatever wraps it.
        """

    def distribution(
        self, batch: GroupBatch, policy: nn.Module
    ) -> tuple[Float[Tensor, " N"], ReferenceDistribution]:
        """The same log-probs, and the whole distribution of `batch.statistic_tokens`."""


class FrozenCopy:
    """A model of its own that is never trained."""

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        self.model: nn.Module = model.requires_grad_(False).eval()
        self._transform = logit_transform(model)
        self.vocabulary: int = model.config.get_text_config().vocab_size
        self._precision: Callable[[], AbstractContextManager[None]] = nullcontext

    def prepare(self, accelerator: Accelerator) -> None:
        """Shard the copy as the policy is sharded, or move it to the device."""
        if accelerator.distributed_type == DistributedType.DEEPSPEED:
            self.model = _prepare_for_deepspeed(self.model, accelerator)
        elif accelerator.is_fsdp2:
            from accelerate.utils import fsdp2_prepare_model

            self.model = fsdp2_prepare_model(accelerator, self.model)
        else:
            self.model.to(accelerator.device)
            # What accelerate wraps around the policy's own forward pass; else bf16 would part them.
            self._precision = accelerator.autocast

    def token_logps(self, batch: GroupBatch, policy: nn.Module) -> Float[Tensor, " N"]:
        """Log-probs under the copy; the policy is not looked at."""
        with torch.no_grad(), self._precision():
            return token_logps(self.model, batch)

    def distribution(
        self, batch: GroupBatch, policy: nn.Module
    ) -> tuple[Float[Tensor, " N"], ReferenceDistribution]:
        """Log-probs and distribution under the copy, with its own output projection."""
        with torch.no_grad(), self._precision():
            found = score_tokens(
                self.model, batch, return_hidden_of=batch.statistic_tokens, return_projection=True
            )
        return found["logps"], ReferenceDistribution(
            hidden=found["hidden"],
            weight=found["weight"],
            bias=found.get("bias"),
            transform=self._transform,
        )


class StartOfAdapter:
    """The policy's base weights with the adapter off, or with a frozen copy of its start."""

    def __init__(self, policy: PeftModel) -> None:
        self.peft_model = policy

    def prepare(self, accelerator: Accelerator) -> None:
        """Nothing: the weights are the policy's own."""

    def token_logps(self, batch: GroupBatch, policy: nn.Module) -> Float[Tensor, " N"]:
        """Log-probs through the policy's wrapper, so that sharded weights are gathered."""
        with self._as_reference(policy):
            return token_logps(policy, batch)

    def distribution(
        self, batch: GroupBatch, policy: nn.Module
    ) -> tuple[Float[Tensor, " N"], ReferenceDistribution]:
        """Log-probs and distribution; the output projection is the policy's, never adapted."""
        with self._as_reference(policy):
            found = score_tokens(policy, batch, return_hidden_of=batch.statistic_tokens)
        return found["logps"], ReferenceDistribution(
            hidden=found["hidden"], weight=None, bias=None, transform=None
        )

    @contextmanager
    def _as_reference(self, policy: nn.Module) -> Iterator[None]:
        """Without gradient and dropout, with the adapter as it was at the start."""
        was_training = policy.training
        policy.eval()
        with torch.no_grad(), self._adapter_as_at_start():
            yield
        policy.train(was_training)

    @contextmanager
    def _adapter_as_at_start(self) -> Iterator[None]:
        if REFERENCE_ADAPTER not in self.peft_model.peft_config:
            with self.peft_model.disable_adapter():
                yield
            return
        self.peft_model.set_adapter(REFERENCE_ADAPTER, inference_mode=True)
        yield
        self.peft_model.set_adapter(POLICY_ADAPTER)


class CachedReference:
    """Log-probs that were computed before training and come with the micro-batch."""

    def __init__(self, live: Reference | None) -> None:
        """Takes the reference for texts that are none of the data's, if the objective has such."""
        self.live = live

    def prepare(self, accelerator: Accelerator) -> None:
        """Nothing: a live reference has been prepared before."""

    def token_logps(self, batch: GroupBatch, policy: nn.Module) -> Float[Tensor, " N"]:
        """What the batch brings, to the bit; no forward pass."""
        if batch.reference_logps is not None:
            return batch.reference_logps
        assert self.live is not None, "a batch without reference log-probs"
        return self.live.token_logps(batch, policy)

    def distribution(
        self, batch: GroupBatch, policy: nn.Module
    ) -> tuple[Float[Tensor, " N"], ReferenceDistribution]:
        """Never: distributions are not kept, so an objective that reads them has no cache."""
        raise AssertionError("a cached reference has no distribution")


def load_reference(
    reference: ReferenceSection,
    model: ModelSection,
    adapter: AdapterSection | None,
    policy: PreTrainedModel | PeftModel,
) -> Reference:
    """The reference of a recipe.

    With an adapter and no `reference.path` it is the policy as it starts: the base weights, or
    those with the adapter that training goes on from. Else it is a frozen copy.
    """
    if adapter is not None and reference.path is None:
        assert isinstance(policy, PeftModel)
        return StartOfAdapter(policy)
    return _frozen_copy(reference, model)


def _frozen_copy(reference: ReferenceSection, model: ModelSection) -> FrozenCopy:
    if reference.path is None:
        return FrozenCopy(load_causal_lm(model.model_copy(update={"dropout": False})))
    other = {"path": reference.path, "revision": None, "dropout": False}
    return FrozenCopy(load_causal_lm(model.model_copy(update=other), "reference.path"))


def load_reference_alone(
    reference: ReferenceSection, model: ModelSection, adapter: AdapterSection | None
) -> FrozenCopy:
    """The same reference, with the same layout, where no policy shares its weights."""
    if adapter is None or reference.path is not None:
        return _frozen_copy(reference, model)
    return FrozenCopy(load_policy(model, adapter if adapter.path is not None else None))


def _prepare_for_deepspeed(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """An inference engine that shards the copy under ZeRO-3 and leaves it whole below."""
    import deepspeed

    config = dict(accelerator.deepspeed_plugin.deepspeed_config)
    for training_only in ("optimizer", "scheduler"):
        config.pop(training_only, None)
    zero = dict(config.get("zero_optimization", {}))
    zero.pop("offload_optimizer", None)
    if zero.get("stage") != 3:
        zero["stage"] = 0
    engine: nn.Module = deepspeed.initialize(
        model=model, config={**config, "zero_optimization": zero}
    )[0]
    engine.eval()
    return engine
