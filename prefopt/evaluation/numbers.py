"""The shape of report.json: plain values, every number with its interval and what it is over.

A *method* is what is compared: an objective with its settings, trained with one or several seeds;
each of its seeds is a system of its own. Shares and win rates are in [0, 1].
"""

from typing import Any, Literal, NotRequired, TypedDict

SCHEMA = "prefopt/report/1"

Outcome = Literal["better", "worse", "no difference seen"]


class Estimate(TypedDict):
    """A number with its 95 % interval."""

    value: float
    low: float | None
    """None, as `high`, where there is too little to say."""
    high: float | None
    n: int
    unit: str
    """What n counts, in the plural: prompts, pairs, samples, seeds."""


class Method(TypedDict):
    """One row of every table."""

    name: str
    kind: Literal["baseline", "candidate", "sanity"]
    """Sanity rows show what a judge can be fooled by: a constant answer, the longest answer."""
    settings: dict[str, Any]
    seeds: list[int]
    length: Estimate
    """Of its answers, in characters."""
    length_ratio: Estimate | None
    """To the baseline's answer to the same prompt; None for the baseline."""
    share_cut: Estimate
    """Answers cut by the limit of tokens."""
    share_empty: Estimate


class PairNumbers(TypedDict):
    """Method a against method b."""

    a: str
    b: str
    win: Estimate
    """Probability that a's answer is better, ties counted half, both orders averaged."""
    p: float
    """Of a sign-flip test over prompts; with several seeds, of the spread over seeds if larger."""
    p_holm: float
    """The same after Holm's correction over the whole matrix."""


class BaselineNumbers(TypedDict):
    """One method against the baseline."""

    method: str
    win: Estimate
    length_controlled: Estimate | None
    """LC (prefopt): at equal lengths, by the Bradley-Terry model."""
    p: float
    p_holm: float
    """After Holm's correction over all candidates."""
    outcome: Outcome
    win_if_missing_lost: NotRequired[float]
    """Win rate if the method had lost all that the judge did not answer, and won it."""
    win_if_missing_won: NotRequired[float]


class Strength(TypedDict):
    """Bradley-Terry strength, at equal lengths and slots."""

    method: str
    logit: Estimate
    """Above the baseline's, which is 0."""
    win_against_baseline: Estimate
    rank: int
    rank_low: int
    """The best rank that the interval allows, and `rank_high` the worst."""
    rank_high: int


class ScoreNumbers(TypedDict):
    """A judge's absolute scores of one method."""

    method: str
    mean: Estimate
    risk_averse: Estimate
    """Mean over prompts of mean minus lower semi-deviation."""
    by_category: dict[str, Estimate]
    by_turn: dict[str, Estimate]


class Coverage(TypedDict):
    """How many questions were answered."""

    num_asked: int
    num_ok: int
    share: float
    by_status: dict[str, int]


class OrderNumbers(TypedDict):
    """What the order of showing does."""

    first_slot_rate: Estimate
    """Share of the first slot's wins, ties half; 0.5 if the order has no effect."""
    consistent_share: Estimate
    """Share of pairs with the same verdict in both orders."""
    label_mass: Estimate | None


class Detectable(TypedDict):
    """What difference in win rate would be seen 8 times of 10, at a level of 5 %."""

    standard_error: float
    one_test: float
    num_tests: int
    all_tests: float
    """With Holm's correction, in the worst case."""


class JudgeNumbers(TypedDict):
    """Everything that one judge says."""

    name: str
    identity: dict[str, Any]
    """Backend, model, prompt and parameters."""
    note: str | None
    coverage: Coverage
    order: OrderNumbers | None
    win_matrix: list[PairNumbers]
    """Every two methods once."""
    against_baseline: list[BaselineNumbers]
    strengths: list[Strength] | None
    length_effect: Estimate | None
    """On the logit scale: of one standard deviation of the length difference, squashed by tanh."""
    slot_effect: Estimate | None
    """On the logit scale: of standing first."""
    scores: list[ScoreNumbers] | None
    intransitive_share: Estimate | None
    """Of triples of methods on a prompt: a beats b, b beats c, c beats a."""
    conflict_share: Estimate | None
    """Of pairs of answers: better by pair, worse by score."""
    detectable: Detectable | None


class FrontierPoint(TypedDict):
    """One trained policy."""

    method: str
    seed: int
    settings: dict[str, Any]
    is_selected: bool
    kl: Estimate
    """KL(policy || start) per answer in nats, on the policy's own samples."""
    quality: Estimate
    """What `quality_name` of the report says."""


class MatchedRow(TypedDict):
    """Quality of a method where its KL is that of the others."""

    method: str
    quality: Estimate | None
    why_not: str | None


class Displacement(TypedDict):
    """What became of the log-probs of held-out responses, in nats."""

    method: str
    chosen: Estimate
    rejected: Estimate
    share_both_fall: Estimate


class SweepPoint(TypedDict):
    """A setting that was tried, on validation prompts."""

    method: str
    settings: dict[str, Any]
    validation: Estimate
    is_selected: bool


class ExampleAnswer(TypedDict):
    """What one method said."""

    method: str
    turns: list[str]
    score: float | None
    """By the first judge: probability of a win against the baseline, or its score."""


class Example(TypedDict):
    """One prompt with the answers of all methods side by side."""

    prompt_id: str
    category: str | None
    turns: list[str]
    answers: list[ExampleAnswer]


class Saved(TypedDict):
    """What sharing saved."""

    num_runs: int
    num_reference_groups: int
    """Groups whose reference log-probs were computed."""
    num_reference_groups_alone: int
    """Groups that would have been computed if every run had computed its own."""
    sentence: str


class Report(TypedDict):
    """The whole of report.json."""

    schema: str
    title: str
    protocol: str
    """Such as: AlpacaEval protocol with judge X."""
    made_at: str
    command: str
    versions: dict[str, str]
    num_prompts: int
    num_seeds: int
    baseline: str
    quality_name: str
    """What frontier, sweep and matched_kl measure, such as: gold score."""
    verdict: list[str]
    """Plain sentences, the most important first."""
    notes: list[str]
    """What is left out or limited, and why."""
    methods: list[Method]
    judges: list[JudgeNumbers]
    frontier: list[FrontierPoint]
    matched_kl_at: float | None
    matched_kl: list[MatchedRow]
    sweep: list[SweepPoint]
    ranking: dict[str, dict[str, Estimate]]
    """Method -> name of a number over held-out pairs -> number."""
    displacement: list[Displacement]
    entanglement: dict[str, dict[str, Estimate]]
    """Method -> name -> number, as `prefopt diagnose` names them."""
    saved: Saved | None
    examples: list[Example]
