"""A head that returns log-probs of scored tokens instead of logits of all positions.

The model's own `forward` is replaced on the instance, before peft and before any wrapper, so that
DDP, ZeRO-3 and FSDP2 see one ordinary forward pass. The output projection stays a module that is
called once, whatever the number of tiles: sharded wrappers gather its weight in that call's hooks,
and ranks with different numbers of tiles stay in step.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float, Int
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from prefopt.errors import UserError
from prefopt.models.attention import install_attention
from prefopt.models.layout import LayoutName, lay_out
from prefopt.models.logits import LogitTransform, logit_transform
from prefopt.ops.groupwise import groupwise_loss
from prefopt.ops.head_logps import tiled_target_logps
from prefopt.ops.logps import tiled_vocabulary_statistics, tokens_per_tile
from prefopt.types import GroupBatch

TokenSlopes = Callable[[int, int, Float[Tensor, " n"]], Float[Tensor, " n"]]
"""Of scored tokens first to stop (exclusive) and their log-probs, the derivative of the loss by
each of these."""


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


def install_logp_head(
    model: PreTrainedModel, layout: LayoutName = "padded", why_padded: str | None = None
) -> None:
    """Teach the model to answer `batch=` with log-probs; without it, it behaves as before.

    Args:
        model: a causal language model.
        layout: how it lays a micro-batch out; flat rows change the model's attention.
        why_padded: what keeps it from a flat row, to be told by `layout_of`.

    Raises:
        UserError: if the model has no output projection.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise UserError(
            f"model.path: {type(model).__name__} has no output projection that could be scored. "
            "Choose a causal language model."
        )
    if layout != "padded":
        install_attention(model)
    scored = partial(_head_forward, transform=logit_transform(model))
    vars(head)["forward"] = _ForwardThatScores(head, "targets", scored)
    scored = partial(_model_forward, layout=layout)
    vars(model)["forward"] = _ForwardThatScores(model, "batch", scored)
    vars(model)["layout"] = (layout, why_padded)


def layout_of(model: nn.Module) -> tuple[LayoutName, str | None]:
    """How a model with a log-prob head, adapted or not, lays a batch out, and why not flat."""
    answer: tuple[LayoutName, str | None] = vars(base_of(model))["layout"]
    return answer


