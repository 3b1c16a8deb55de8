"""The `data:` section of a recipe."""

import os
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from prefopt.errors import UserError
from prefopt.section import Section

ScoreTransform = Literal["raw", "minmax", "rank"]
Keep = Literal["all", "best_worst", "best_random", "top_k"]
Role = Literal["forget", "retain"]
TooLong = Literal["drop", "cut_response", "error"]


class SourceSection(Section):
    """One data set: where it lies and how its rows are read."""

    path: str = Field(min_length=1)
    """A .json, .jsonl or .parquet file, a folder of them or saved by `datasets`, or a hub id."""
    name: str | None = None
    """Configuration of a hub data set; of no use, and so refused, for anything else."""
    split: str | None = None
    """Split of a hub data set or of a folder; unset means `train`. Refused for a single file."""
    format: str = "auto"
    """How a row becomes a record: a name of docs/data.md, or `auto` to tell by the columns."""
    columns: dict[str, str | None] = Field(default_factory=dict)
    """Column of the format -> column of the file; null hides a column from the format."""
    as_messages: bool = False
    """True turns text into a user and an assistant message, so that the chat template applies."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Passes over this source per epoch, above 0; 0.5 draws half of it, 2 shows it twice."""
    role: Role | None = None
    """What unlearning does with this source: `forget` gives every response the score 0, `retain`
    the score 1. Each role is a stream of its own, of which every step draws a fixed number of
    groups. A role for one source needs a role for all."""


class EvaluationSection(Section):
    """What is held out: a share of the training prompts, or data of its own."""

    fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the records to hold out, in (0, 1); all records of a prompt go to the same side."""
    num_groups: int | None = Field(default=None, ge=1)
    """Number of records to hold out; a few more where the last prompt has several."""
    sources: tuple[SourceSection, ...] | None = Field(default=None, min_length=1)
    """Data sets of their own; prompts that they share with the training data are reported."""

    @model_validator(mode="after")
    def _one_of_three(self) -> "EvaluationSection":
        given = [key for key in ("fraction", "num_groups", "sources") if getattr(self, key)]
        if len(given) != 1:
            got = " and ".join(given) or "none"
            raise UserError(
                f"data.evaluation: give exactly one of fraction, num_groups and sources, got {got}."
            )
        if any(source.weight != 1.0 for source in self.sources or ()):
            raise UserError(
                "data.evaluation.sources: weight has no effect on evaluation sources. Remove it."
            )
        return self


class DataSection(Section):
    """Which preferences are trained on, and what becomes of them before training."""

    sources: tuple[SourceSection, ...] = Field(min_length=1)
    """The data sets, at least one; several are mixed by their weights."""
    evaluation: EvaluationSection | None = None
    """What is held out for evaluation; unset means nothing."""
    scores: ScoreTransform = "raw"
    """`raw` keeps the annotator's numbers; `minmax` maps a record's scores to [0, 1]; `rank`
    replaces each by the number of responses that it beats, ties counting half."""
    keep: Keep = "all"
    """Responses that stay of each record: all, the best and the worst, the best and a random
    other one, or the `top_k` best."""
    top_k: int | None = Field(default=None, ge=1)
    """How many responses `keep: top_k` leaves, at least 1; refused for any other `keep`."""
    max_length: int = Field(default=1024, ge=2)
    """Most tokens of a prompt with one response, end-of-sequence included."""
    too_long: TooLong = "drop"
    """What happens beyond max_length: `drop` the record, `cut_response` on the right without a
    false end-of-sequence, or stop with an `error`. A prompt is never cut."""
    invalid: Literal["error", "drop"] = "error"
    """A row without a usable record (an empty response, a score that is no number): stop with an
    `error` that names it, or `drop` it and count it in the report."""
    num_workers: int = Field(default=1, ge=1)
    """Processes that tokenise, at least 1."""
    cache_dir: Path | None = None
    """Where records and tokens are kept; unset means $PREFOPT_CACHE or ~/.cache/prefopt."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Decides the held-out prompts and the responses of `keep: best_random`."""

    @model_validator(mode="after")
    def _roles_for_all_or_none(self) -> "DataSection":
        own = () if self.evaluation is None else self.evaluation.sources or ()
        roles = [source.role for source in (*self.sources, *own)]
        if None in roles and any(roles):
            raise UserError(
                f"data.sources: {roles.count(None)} of {len(roles)} sources have no role. "
                "Give a role to each source, those of data.evaluation included, or to none."
            )
        if any(roles) and self.scores != "raw":
            raise UserError(
                f"data.scores: {self.scores} has no effect where sources have roles, which are "
                "their scores. Remove it."
            )
        return self

    @property
    def roles(self) -> tuple[Role, ...]:
        """The roles of the training sources, in the order in which the recipe names them first."""
        return tuple(dict.fromkeys(source.role for source in self.sources if source.role))

    @model_validator(mode="after")
    def _top_k_belongs_to_keep(self) -> "DataSection":
        if self.keep == "top_k" and self.top_k is None:
            raise UserError("data.keep: top_k needs data.top_k, the number of responses to keep.")
        if self.keep != "top_k" and self.top_k is not None:
            raise UserError(
                f"data.top_k: has no effect with keep: {self.keep}. Remove it, or set keep: top_k."
            )
        return self

    def cache_folder(self) -> Path:
        """The folder of the cache, from this section, the environment or the default."""
        if self.cache_dir is not None:
            return self.cache_dir.expanduser()
        return default_cache_folder()


def default_cache_folder() -> Path:
    """The folder of the cache where no recipe says otherwise, from the environment or our own."""
    named = os.environ.get("PREFOPT_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "prefopt"
