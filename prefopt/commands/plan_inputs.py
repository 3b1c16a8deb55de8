"""What a plan starts from: lengths of the data, and where reference log-probs come from."""

from dataclasses import dataclass

import torch

from prefopt.config import Recipe
from prefopt.data.lengths import Lengths, assumed_lengths, lengths_of_data
from prefopt.errors import UserError
from prefopt.models.blueprint import Counts
from prefopt.models.section import ReferenceSection
from prefopt.models.tokenizer import load_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedReference:
    """The reference while training."""

    what: str
    """As a clause."""
    weights: int = 0
    """That are held beside the policy's."""
    num_passes: int = 0
    """That each micro-batch takes without gradient."""
    is_cached: bool = False


def planned_lengths(recipe: Recipe) -> tuple[Lengths, str]:
    """Those of the data, or assumed ones; and where they come from, as a clause."""
    try:
        lengths = lengths_of_data(recipe.data, load_tokenizer(recipe.model))
    except UserError as error:
        lengths = assumed_lengths(recipe.data.max_length)
        return lengths, f"assumed are {lengths.said_by}, since {str(error).rstrip('.')}"
    return lengths, f"lengths are those of {lengths.said_by}"


def planned_reference(recipe: Recipe, counts: Counts, dtype: torch.dtype) -> PlannedReference:
    """What training decides once it has read the data, where that reads all of it."""
    objective, section = recipe.objective, recipe.reference or ReferenceSection()
    if not objective.needs_reference:
        return PlannedReference(what="none, the objective reads none")
    shares_policy = recipe.adapter is not None and section.path is None
    copy = 0 if shares_policy else counts.frozen or counts.trained
    if objective.needs_reference_distribution:
        why_live = "whole distributions are not kept"
    elif section.cache == "off":
        why_live = "reference.cache: off"
    elif dtype == torch.float64:
        why_live = "log-probs in float64 would be rounded"
    else:
        # Texts that are none of the data's are scored by the model itself.
        kept = copy if objective.mismatches_responses else 0
        return PlannedReference(what="cached", weights=kept, is_cached=True)
    own = "the policy's own weights" if shares_policy else "a copy of the policy's size"
    return PlannedReference(what=f"live, {own} ({why_live})", weights=copy, num_passes=1)
