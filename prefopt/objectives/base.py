"""What an objective is, how it is named, and how a recipe's section becomes one."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from pydantic import model_serializer
from torch import Tensor

from prefopt.errors import UserError, check_section, did_you_mean
from prefopt.section import Section
from prefopt.types import ObjectiveInputs, ObjectiveOutput

Needs = Literal["preferred_pairs", "graded", "labels", "responses"]


class Objective(Section, ABC):
    """A frozen, checked set of hyper-parameters and the loss that they define.

    The fields are the recipe's `objective:` section. The class attributes are traits: the trainer
    reads them and never a name. There is no state; five tensors are enough to call one.
    """

    name: ClassVar[str]
    """The name it is registered under."""
    needs_reference: ClassVar[bool] = False
    """True if the loss reads reference log-probs."""
    needs: ClassVar[Needs]
    """How scores are read.

    `preferred_pairs`: a group whose responses all tie is not counted. `graded`: by value.
    `labels`: exactly 0 or 1, each response for itself. `responses`: scores only select, if at all.
    """

    @model_serializer(mode="wrap")
    def _with_name(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {"name": self.name, **dump(self)}

    @abstractmethod
    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups, unreduced."""


Registered = TypeVar("Registered", bound=type[Objective])
_CLASSES: dict[str, type[Objective]] = {}


def register(name: str) -> Callable[[Registered], Registered]:
    """Class decorator: the objective answers to `name` in recipes. A name has one owner."""

    def add(cls: Registered) -> Registered:
        assert name not in _CLASSES, f"two objectives are called {name}"
        cls.name = name
        _CLASSES[name] = cls
        return cls

    return add


def registered() -> dict[str, type[Objective]]:
    """All objectives by name, in alphabetical order."""
    return dict(sorted(_CLASSES.items()))


def build(section: Mapping[str, Any], *, where: str = "objective") -> Objective:
    """The objective that a recipe's section asks for, such as {"name": "dpo", "beta": 0.1}.

    Args:
        section: the objective's name and its parameters.
        where: the key of the section, for error messages.

    Raises:
        UserError: for an unknown name or parameter, or a value of the wrong type or range.
    """
    parameters = dict(section)
    name = parameters.pop("name", None)
    if name is None:
        raise UserError(f"{where}.name is missing. Known: {', '.join(registered())}.")
    cls = _CLASSES.get(name) if isinstance(name, str) else None
    if cls is None:
        raise UserError(f"{where}.name: no objective '{name}'. {did_you_mean(str(name), _CLASSES)}")
    return check_section(cls, parameters, where)


def weigh(
    objective: Objective,
    *,
    scores: Float[Tensor, "G K"],
    where: Bool[Tensor, "G K"],
    num_tokens: Int[Tensor, "G K"],
) -> ObjectiveOutput:
    """What the objective says of groups before any model has seen them.

    Weights and `counted` depend on data alone, so log-probs of 0 give them exactly: every
    denominator of a step is known before its first backward pass.
    """
    nothing = torch.zeros_like(scores)
    with torch.no_grad():
        return objective(
            ObjectiveInputs(
                policy_logps=nothing,
                reference_logps=nothing,
                num_tokens=num_tokens,
                scores=scores,
                where=where,
            )
        )
