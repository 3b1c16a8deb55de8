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
from prefopt.types import ObjectiveInputs, ObjectiveOutput, TokenInputs

Needs = Literal["preferred_pairs", "graded", "labels", "responses"]


class _Decided:
    def __init__(self, of: Callable[[Any], Any]) -> None:
        self.of = of

    def __get__(self, owner: "Objective | None", cls: type) -> Any:
        return self if owner is None else self.of(owner)


def decided_by(of: Callable[[Any], Any]) -> Any:
    """A trait that an objective's parameters decide, such as `decided_by(lambda o: o.k + 1)`.

    On the class itself it is no value: only an objective that was built knows.
    """
    return _Decided(of)


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
    score_range: ClassVar[tuple[float, float] | None] = None
    """The scores that the loss is defined for, both ends included; None: any finite number."""
    needs_tokens: ClassVar[bool] = False
    """True if the loss reads single tokens: `inputs.tokens` is then there."""
    needs_token_weights: ClassVar[bool] = False
    """True if the loss reads `tokens.weights`, which the data must give."""
    num_top_logits: ClassVar[int] = 0
    """How many of the most likely tokens of a position `tokens.top_logps` holds; 0: none.

    Where it is above 0, `tokens.noise` is there too.
    """
    needs_reference_distribution: ClassVar[bool] = False
    """True if the loss reads `tokens.reference_kl`, the KL over the whole vocabulary."""
    needs_diff: ClassVar[bool] = False
    """True if the loss reads `tokens.differs`."""
    couples_groups: ClassVar[bool] = False
    """True if a group's loss depends on `statistic` of all groups of the step."""
    couples_micro_batch: ClassVar[bool] = False
    """True if a group's loss depends on which other ones are in the same call, beside those."""
    mismatches_responses: ClassVar[bool] = False
    """True if `statistic` is that of prompts with the responses of another group of the step."""

    @model_serializer(mode="wrap")
    def _with_name(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        return {"name": self.name, **dump(self)}

    @abstractmethod
    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        """Losses of G groups, unreduced."""

    def parts(self) -> "tuple[Objective, ...]":
        """The objectives that read the data themselves: this one, unless it is made of others."""
        return (self,)

    def owner_of(self, term: str) -> "Objective":
        """Which of the parts a term of the output belongs to."""
        return self

    def statistic(self, inputs: ObjectiveInputs) -> Float[Tensor, "G C"]:
        """What the other groups of the step must know of each group, if the loss couples them."""
        raise NotImplementedError(f"{self.name} does not couple groups")

    def responses_with_statistics(
        self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]
    ) -> Bool[Tensor, "G K"]:
        """The responses whose tokens need `top_logps` or `reference_kl`; 0 stands for the others'.

        These take a look at the whole vocabulary, so the fewer the faster.
        """
        return where

    def warning(self, scores: Float[Tensor, "G K"], where: Bool[Tensor, "G K"]) -> str | None:
        """What a user should know before training on such scores, in one line; usually nothing."""
        return None


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

    Weights and `counted` depend on data alone, so log-probs of 0 give them exactly, and tokens need
    not be there: every denominator of a step is known before its first backward pass.
    """
    nothing = torch.zeros_like(scores)
    no_tokens = nothing.new_zeros(0)
    no_ids = torch.zeros(0, dtype=torch.int64, device=scores.device)
    num_top = objective.num_top_logits
    with torch.no_grad():
        return objective(
            ObjectiveInputs(
                policy_logps=nothing,
                reference_logps=nothing,
                num_tokens=num_tokens,
                scores=scores,
                where=where,
                tokens=TokenInputs(
                    policy_logps=no_tokens,
                    reference_logps=no_tokens,
                    response=no_ids,
                    labels=no_ids,
                    weights=no_tokens,
                    top_logps=no_tokens.new_zeros(0, num_top),
                    top_ids=no_ids.new_zeros(0, num_top),
                    reference_kl=no_tokens,
                    noise=no_tokens,
                    differs=no_ids.bool(),
                ),
            )
        )
