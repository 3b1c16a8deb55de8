"""The parts of a run that its recipe names: models, reference, and what each process does."""

from peft import PeftModel
from transformers import PreTrainedModel, TrainingArguments

from prefopt.config import Recipe
from prefopt.data.plan import StepPlan, Stream
from prefopt.data.prepare import PreparedData
from prefopt.data.store import TokenStore
from prefopt.errors import UserError
from prefopt.models.compile import compile_layers
from prefopt.models.layout import LayoutName
from prefopt.models.load import load_policy
from prefopt.models.reference import Reference, load_reference
from prefopt.models.section import ReferenceSection
from prefopt.train.reference_identity import ReferenceIdentity, identify
from prefopt.train.steps import StepDataset


def load_models(recipe: Recipe) -> tuple[PreTrainedModel | PeftModel, Reference | None]:
    """The policy, and the reference if the objective needs one."""
    needs_reference = recipe.objective.needs_reference
    section = recipe.reference or ReferenceSection()
    goes_on = recipe.adapter is not None and recipe.adapter.path is not None
    policy = load_policy(
        recipe.model,
        recipe.adapter,
        with_reference_adapter=needs_reference and goes_on and section.path is None,
    )
    if recipe.training.torch_compile:
        compile_layers(policy)
    if not needs_reference:
        return policy, None
    return policy, load_reference(section, recipe.model, recipe.adapter, policy)


def identity_of(recipe: Recipe, live: Reference) -> ReferenceIdentity | None:
    """What the reference is, just loaded; None if the recipe switches the cache off.

    Raises:
        UserError: if there are no files by which to know it again, or the recipe insists on a
            cache that would round its log-probs.
    """
    section = recipe.reference or ReferenceSection()
    if section.cache == "off":
        return None
    cache = recipe.data.cache_folder()
    identity = identify(section, recipe.model, recipe.adapter, live, cache)
    if identity.is_wide and section.cache == "always":
        raise UserError(
            "reference.cache: always would round log-probs of a float64 model to float32. "
            "Set it to off, or model.dtype to float32."
        )
    return identity


def training_steps(
    recipe: Recipe, arguments: TrainingArguments, data: PreparedData, layout: LayoutName
) -> StepDataset:
    """What this process does of each optimiser step."""
    seed = arguments.seed if arguments.data_seed is None else arguments.data_seed
    leading, *others = recipe.data.roles or [""]
    plan = StepPlan(
        records_per_source=data.train.records_per_source,
        source_weights=data.source_weights,
        groups_per_step=recipe.training.groups_of(leading),
        seed=seed,
        shuffle=recipe.training.shuffle,
        companions=tuple(
            Stream(
                sources=tuple(
                    i for i, source in enumerate(recipe.data.sources) if source.role == role
                ),
                groups_per_step=recipe.training.groups_of(role),
            )
            for role in others
        ),
    )
    rank, num_ranks = arguments.process_index, arguments.world_size
    return steps_of(recipe, data.train, plan, layout, rank=rank, num_ranks=num_ranks)


def held_out_steps(
    recipe: Recipe, arguments: TrainingArguments, data: PreparedData, layout: LayoutName
) -> StepDataset | None:
    """What this process does of an evaluation, or None without held-out data."""
    store = data.evaluation
    if store is None:
        return None
    plan = StepPlan(
        records_per_source=(len(store),),
        source_weights=(1.0,),
        groups_per_step=max(groups_per_step(recipe), arguments.world_size),
        seed=0,
        shuffle=False,
    )
    rank, num_ranks = arguments.process_index, arguments.world_size
    return steps_of(recipe, store, plan, layout, rank=rank, num_ranks=num_ranks)


def groups_per_step(recipe: Recipe) -> int:
    """Groups of a training step, over all roles."""
    return sum(recipe.training.groups_of(role) for role in recipe.data.roles or [""])


def steps_of(
    recipe: Recipe,
    store: TokenStore,
    plan: StepPlan,
    layout: LayoutName,
    *,
    rank: int = 0,
    num_ranks: int = 1,
) -> StepDataset:
    """What a process does of the steps of a plan."""
    return StepDataset(
        store,
        plan,
        recipe.objective,
        rank=rank,
        num_ranks=num_ranks,
        tokens_per_micro_batch=recipe.training.tokens_per_micro_batch,
        layout=layout,
    )
