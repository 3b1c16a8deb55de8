"""The recipe: everything that one YAML file says, checked as a whole before anything is loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import SerializeAsAny, field_validator, model_validator

from prefopt.data.section import DataSection
from prefopt.errors import UserError, check_section
from prefopt.models.section import AdapterSection, ModelSection, ReferenceSection
from prefopt.objectives import Objective, build
from prefopt.section import Section
from prefopt.train.diagnostics_section import DiagnosticsSection
from prefopt.train.section import TrainingSection
from prefopt.yaml_text import put_overrides, read_mapping


class Recipe(Section):
    """A whole training run."""

    model: ModelSection
    """The policy to start from."""
    data: DataSection
    """The preferences to learn from."""
    objective: SerializeAsAny[Objective]
    """What is optimised: a name and its parameters."""
    reference: ReferenceSection | None = None
    """What log-ratios are measured against, where the objective needs them; by default the policy
    as it starts."""
    adapter: AdapterSection | None = None
    """A LoRA adapter to train; without this section the weights themselves are trained."""
    training: TrainingSection
    """How to train."""
    diagnostics: DiagnosticsSection | None = None
    """What is measured while training; without this section nothing is, and it costs nothing."""

    @field_validator("objective", mode="before")
    @classmethod
    def _build_objective(cls, section: Any) -> Any:
        if isinstance(section, Objective):
            return section
        if not isinstance(section, Mapping):
            raise UserError(f"objective should be a mapping with a name, got {section!r}.")
        return build(section)

    @model_validator(mode="after")
    def _sections_fit(self) -> "Recipe":
        if self.reference is not None and not self.objective.needs_reference:
            raise UserError(
                f"reference has no effect: {self.objective.name} needs none. Remove the section."
            )
        self._cache_fits()
        self._compile_fits()
        self._normalising_fits()
        self._roles_fit()
        arguments = self.training.arguments
        if self.data.evaluation is None:
            if str(arguments.get("eval_strategy", "no")) != "no":
                raise UserError(
                    "training.eval_strategy needs held-out data. Add data.evaluation, such as "
                    "{fraction: 0.05}, or remove the key."
                )
            if self.training.early_stopping_patience is not None:
                raise UserError(
                    "training.early_stopping_patience needs held-out data. Add data.evaluation."
                )
        return self

    def _cache_fits(self) -> None:
        """Raise where log-probs are to be kept that the objective could not use."""
        always = self.reference is not None and self.reference.cache == "always"
        if always and self.objective.needs_reference_distribution:
            raise UserError(
                f"reference.cache: always has no effect: {self.objective.name} compares whole "
                "distributions, which are not kept. Remove the key."
            )

    def _compile_fits(self) -> None:
        """Raise where layers are to be compiled that cannot be."""
        if self.training.torch_compile and self.model.quantization:
            raise UserError(
                "training.torch_compile does not go with model.quantization. Remove one of them."
            )

    def _normalising_fits(self) -> None:
        """Raise where gradients are to be made equally long that are not those of log-probs."""
        objective = self.objective
        of_distributions = objective.num_top_logits or objective.needs_reference_distribution
        if self.training.normalise_gradients and of_distributions:
            raise UserError(
                f"training.normalise_gradients does not go with {objective.name}, which learns "
                "from whole distributions too. Remove the key."
            )

    def _roles_fit(self) -> None:
        """Raise where roles say nothing to the objective, or groups_per_step to the roles."""
        roles, name = self.data.roles, self.objective.name
        if roles and self.objective.needs != "labels":
            raise UserError(
                f"data.sources: a role has no effect with objective.name: {name}, which reads no "
                "labels. Remove the roles, or choose an objective that forgets, such as npo."
            )
        counts = self.training.groups_per_step
        if isinstance(counts, dict) and set(counts) != set(roles):
            raise UserError(
                f"training.groups_per_step gives numbers for {', '.join(counts) or 'nothing'}, but "
                f"the roles of data.sources are {', '.join(roles) or 'none'}. "
                "Give a number for each role, or one for all."
            )

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default filled in, in plain types that YAML can hold."""
        return self.model_dump(mode="json", exclude_none=True)


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with `key.sub=value` overrides put in before it is checked.

    Raises:
        UserError: for the first thing that is wrong, with its key or place in the file.
    """
    keys = "model, data, objective, training"
    values = read_mapping(path, what="recipe", keys=keys)
    return recipe_of(values, overrides)


def recipe_of(values: dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from plain values, with `key.sub=value` overrides put in before it is checked.

    Raises:
        UserError: for the first thing that is wrong, with its key.
    """
    put_overrides(values, overrides)
    return check_section(Recipe, values, "")
