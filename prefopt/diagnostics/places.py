"""Which layer of a model answers for which parameters, if gradients are told by token.

A layer answers for its own parameters if what it returns has the tokens in their order: then the
derivative there is known token by token. What nobody answers for falls to the nearest layer around
it that can.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

Plan = dict[nn.Module, list["Place"]]
"""The layers to hear, and for what."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a model keeps a parameter; one that is shared has several, of one name."""

    owner: nn.Module
    attribute: str
    name: str

    @property
    def tensor(self) -> Tensor:
        """The parameter, gathered where a wrapper has gathered it."""
        found: Tensor = getattr(self.owner, self.attribute)
        return found


def who_answers(
    model: nn.Module, is_in_order: Callable[[nn.Module, Any], bool], forward: Callable[[], Any]
) -> tuple[Plan, tuple[str, ...]]:
    """Layers with the trainable parameters that each answers for, and names of all others.

    Args:
        model: what has the parameters.
        is_in_order: whether what a layer returned has the tokens in their order.
        forward: runs the model once, without gradient.
    """
    called: dict[nn.Module, bool] = {}
    always = {module for module in model.modules() if is_parametrized(module)}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        # An adapter of single parameters changes what a layer within it computes while it runs;
        # computed again by itself, that layer would be another one.
        is_changed = any(is_parametrized(m) and m not in always for m in module.modules())
        fits = is_in_order(module, output) and not is_changed
        called[module] = called.get(module, True) and fits

    with _heard(model, note):
        forward()
    parents = {child: each for each in model.modules() for child in each.children()}
    plan: Plan = {}
    missing = []
    for place in _trainable(model):
        answering: nn.Module | None = place.owner
        while answering is not None and not called.get(answering, False):
            answering = parents.get(answering)
        if answering is None:
            missing.append(place.name)
        elif all(place.name != other.name for other in plan.get(answering, [])):
            plan.setdefault(answering, []).append(place)
    return plan, tuple(missing)


def _trainable(model: nn.Module) -> Iterator[Place]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for module in model.modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None and parameter.requires_grad:
                yield Place(module, attribute, names[id(parameter)])


@contextmanager
def _heard(model: nn.Module, note: Callable[..., None]) -> Iterator[None]:
    hooks = [module.register_forward_hook(note) for module in model.modules()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