def base_of(model: nn.Module) -> Any:
    """The causal language model that an adapter stands around, or the model itself."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def check_head(model: PreTrainedModel) -> None:
    """Refuse an output projection that the log-prob head would bypass, such as an adapted one.

    Raises:
        UserError: if the projection is not the plain layer it was when the head was installed, or
            shares its weight with input embeddings that are not.
    """
    way_out = "leave it out of adapter.target_modules and adapter.modules_to_save."
    head = model.get_output_embeddings()
    installed = isinstance(vars(head).get("forward"), _ForwardThatScores)
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


class _ForwardThatScores:
    """A module's own forward, and another one for when an argument of some name is given.

    An object and no closure, so that a deep copy or a pickle of the module holds one that is bound
    to the copy and computes with the copy's weights.
    """

    def __init__(self, module: nn.Module, given: str, scored: Callable[..., Any]) -> None:
        self.module = module
        self.plain = module.forward
        self.given = given
        self.scored = scored

    @property
    def __wrapped__(self) -> Callable[..., Any]:
        """What inspect.signature looks at, and with it peft, transformers and accelerate."""
        return self.plain

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get(self.given) is None:
            return self.plain(*args, **kwargs)
        return self.scored(self.module, *args, **kwargs)


def _model_forward(
    model: PreTrainedModel,
    *,
    batch: GroupBatch,
    layout: LayoutName,
    statistics: Statistics | None = None,
    return_hidden_of: Int[Tensor, " M"] | None = None,
    return_projection: bool = False,
    slopes: TokenSlopes | None = None,
    **absent: Any,
) -> Float[Tensor, " N"] | dict[str, Tensor]:
    """Log-probs of the scored tokens of a micro-batch.

    With `statistics`, also those. With `return_hidden_of`, also the hidden states that predict
    these tokens, and with `return_projection` a copy of the output projection. With `slopes`, a
    trained projection gets its gradient in this pass: log-probs then have none, and `surrogate`, a
    scalar that is 0.0, has that of the loss.
    """
    # peft passes every argument of the usual signature, as None.
    given = [key for key, value in absent.items() if value is not None]
    assert not given, f"scoring does not take {given}"
    rows = lay_out(batch, layout)
    hidden = model.get_decoder()(**rows.arguments(), use_cache=False).last_hidden_state
    scored = rows.scored(hidden)
    head = model.get_output_embeddings()
    found: Tensor | dict[str, Tensor] = head(
        scored,
        targets=batch.targets,
        statistics=statistics,
        return_projection=return_projection,
        slopes=slopes,
        num_tokens_per_group=batch.layout.num_tokens_per_group,
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
    transform: LogitTransform,
    statistics: Statistics | None = None,
    return_projection: bool = False,
    slopes: TokenSlopes | None = None,
    num_tokens_per_group: tuple[int, ...] = (),
) -> Float[Tensor, " N"] | dict[str, Tensor]:
    def project(tile: Tensor) -> Tensor:
        return transform(nn.functional.linear(tile, head.weight, head.bias))

    vocabulary, width = head.weight.shape
    is_trained = head.weight.requires_grad and torch.is_grad_enabled()

    def logps_of(some: Tensor, their_targets: Tensor) -> Tensor:
        return tiled_target_logps(
            some,
            their_targets,
            head.weight,
            head.bias,
            num_tokens_per_tile=tokens_per_tile(vocabulary, width if is_trained else 0),
            scale=transform.scale,
            softcap=transform.softcap,
        )

    if statistics is not None:
        return _with_statistics(head, hidden, targets, project, logps_of, statistics)
    if slopes is not None and is_trained:
        return _with_gradient(head, hidden, targets, transform, slopes, num_tokens_per_group)
    logps = logps_of(hidden, targets)
    if not return_projection:
        return logps
    # Copies: a sharded wrapper frees the gathered weight as soon as this call is over.
    answer = {"logps": logps, "weight": head.weight.detach().clone()}
    return answer if head.bias is None else {**answer, "bias": head.bias.detach().clone()}


def _with_gradient(
    head: nn.Linear,
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    transform: LogitTransform,
    slopes: TokenSlopes,
    num_tokens_per_group: tuple[int, ...],
) -> dict[str, Tensor]:
    """Log-probs, and a scalar with the gradient of a loss that says what it wants of each token."""
    ends = [0, *accumulate(num_tokens_per_group)]
    logps, surrogate = groupwise_loss(
        hidden,
        targets,
        head.weight,
        head.bias,
        num_tokens_per_group=num_tokens_per_group,
        coefficients=lambda start, stop, some: slopes(ends[start], ends[stop], some),
        num_tokens_per_tile=tokens_per_tile(*head.weight.shape),
        scale=transform.scale,
        softcap=transform.softcap,
    )
    return {"logps": logps, "surrogate": surrogate}


def _with_statistics(
    head: nn.Linear,
    hidden: Float[Tensor, "N H"],
    targets: Int[Tensor, " N"],
    project: Callable[[Tensor], Tensor],
    logps_of: Callable[[Tensor, Tensor], Tensor],
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

    others = logps_of(hidden[statistics.others], targets[statistics.others])
    chosen, top_logps, top_ids, reference_kl = tiled_vocabulary_statistics(
        hidden[statistics.tokens],
        targets[statistics.tokens],
        project,
        tokens_per_tile(head.weight.shape[0]),
        num_top=statistics.num_top,
        reference_hidden=None if reference is None else reference.hidden,
        project_reference=project_reference,
    )
    logps = others.new_zeros(targets.shape)
    logps = logps.index_copy(0, statistics.others, others)
    answer = {"logps": logps.index_copy(0, statistics.tokens, chosen)}
    answer |= {"top_logps": top_logps, "top_ids": top_ids}
    return answer if reference_kl is None else {**answer, "reference_kl": reference_kl}
