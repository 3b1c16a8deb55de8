"""A model's layers compiled by torch, each for itself."""

from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from prefopt.errors import UserError


def compile_layers(model: nn.Module) -> None:
    """Compile every layer of a model, adapted or not, in place and for any number of tokens.

    Attention stays as it is. Names of weights do not change, and a saved model knows nothing of it.

    Raises:
        UserError: if transformers does not know which modules of the model are its layers.
    """
    layers = [each for each in model.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise UserError(
            "training.torch_compile: no layers of this architecture are known. Set it to false."
        )
    for layer in layers:
        layer.compile(dynamic=True)
