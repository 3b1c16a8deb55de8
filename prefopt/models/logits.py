"""What some architectures do to logits after the output projection."""

from dataclasses import dataclass

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitTransform:
    """A factor, and a soft-cap after it."""

    scale: float
    softcap: float | None

    def __call__(self, logits: Tensor) -> Tensor:
        """The logits that the model itself returns."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def logit_transform(model: PreTrainedModel | PeftModel) -> LogitTransform:
    """What the model's architecture does to its logits, from its configuration."""
    config = model.config.get_text_config()
    factor = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return LogitTransform(
        scale=factor / divisor, softcap=getattr(config, "final_logit_softcapping", None)
    )
