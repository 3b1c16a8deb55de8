"""What one comparison file says: which methods, how they are trained, and how they are judged."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SerializeAsAny, field_validator, model_validator

from prefopt.errors import UserError, check_section, did_you_mean
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.evaluation.judge.section import AnyJudgeSection, read_section
from prefopt.section import Section
from prefopt.yaml_text import read_mapping

START = "start"
"""Name of what all methods start from, untrained by any of them."""

CONSTANT, LONGEST = "constant", "longest"
"""Sanity rows: what a judge can be fooled by."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]*$", max_length=60)]
"""Of a method or judge: it names files and folders."""


class MethodSection(Section):
    """One method: what differs from the base recipe, and which settings are tried."""

    recipe: Path | None = None
    """A recipe of its own, instead of the base recipe."""
    sections: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Sections of a recipe, such as {objective: {name: simpo}}, put over those of the base; an
    objective replaces that of the base."""
    grid: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    """Key of a recipe, such as objective.beta -> the values to try; all combinations are."""

    @field_validator("grid")
    @classmethod
    def _no_empty_axis(cls, grid: dict[str, tuple[Any, ...]]) -> dict[str, tuple[Any, ...]]:
        for key, values in grid.items():
            if not values:
                raise ValueError(f"has no value for {key}")
            if len({repr(value) for value in values}) < len(values):
                raise ValueError(f"tries a value of {key} twice")
        return grid


class PromptsSection(Section):
    """What the trained policies answer."""

    test: Path
    """File of the prompts that results are reported on, in any format of docs/evaluation.md."""
    validation: Path | None = None
    """File of the prompts that settings are picked by, none of which is in `test`; needed where a
    method tries several."""
    references: Path | None = None
    """File of right answers in FastChat's layout, for judges that are shown one."""


class KlSection(Section):
    """How KL(policy || start) is measured, on answers of the policy itself."""

    num_samples: int = Field(default=1, ge=1)
    """Answers per prompt, sampled at temperature 1."""
    max_prompts: int = Field(default=256, ge=2)
    """The first so many of the test prompts are used."""
    max_new_tokens: int = Field(default=256, ge=1)
    """Most tokens of such an answer; the KL is that of answers cut there."""


class EntanglementSection(Section):
    """Which gradients are looked at."""

    groups: int = Field(default=16, ge=1)
    """Held-out groups whose Gram is measured, for each method."""


class ComparisonSection(Section):
    """A whole comparison."""

    output_dir: Path
    """The folder of all runs, answers, judgments and the report."""
    title: str = "Comparison of objectives"
    """Heading of the report."""
    base: Path | None = None
    """The recipe that methods share; they say what differs."""
    methods: dict[Name, MethodSection] = Field(min_length=1)
    """Name -> what is compared."""
    seeds: tuple[int, ...] = Field(default=(0,), min_length=1)
    """Every method is trained once with each of these, which also gives the order of the data, the
    same for all methods. Conclusions about methods need three or more."""
    prompts: PromptsSection
    """What policies answer after training."""
    generation: GenerationSection = GenerationSection()
    """How they answer."""
    judges: dict[Name, SerializeAsAny[AnyJudgeSection]] = Field(min_length=1)
    """Name -> who compares the answers; the first one also picks settings on validation prompts."""
    judges_score: bool = False
    """Ask judges for a score of each answer too, beside pairs."""
    baseline: str = START
    """What methods are compared with: `start`, or one of the methods."""
    kl: KlSection | None = KlSection()
    """How far policies went from the start; null leaves it out."""
    entanglement: EntanglementSection | None = None
    """Whose gradients are looked at in the report; without it nobody's are."""
    launcher: tuple[str, ...] = ()
    """Words put before `-m prefopt train RECIPE`, instead of this Python: accelerate launch with
    its options, or srun and the like, which return when the run is over."""
    num_jobs: int = Field(default=1, ge=1)
    """Runs that train at once."""
    allow_missing: bool = False
    """Report even if over 1 % of a judge's verdicts are missing."""

    @field_validator("judges", mode="before")
    @classmethod
    def _each_of_its_backend(cls, judges: Any) -> Any:
        if not isinstance(judges, dict):
            return judges
        return {
            name: read_section(each, f"judges.{name}") if isinstance(each, dict) else each
            for name, each in judges.items()
        }

    @field_validator("seeds")
    @classmethod
    def _different_seeds(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("should be different numbers from 0 up")
        return seeds

    @model_validator(mode="after")
    def _names_are_known(self) -> "ComparisonSection":
        taken = {START: "the start", CONSTANT: "a sanity row", LONGEST: "a sanity row"}
        for name in taken.keys() & self.methods.keys():
            raise UserError(f"methods.{name}: {taken[name]} has that name. Choose another one.")
        if self.baseline != START and self.baseline not in self.methods:
            known = did_you_mean(self.baseline, [START, *self.methods])
            raise UserError(f"baseline: there is no method '{self.baseline}'. {known}")
        for name, method in self.methods.items():
            if method.recipe is None and self.base is None:
                raise UserError(
                    f"methods.{name} has no recipe. Give it one, or name one for all as base."
                )
            if method.grid and self.prompts.validation is None:
                raise UserError(
                    f"methods.{name}.grid: settings are picked by prompts of their own, never by "
                    "those of the results. Give prompts.validation."
                )
        return self


def load_comparison(path: Path) -> ComparisonSection:
    """The comparison in a YAML file.

    Raises:
        UserError: for the first thing that is wrong.
    """
    values = read_mapping(path, what="comparison", keys="methods, prompts and judges")
    return check_section(ComparisonSection, values, "")
