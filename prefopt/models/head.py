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
from prefopt.ops.logps import (
    target_logps,
    tiled_target_logps,
    tiled_vocabulary_statistics,
    tokens_per_tile,
)
from prefopt.types import GroupBatch

# Enough to meet every kind of layer, few enough that plain logits cost nothing.
_TOKENS_TO_COMPARE = 256
# In nats per token. A scale or cap that the head misses shows as tenths or more; rounding does not.
_TOLERANCE = 1e-3
_TOLERANCE_BF16 = 5e-2


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceDistribution:
    """What the reference's distribution at M positions is computed from."""

    hidden: Float[Tensor, "M J"]
    weight: Float[Tensor, "V J"] | None
    """Of the reference's output projection; None: the policy's own, which is not trained."""
    bias: Float[Tensor, " V"] | None
    transform: Callable[[Tensor], Tensor] | None
    """What the reference does to its logits; None: what the policy does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Statistics:
    """What is asked of some tokens beside their log-probs."""

    tokens: Int[Tensor, " M"]
    """Positions among the N scored tokens."""
    others: Int[Tensor, " L"]
    """All other ones."""
    num_top: int
    reference: ReferenceDistribution | None
    """None: no KL is asked for."""


def install_logp_head(model: PreTrainedModel) -> None:
    """Teach the model to answer `targets=` with log-probs; without it, it behaves as before."""
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"model.path: {type(model).__name__} has no output projection that could be scored. "
            "Choose a causal language model."
        )
    scored = partial(_head_forward, transform=logit_transform(model))
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

    def __init__(self, module: nn.Module, scored: Callable[..., Any]) -> None:
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
    statistics: Statistics | None = None,
    return_hidden_of: Int[Tensor, " M"] | None = None,
    return_projection: bool = False,
    **absent: Any,
) -> Float[Tensor, " N"] | dict[str, Tensor]:
    """Log-probs of the targets, each predicted at a position of the flattened rows.

    With `statistics`, also those. With `return_hidden_of`, also the hidden states that predict
    these tokens, and with `return_projection` a copy of the output projection.
    """
    # peft passes every argument of the usual signature, as None.
    given = [key for key, value in absent.items() if value is not None]
    assert not given, f"scoring does not take {given}"
    hidden = model.get_decoder()(
        input_ids=input_ids, attention_mask=attention_mask, use_cache=False
    ).last_hidden_state
    scored = hidden.flatten(0, 1).index_select(0, predictors)
    head = model.get_output_embeddings()
    found: Tensor | dict[str, Tensor] = head(
        scored, targets=targets, statistics=statistics, return_projection=return_projection
    )
    if return_hidden_of is None:
        return found
    answer = found if isinstance(found, dict) else {"logps": found}
    return {**answer, "hidden": scored.index_select(0, return_hidden_of)}


def _head_forward(
    head: nn.Linear,
    hidden: Float[Tensor, "N H"],
    *,
    targets: Int[Tensor, " N"],
    transform: "LogitTransform",
    statistics: Statistics | None = None,
    return_projection: bool = False,
) -> Float[Tensor, " N"] | dict[str, Tensor]:
    def project(tile: Tensor) -> Tensor:
        return transform(nn.functional.linear(tile, head.weight, head.bias))

    per_tile = tokens_per_tile(head.weight.shape[0])
    if statistics is not None:
        return _with_statistics(head, hidden, targets, project, statistics)
    logps = tiled_target_logps(hidden, targets, project, per_tile)
    if not return_projection:
        return logps
    # Copies: a sharded wrapper frees the gathered weight as soon as this call is over.
    answer = {"logps": logps, "weight": head.weight.detach().clone()}
    return answer if head.bias is None else {**answer, "bias": head.bias.detach().clone()}


def _with_statistics(
    head: nn.Linear,
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    project: Callable[[Tensor], Tensor],
    statistics: Statistics,
) -> dict[str, Tensor]:
    """Log-probs of all N targets, and statistics of some tokens in rows of their own."""
    reference = statistics.reference

    def project_reference(tile: Tensor) -> Tensor:
        assert reference is not None
        if reference.weight is None:
            return project(tile)
        assert reference.transform is not None
        return reference.transform(nn.functional.linear(tile, reference.weight, reference.bias))

    per_tile = tokens_per_tile(head.weight.shape[0])
    others = tiled_target_logps(
        hidden[statistics.others], targets[statistics.others], project, per_tile
    )
    chosen, top_logps, top_ids, reference_kl = tiled_vocabulary_statistics(
        hidden[statistics.tokens],
        targets[statistics.tokens],
        project,
        per_tile,
        num_top=statistics.num_top,
        reference_hidden=None if reference is None else reference.hidden,
        project_reference=project_reference,
    )
    logps = others.new_zeros(targets.shape)
    logps = logps.index_copy(0, statistics.others, others)
    answer = {"logps": logps.index_copy(0, statistics.tokens, chosen)}
    answer |= {"top_logps": top_logps, "top_ids": top_ids}
    return answer if reference_kl is None else {**answer, "reference_kl": reference_kl}


@dataclass(frozen=True, kw_only=True, slots=True)
class LogitTransform:
    """What some architectures do to logits after the projection."""

    scale: float
    softcap: float | None

    def __call__(self, logits: Tensor) -> Tensor:
        """The logits that the model itself returns."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)


def logit_transform(model: PreTrainedModel) -> LogitTransform:
    """What the model's architecture does to its logits, from its configuration."""
    config = model.config.get_text_config()
    factor = getattr(config, "logit_scale", None) or 1.0
    divisor = getattr(config, "logits_scaling", None) or 1.0
    return LogitTransform(
        scale=factor / divisor, softcap=getattr(config, "final_logit_softcapping", None)
    )
