"""The types that cross borders between the packages of prefopt.

Axes, the same letters everywhere:

    G  groups in a micro-batch: one prompt and its responses each
    K  response slots per group; a group with fewer responses leaves its last slots unused
    R  responses in a micro-batch (the used slots, in order)
    T  tokens of the flat layout
    N  scored tokens: every token of every response, end-of-sequence included
    M  scored tokens with statistics of the vocabulary; L the other ones
    S  groups in an optimiser step
    C  columns of an objective's step statistic
    V  vocabulary

Log-probs are natural logarithms, in float32 or wider, *summed* over response tokens unless the
name says `mean`. `score` is the annotator's number, `reward` the implicit one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Message = dict[str, Any]
"""One turn of a conversation: `role`, `content`, and whatever else the chat template reads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceRecord:
    """A prompt with its K responses and their scores, as the data layer hands it on.

    Text and messages do not mix: either the prompt and all responses are text, or all are messages.
    """

    id: str
    """Names the record in reports: `file:row`, or the data's own id."""
    prompt: str | list[Message]
    responses: tuple[str | list[Message], ...]
    """K >= 1 continuations of the prompt; each message list holds what follows the prompt."""
    scores: tuple[float, ...]
    """K finite numbers, higher is better, ties allowed. A pair is (1, 0); a label is 1 or 0."""
    is_graded: bool = True
    """False where the scores only stand for which response is preferred, or for a label."""
    token_weights: tuple[tuple[float, ...], ...] | None = None
    """Of each response, a number per token, end-of-sequence included."""
    tools: list[Any] | None = None
    """Tool descriptions that the chat template renders."""
    template_kwargs: Mapping[str, Any] | None = None
    """Extra arguments of the chat template for this record."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizedRecord:
    """A record as token ids: one prompt sequence that all its responses continue exactly."""

    id: str
    prompt_ids: Int[Tensor, " P"]
    response_ids: tuple[Int[Tensor, " _"], ...]
    """K sequences, none empty; each ends with end-of-sequence unless it was cut."""
    scores: tuple[float, ...]
    token_weights: tuple[Float[Tensor, " _"], ...] | None = None
    reference_logps: tuple[Float[Tensor, " _"], ...] | None = None
    """This, in float32, and `token_weights`: K sequences as long as those of the ids; None where
    the data has no weights, or the reference's log-probs are not known before training."""

    @property
    def num_prompt_tokens(self) -> int:
        """P, at least 1: the last prompt token predicts the first of every response."""
        return self.prompt_ids.shape[0]

    @property
    def num_response_tokens(self) -> tuple[int, ...]:
        """Scored tokens of each response."""
        return tuple(ids.shape[0] for ids in self.response_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where prompts and responses lie in a flat row `[prompts | responses grouped by prompt]`.

    Plain integers on the host, so that reading them never waits for a device.
    """

    prompt_lengths: tuple[int, ...]
    """G lengths, in tokens."""
    response_lengths: tuple[int, ...]
    """R lengths, ordered by slot."""
    response_slots: tuple[int, ...]
    """R ascending slots g * K + k."""
    num_slots: int
    """K."""

    @property
    def num_groups(self) -> int:
        """G."""
        return len(self.prompt_lengths)

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens before the first response."""
        return sum(self.prompt_lengths)

    @property
    def num_tokens_per_group(self) -> tuple[int, ...]:
        """Scored tokens of each group."""
        counts = [0] * self.num_groups
        for slot, length in zip(self.response_slots, self.response_lengths, strict=True):
            counts[slot // self.num_slots] += length
        return tuple(counts)


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupBatch:
    """A micro-batch: G groups in one flat row, and what is known of their responses."""

    input_ids: Int[Tensor, " T"]
    position_ids: Int[Tensor, " T"]
    """Positions restart at 0 in every prompt and at its prompt's length in every response."""
    layout: Layout
    targets: Int[Tensor, " N"]
    """The scored tokens: all response tokens, in the order of the row."""
    response_of_token: Int[Tensor, " N"]
    """Slot g * K + k of each scored token, ascending."""
    where: Bool[Tensor, "G K"]
    """True where a slot holds a response."""
    scores: Float[Tensor, "G K"]
    """The annotator's numbers; 0 in unused slots."""
    num_tokens: Int[Tensor, "G K"]
    """Scored tokens per response; 0 in unused slots."""
    ids: tuple[str, ...]
    """G record ids."""
    token_weights: Float[Tensor, " N"] | None = None
    """Weights given by the data, 1 where it says nothing; None if none of the data has any."""
    reference_logps: Float[Tensor, " N"] | None = None
    noise: Float[Tensor, " N"] | None = None
    differs: Bool[Tensor, " N"] | None = None
    """This, `noise` and `reference_logps` as in TokenInputs, where they are read and known."""
    statistic_tokens: Int[Tensor, " M"] | None = None
    """Positions among the scored tokens of those that need statistics of the vocabulary."""
    plain_tokens: Int[Tensor, " L"] | None = None
    """Positions of all others; both None where the objective needs no such statistics."""

    def to(self, device: torch.device) -> "GroupBatch":
        """The same batch on another device; dtypes stay as they are."""
        moved: dict[str, Any] = {
            field.name: value.to(device, non_blocking=True)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return replace(self, **moved)

    def to_groups(self, per_response: Float[Tensor, " R"]) -> Float[Tensor, "G K"]:
        """Values of the R responses in their slots, 0 in unused slots."""
        slots = torch.zeros_like(self.where, dtype=per_response.dtype)
        return slots.masked_scatter(self.where, per_response)

    def sum_over_tokens(self, per_token: Float[Tensor, " N"]) -> Float[Tensor, "G K"]:
        """Sums of per-token values over each response, 0 in unused slots."""
        # An unused slot is a segment of length 0. `unsafe` skips a check that waits for the device.
        sums = torch.segment_reduce(
            per_token, "sum", lengths=self.num_tokens.flatten(), unsafe=True
        )
        return sums.view_as(self.where)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenInputs:
    """What an objective sees of single tokens, if its traits ask for it."""

    policy_logps: Float[Tensor, " N"]
    """Log-prob of each scored token under the policy, with gradient."""
    reference_logps: Float[Tensor, " N"] | None
    response: Int[Tensor, " N"]
    """Slot g * K + k of each token, ascending."""
    labels: Int[Tensor, " N"]
    """The token's id."""
    weights: Float[Tensor, " N"] | None = None
    """Weights given by the data."""
    top_logps: Float[Tensor, "N k"] | None = None
    """The k + 1 highest log-probs of each position, with gradient."""
    """0 for tokens of responses that the objective does not ask it for."""
    top_ids: Int[Tensor, "N k"] | None = None
    """Their tokens, most likely first."""
    reference_kl: Float[Tensor, " N"] | None = None
    """KL(reference || policy) over the vocabulary at each position, in nats, with gradient; 0 for
    tokens of responses that the objective does not ask it for."""
    noise: Float[Tensor, " N"] | None = None
    """Uniform in [0, 1), keyed by seed, step, record and position: no split changes a draw."""
    differs: Bool[Tensor, " N"] | None = None
    """True where a token of the best response is not in the worst one, and the other way round."""

    def read(self, name: str) -> Tensor:
        """One of the fields that only some objectives ask for.

        Raises:
            ValueError: if it was not given.
        """
        value: Tensor | None = getattr(self, name)
        if value is None:
            raise ValueError(
                f"this objective reads tokens.{name}; set the trait that asks for it on the "
                "objective and pass it."
            )
        return value


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveInputs:
    """What an objective sees of G groups. Results come in the dtype of `policy_logps`."""

    policy_logps: Float[Tensor, "G K"]
    """Summed log-prob of each response under the policy, with gradient."""
    reference_logps: Float[Tensor, "G K"] | None
    """The same under the reference, without gradient; ignored by objectives that need none."""
    num_tokens: Int[Tensor, "G K"]
    """Scored tokens of each response, end-of-sequence included."""
    scores: Float[Tensor, "G K"]
    """The annotator's numbers, higher is better."""
    where: Bool[Tensor, "G K"]
    """True where a slot holds a response; everything else of an unused slot is arbitrary."""
    tokens: TokenInputs | None = None
    step_statistics: Float[Tensor, "S C"] | None = None
    """Statistics of all groups of the step, for coupled objectives; None: this call is the step."""

    def token_inputs(self) -> TokenInputs:
        """The tokens.

        Raises:
            ValueError: if none were given.
        """
        if self.tokens is None:
            raise ValueError(
                "this objective reads single tokens; "
                "set needs_tokens = True on the objective and pass tokens."
            )
        return self.tokens

    def sum_over_tokens(self, per_token: Float[Tensor, " N"]) -> Float[Tensor, "G K"]:
        """Sums of per-token values over each response, 0 in unused slots."""
        slots = self.token_inputs().response
        # Sums of integers come out the same in any order, and so does a sum over segments.
        num_slots = self.where.numel()
        lengths = slots.new_zeros(num_slots).index_add(0, slots, torch.ones_like(slots))
        sums = torch.segment_reduce(per_token, "sum", lengths=lengths, unsafe=True)
        return sums.view_as(self.where)

    def log_ratios(self) -> Float[Tensor, "G K"]:
        """Log pi(y|x) - log pi_ref(y|x) per response, in nats; 0 in unused slots.

        Raises:
            ValueError: if no reference log-probs were given.
        """
        if self.reference_logps is None:
            raise ValueError(
                "log_ratios() needs reference log-probs; "
                "set needs_reference = True on the objective and pass reference_logps."
            )
        reference_logps = self.reference_logps.to(self.policy_logps.dtype)
        # Unused slots may hold anything, inf and NaN included: subtract only what is real.
        policy_logps = self.policy_logps.masked_fill(~self.where, 0.0)
        return policy_logps - reference_logps.masked_fill(~self.where, 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """One summand of an objective, with a denominator of its own over the optimiser step."""

    losses: Float[Tensor, " G"]
    """Unreduced losses, in nats."""
    weight: Float[Tensor, " G"]
    """What each group adds to the denominator; a function of the data alone."""
    coefficient: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectiveOutput:
    """What an objective says of G groups.

    The step's loss is the sum over terms of coefficient * sum(losses) / sum(weight), both sums over
    the whole optimiser step. Without `terms` there is one term whose weight is `counted`.
    """

    losses: Float[Tensor, " G"]
    """Unreduced loss of each group, 0 where it is not counted."""
    counted: Bool[Tensor, " G"]
    """True where the group says something to this objective."""
    rewards: Float[Tensor, "G K"]
    """Implicit reward of each response, detached, 0 in unused slots."""
    metrics: Mapping[str, Float[Tensor, " G"]]
    """Further numbers per group, detached; NaN where a group defines none."""
    terms: Mapping[str, Term] | None = None

    def all_terms(self) -> Mapping[str, Term]:
        """The terms of the loss, also where there is only the one."""
        if self.terms is not None:
            return self.terms
        return {"loss": Term(losses=self.losses, weight=self.counted.to(self.losses.dtype))}
