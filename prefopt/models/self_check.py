"""A model's log-probs against those of its own logits, on real tokens, before training starts."""

import torch
from accelerate.utils import gather
from jaxtyping import Float
from torch import Tensor, nn

from prefopt.errors import UserError
from prefopt.models.layout import token_logps
from prefopt.ops.logps import target_logps
from prefopt.ops.segments import Segments
from prefopt.types import GroupBatch

# In nats per token. Attention to the wrong tokens, a scale or cap that the head misses show as
# tenths or more. In bfloat16 a logit of 16 has steps of 1/8, and the mean over tokens some 0.04.
_TOLERANCE = 1e-3
_TOLERANCE_BF16 = 0.1


def compare_with_plain_logits(
    model: nn.Module, batch: GroupBatch, *, is_low_precision: bool
) -> None:
    """Refuse a model whose log-probs are not those of its own logits, on all processes alike.

    Args:
        model: the policy inside whatever wraps it; in evaluation mode afterwards.
        batch: a few groups with short responses, so that plain logits cost nothing.
        is_low_precision: whether the forward pass computes in bfloat16.

    Raises:
        UserError: if layout or head do not fit what the architecture does.
    """
    model.eval()
    deviation = gather(deviation_from_plain(model, batch).reshape(1)).max().item()
    if not deviation <= (_TOLERANCE_BF16 if is_low_precision else _TOLERANCE):
        raise UserError(
            f"model.path: log-probs differ by {deviation:.2g} nats from those of the model's own "
            "logits, so the architecture does something that prefopt does not know. Set "
            "model.layout: padded; if that is refused too, train another one. Please report it."
        )


def deviation_from_plain(model: nn.Module, batch: GroupBatch) -> Float[Tensor, ""]:
    """Root mean square, in nats per token, of what differs from each response run alone.

    All passes run through whatever wraps the model. 0.0 up to rounding unless the architecture
    does something with tokens or logits that layout and head do not know.
    """
    with torch.no_grad():
        logps = token_logps(model, batch)
        alone = []
        for prompt, response in Segments.shared(batch.layout).continuations():
            pieces = [batch.input_ids[each.start : each.stop] for each in (prompt, response)]
            ids = torch.cat(pieces).unsqueeze(0)
            num_predicting = response.length + 1
            logits = model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                use_cache=False,
                logits_to_keep=num_predicting,
            ).logits
            # A model that does not know the argument has kept all of them.
            alone.append(target_logps(logits[0, -num_predicting:-1], pieces[1]))
        deviation: Tensor = (logps - torch.cat(alone)).square().mean().sqrt()
        return deviation
