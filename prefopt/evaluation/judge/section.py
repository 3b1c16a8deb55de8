"""What a recipe says of a judge."""

import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from prefopt.errors import UserError, check_section, did_you_mean
from prefopt.section import Section

# The labels of choices and levels are letters.
_MOST_LEVELS = 26


class AnyJudgeSection(Section):
    """What all judges have in common."""

    name: str | None = None
    """How tables call this judge; by default the model's name or the backend's."""
    max_calls: int | None = Field(default=None, ge=1)
    """The most questions to put to it in one run; what is left is asked in the next run."""


class ScaledSection(AnyJudgeSection):
    """A judge that can give scores."""

    levels: tuple[float, ...] = tuple(float(level) for level in range(1, 11))
    """The scores it can give, lowest first; 1 to 10 as in MT-Bench. At most 26."""

    @field_validator("levels")
    @classmethod
    def _levels_rise(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        if not 2 <= len(levels) <= _MOST_LEVELS or list(levels) != sorted(set(levels)):
            raise ValueError(f"should be 2 to {_MOST_LEVELS} numbers, each above the one before")
        return levels


class TypedSection(ScaledSection):
    """A judge that is asked by typed questions, choice and score, and answers by probabilities."""

    ties: bool = False
    """Offer a tie as third choice. Off: a judge that sees no difference says one half."""


class EndpointSection(AnyJudgeSection):
    """A judge behind a URL."""

    model: str
    """The name by which the endpoint knows the model."""
    base_url: str | None = None
    """Where the endpoint is, such as http://127.0.0.1:8000/v1; null takes the openai package's
    own."""
    api_key_env: str = "OPENAI_API_KEY"
    """NAME of the environment variable that holds the key; never the key. Where a base_url is
    given, the default variable may be unset."""
    num_in_flight: int = Field(default=16, ge=1, le=1024)
    """How many questions are asked at the same time."""
    timeout: float = Field(default=120.0, gt=0)
    """Seconds after which one attempt is given up."""
    max_retries: int = Field(default=5, ge=0)
    """Further attempts after a lost connection, a timeout or status 408, 409, 429 or 5xx; waits as
    Retry-After says, else longer each time."""

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not re.fullmatch("[A-Z_][A-Z0-9_]{0,63}", name):
            # The value may be a key, so it is not repeated.
            raise UserError(
                "judge.api_key_env must be the NAME of an environment variable in capitals, not "
                "the key."
            )
        return name


class OpenaiChatSection(EndpointSection, ScaledSection):
    """A chat model, by the log-probs of its label or by the text of its verdict."""

    backend: Literal["openai_chat"]
    """Chat completions: vLLM, SGLang, llama.cpp, OpenAI and others."""
    mode: Literal["auto", "logprobs", "text"] = "auto"
    """logprobs: probabilities of the labels; a reply without them is missing. text: shares of the
    verdicts of `num_samples` replies. auto: logprobs, and text if the first reply has none, which
    is said and recorded."""
    top_logprobs: int = Field(default=20, ge=1)
    """How many tokens' log-probs to ask for; vLLM and OpenAI give 20 at most."""
    num_samples: int = Field(default=1, ge=1)
    """Replies per question in mode text."""
    temperature: float | Literal["auto", "omit"] = "auto"
    """auto: 1 where log-probs are read or several replies taken, else 0. omit: not sent, for models
    that refuse it."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Longest reply; by default 1 where only a label is asked for, else 2048."""
    token_limit_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """How the endpoint calls that limit; newer OpenAI models know only the longer name."""
    templates: str | None = None
    """File of prompts: MT-Bench's judge_prompts.jsonl, or a .txt in AlpacaEval's ChatML form. null
    takes short ones of our own."""
    labels: tuple[str, ...] | None = None
    """What the judge says for: first better, second better and, if a third is given, tie. By
    default A, B, C for MT-Bench's file, m, M for AlpacaEval's, A, B for our own."""
    extra_body: dict[str, Any] = Field(default_factory=dict)
    """Further fields of the request, such as chat_template_kwargs: {enable_thinking: false}."""

    @model_validator(mode="after")
    def _probabilities_are_those_of_the_model(self) -> "OpenaiChatSection":
        if self.mode != "text" and self.temperature not in ("auto", "omit", 1.0):
            raise UserError(
                "judge.temperature must be 1 where log-probs are read: some servers divide them by "
                "it. Remove it, or set judge.mode: text."
            )
        if self.num_samples > 1 and self.temperature == 0:
            raise UserError(
                "judge.num_samples: at temperature 0 all samples are the same. Set it to 1."
            )
        labels = self.labels
        if labels is not None and (len(labels) not in (2, 3) or len(set(labels)) != len(labels)):
            raise UserError("judge.labels: give two different labels, and a third one for a tie.")
        return self


class DecisionsSection(EndpointSection, TypedSection):
    """OpenAI's Decisions: POST /v1/decisions."""

    backend: Literal["decisions"]
    """Typed questions; the probability of every choice comes back."""


class SystemOneSection(EndpointSection, TypedSection):
    """System One: POST /v1/systemone, as `transformers serve` answers it."""

    backend: Literal["systemone"]
    """Typed questions; the probability of every choice comes back."""


class HfDecisionSection(TypedSection):
    """The decision pipeline of transformers, in this process."""

    backend: Literal["hf_decision"]
    """Any causal language model whose tokenizer has a token for each of A, B, C and so on."""
    model: str
    """Folder or hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights; auto takes the checkpoint's."""
    device: str | None = None
    """Such as cuda:0 or cpu; null takes the GPU if there is one."""


class RewardModelSection(AnyJudgeSection):
    """A reward model: P(first better) = sigmoid(its reward minus the other's)."""

    backend: Literal["reward_model"]
    """A sequence classifier with one logit; prompt and answer go through its chat template."""
    model: str
    """Folder or hub id."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of the weights; auto takes the checkpoint's."""
    device: str | None = None
    """Such as cuda:0 or cpu; null takes the GPU if there is one."""
    max_length: int | None = Field(default=None, ge=1)
    """Most tokens of prompt and answer; longer ones are missing judgments, never cut. null: as many
    as the model has positions."""
    trust_remote_code: bool = False
    """Run Python code that lies with the model."""


class RuleSection(ScaledSection):
    """A function of Python, with biases on request to try statistics on."""

    backend: Literal["rule"]
    """For known rules, and for tests."""
    function: str
    """package.module:function or file.py:function, called with texts: (prompt, answer) -> score, or
    (prompt, first, second) -> probability that the first is better, of the turn that is judged."""
    form: Literal["score", "pair"] = "score"
    """Which of the two the function is."""
    temperature: float = Field(default=0.0, ge=0)
    """Of a score: P(first better) = sigmoid((score - other's score) / temperature); 0: the higher
    score wins, equal ones tie."""
    slot_bias: float = 0.0
    """Logits for standing first."""
    length_bias: float = 0.0
    """Logits for being longer, times tanh(difference in characters / length_scale)."""
    length_scale: float = Field(default=100.0, gt=0)
    """Characters at which a difference in length begins to saturate."""
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of random logits, drawn anew for each question and order."""
    drop_rate: float = Field(default=0.0, ge=0, lt=1)
    """Share of questions that it refuses."""
    seed: int = Field(default=0, ge=0)
    """Of noise and refusals; the same question gets the same draw."""

    @model_validator(mode="after")
    def _biases_need_logits(self) -> "RuleSection":
        biased = [key for key in ("slot_bias", "length_bias", "noise") if getattr(self, key)]
        if biased and self.form == "score" and self.temperature == 0:
            raise UserError(
                f"judge.{biased[0]} is in logits, and a hard decision has none. "
                "Set judge.temperature above 0."
            )
        return self


class ReplaySection(AnyJudgeSection):
    """What was judged before, looked up by the texts."""

    backend: Literal["replay"]
    """Costs nothing."""
    path: str
    """A judgments file (.jsonl) of prefopt, or annotations.json of AlpacaEval."""


BACKENDS: dict[str, type[AnyJudgeSection]] = {
    "openai_chat": OpenaiChatSection,
    "decisions": DecisionsSection,
    "systemone": SystemOneSection,
    "hf_decision": HfDecisionSection,
    "reward_model": RewardModelSection,
    "rule": RuleSection,
    "replay": ReplaySection,
}


def read_section(values: Mapping[str, Any], where: str = "judge") -> AnyJudgeSection:
    """The section of a judge, of the class that its `backend` names.

    Raises:
        UserError: for the first key that is unknown, missing or wrong.
    """
    backend = values.get("backend")
    if not isinstance(backend, str) or backend not in BACKENDS:
        said = "is missing" if backend is None else f"knows no '{backend}'"
        raise UserError(f"{where}.backend {said}. {did_you_mean(str(backend), BACKENDS)}")
    return check_section(BACKENDS[backend], values, where)
