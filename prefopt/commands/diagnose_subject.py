"""What `prefopt diagnose` looks at: a run with its recipe, or any model with what is said of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from transformers import PreTrainedModel

from prefopt.config import Recipe, load_recipe, recipe_of
from prefopt.data.prepare import prepare_data
from prefopt.data.section import DataSection, SourceSection
from prefopt.data.store import TokenStore
from prefopt.data.tokenize import Tokenizer
from prefopt.errors import UserError
from prefopt.models.load import load_policy
from prefopt.models.reference import FrozenCopy, load_reference_alone
from prefopt.models.section import AdapterSection, ModelSection, ReferenceSection
from prefopt.train.needs import check_needs
from prefopt.train.run_folder import MODEL_FILES, RECIPE_FILE


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A policy and what it is measured by."""

    recipe: Recipe
    """What the run was trained by, or what is taken for it."""
    model: ModelSection
    """The weights to look at, without an adapter."""
    adapter: AdapterSection | None
    run_folder: Path | None
    """Where metrics of the training lie; None for a model that has no recipe."""
    reference: ReferenceSection | None
    """None: nothing is known of what the policy started from."""

    def load_policy(self) -> PreTrainedModel | PeftModel:
        """With a log-prob head, and trainable what was trained."""
        return load_policy(self.model, self.adapter)

    def load_reference(self) -> FrozenCopy | None:
        """What the policy started from, or was measured against."""
        if self.reference is None:
            return None
        if self.run_folder is None:
            return load_reference_alone(self.reference, self.recipe.model, None)
        return load_reference_alone(self.reference, self.recipe.model, self.recipe.adapter)


def subject_of(
    target: str,
    overrides: Sequence[str],
    *,
    data: Sequence[str],
    objective: str | None,
    reference: str | None,
) -> Subject:
    """What a run's folder, a checkpoint, a model or an adapter stands for.

    Args:
        target: the folder or, for a model, a hub id.
        overrides: `key.sub=value` on top of the run's recipe, or of what is taken for it.
        data: files or data sets; needed where there is no recipe.
        objective: its name; that of the recipe, else dpo.
        reference: a model; that of the recipe, else unknown.

    Raises:
        UserError: if there is no model there, or no data is named.
    """
    folder = Path(target)
    run_folder = next((f for f in (folder, folder.parent) if (f / RECIPE_FILE).is_file()), None)
    if run_folder != folder and not folder.name.startswith("checkpoint-"):
        run_folder = None
    if run_folder is None:
        return _model(target, overrides, data, objective, reference)
    if not any((folder / name).is_file() for name in MODEL_FILES):
        raise UserError(
            f"{folder} holds a run without a trained model: it is not finished. "
            "Give one of its checkpoints, or go on with it by prefopt train --resume."
        )
    said = [f"objective={{name: {objective}}}"] if objective is not None else []
    recipe = load_recipe(run_folder / RECIPE_FILE, [*said, *overrides])
    is_adapter = recipe.adapter is not None
    own = {"path": str(folder), "revision": None}
    section = recipe.reference or ReferenceSection()
    return Subject(
        recipe=recipe,
        model=recipe.model if is_adapter else recipe.model.model_copy(update=own),
        adapter=AdapterSection(path=str(folder)) if is_adapter else None,
        run_folder=run_folder,
        reference=section if reference is None else ReferenceSection(path=reference),
    )


def _model(
    target: str,
    overrides: Sequence[str],
    data: Sequence[str],
    objective: str | None,
    reference: str | None,
) -> Subject:
    if not data:
        raise UserError(f"{target} has no recipe.yaml that names data. Add --data FILE.")
    is_adapter = (Path(target) / "adapter_config.json").is_file()
    base = PeftConfig.from_pretrained(target).base_model_name_or_path if is_adapter else target
    values: dict[str, Any] = {
        "model": {"path": base},
        "data": {"sources": [{"path": path} for path in data]},
        "objective": {"name": objective or "dpo"},
        # Nothing is trained and nothing written there.
        "training": {"output_dir": "unused"},
    }
    recipe = recipe_of(values, overrides)
    return Subject(
        recipe=recipe,
        model=recipe.model,
        adapter=AdapterSection(path=target) if is_adapter else None,
        run_folder=None,
        reference=None if reference is None else ReferenceSection(path=reference),
    )


def groups_of(subject: Subject, data: Sequence[str], tokenizer: Tokenizer) -> TokenStore:
    """The groups to look at: those of --data, else what the run held out, else what it read.

    Raises:
        UserError: if the data cannot be read, or says nothing to the objective.
    """
    section: DataSection = subject.recipe.data
    if data and subject.run_folder is not None:
        sources = tuple(SourceSection(path=path) for path in data)
        section = section.model_copy(update={"sources": sources, "evaluation": None})
    prepared = prepare_data(section, tokenizer)
    check_needs(subject.recipe.objective, prepared)
    return prepared.train if prepared.evaluation is None else prepared.evaluation
