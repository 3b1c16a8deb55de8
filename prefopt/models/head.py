"""A head that returns log-probs of scored tokens instead of logits of all positions.

The model's own `forward` is replaced on the instance, before peft and before any wrapper, so that
DDP, ZeRO-3 and FSDP2 see one ordinary forward pass. The output projection stays a module that is
called once, whatever the number of tiles: sharded wrappers gather its weight in that call's hooks,
and ranks with different numbers of tiles stay in step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefopt.errors import UserError
from prefopt.ops.logps import target_logps, tiled_target_logps, tokens_per_tile
from prefopt.types import GroupBatch

# Enough to meet every kind of layer, few enough that plain logits cost nothing.
_TOKENS_TO_COMPARE = 256
# In nats per token. A scale or cap that the head misses shows as tenths or more; rounding does not.
_TOLERANCE = 1e-3
_TOLERANCE_BF16 = 5e-2


def install_logp_head(model: PreTrainedModel) -> None:
    """Teach the model to answer `targets=` with log-probs; without it, it behaves as before."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"model.path: {type(model).__name__} has no output projection that could be scored. "
            "Choose a causal language model."
        )
    scored = partial(_head_forward, transform=_logit_transform(model))
    vars(head)["forward"] = _ForwardWithTargets(head, scored)
    vars(model)["forward"] = _ForwardWithTargets(model, _model_forward)


def check_head(model: PreTrainedModel) -> None:
    """Refuse an output projection that the log-prob head would bypass, such as an adapted one.

    Raises:
        UserError: if the projection is not the plain layer it was when the head was installed, or
            shares its weight with input embeddings that are not.
    """
    way_out = "leave it out of adapter.target_modules and adapter.modules_to_save."
    head = model.get_output_embeddings()
    installed = isinstance(vars(head).get("forward"), _ForwardWithTargets)
    if not isinstance(head, nn.Linear) or not installed:
        raise UserError(
            "adapter: the output projection cannot carry an adapter or be trained beside one; "
            f"{way_out}"
        )
    is_tied = model.config.get_text_config().tie_word_embeddings
    if is_tied and not isinstance(model.get_input_embeddings(), nn.Embedding):
        raise UserError(
            "adapter: the input embedding shares its weight with the output projection, and an "
            f"adapter would part them; {way_out}"
        )


def compare_with_plain_logits(
    model: nn.Module, batch: GroupBatch, *, is_low_precision: bool
) -> None:
    """Refuse a model whose log-probs are not those of its own logits, on real tokens.

    Args:
        model: the policy inside whatever wraps it; in evaluation mode afterwards.
        batch: a micro-batch, of which the first response is looked at.
        is_low_precision: whether the forward pass computes in bfloat16.

    Raises:
        UserError: if the architecture does something to its logits that the head does not.
    """
    num_prompt, num_response = batch.layout.prompt_lengths[0], batch.layout.response_lengths[0]
    response = batch.input_ids[batch.layout.num_prompt_tokens :][:num_response]
    row = torch.cat([batch.input_ids[:num_prompt], response])[:_TOKENS_TO_COMPARE]
    model.eval()
    deviation = head_deviation(model, row.unsqueeze(0)).item()
    if not deviation <= (_TOLERANCE_BF16 if is_low_precision else _TOLERANCE):
        raise UserError(
            f"model.path: log-probs differ by {deviation:.2g} nats from those of the model's own "
            "logits, so the architecture treats logits in a way that prefopt does not know. "
            "Please report it, and train another one."
        )


def head_deviation(model: nn.Module, input_ids: Int[Tensor, "1 L"]) -> Float[Tensor, ""]:
    """Largest difference, in nats, between the head's log-probs and those of the plain logits.

    Both passes run through whatever wraps the model. 0.0 up to rounding unless the architecture
    changes its logits in a way that the head does not know.
    """
    targets = input_ids[0, 1:]
    predictors = torch.arange(targets.shape[0], device=targets.device)
    mask = torch.ones_like(input_ids)
    with torch.no_grad():
        logps = model(
            input_ids=input_ids, attention_mask=mask, predictors=predictors, targets=targets
        )
        logits = model(input_ids=input_ids, attention_mask=mask, use_cache=False).logits
        deviation: Tensor = (logps - target_logps(logits[0, :-1], targets)).abs().max()
        return deviation


class _ForwardWithTargets:
    """A module's own forward that scores where `targets` are given.

    An object and no closure, so that a deep copy or a pickle of the module holds one that is bound
    to the copy and computes with the copy's weights.
    """

    def __init__(self, module: nn.Module, scored: Callable[..., Tensor]) -> None:
        self.module = module
        self.plain = module.forward
        self.scored = scored

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """What inspect.signature looks at, and with it peft, transformers and accelerate."""
        return self.plain

    def __call__(self, *args: Any, targets: Tensor | None = None, **kwargs: Any) -> Any:
        if targets is None:
            return self.plain(*args, **kwargs)
        return self.scored(self.module, *args, targets=targets, **kwargs)


def _model_forward(
    model: PreTrainedModel,
    input_ids: Int[Tensor, "R L"],
    attention_mask: Int[Tensor, "R L"],
    *,
    predictors: Int[Tensor, " N"],
    targets: Int[Tensor, " N"],
    **absent: Any,
) -> Float[Tensor, " N"]:
    """Log-probs of the targets, each predicted at a position of the flattened rows."""
    # peft passes every argument of the usual signature, as None.
    given = [key for key, value in absent.items() if value is not None]
    assert not given, f"scoring does not take {given}"
    hidden = model.get_decoder()(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    scored = hidden.flatten(0, 1).index_select(0, predictors)
    logps: Tensor = model.get_output_embeddings()(scored, targets=targets)
    return logps


def _head_forward(
    head: nn.Linear,
    hidden: Float[Tensor, "N H"],
    *,
    targets: Int[Tensor, " N"],
    transform: "_LogitTransform",
) -> Float[Tensor, " N"]:
    def project(tile: Tensor) -> Tensor:
        return transform(nn.functional.linear(tile, head.weight, head.bias))

    return tiled_target_logps(hidden, targets, project, tokens_per_tile(head.weight.shape[0]))


@dataclass(frozen=True, kw_only=True, slots=True)
class _LogitTransform:
    """What some architectures do to logits after the projection."""

    scale: float
    softcap: float | None

    def __call__(self, logits: Tensor) -> Tensor:
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def _logit_transform(model: PreTrainedModel) -> _LogitTransform:
    config = model.config.get_text_config()
    factor = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return _LogitTransform(
        scale=factor / divisor, softcap=getattr(config, "final_logit_softcapping", None)
    )
