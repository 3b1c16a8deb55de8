"""The README.md of a trained model: what it was made from and measured against, and its recipe."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FULL_MODEL_CODE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # this folder, or where you put it
model = AutoModelForCausalLM.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
"""
_ADAPTER_CODE = """\
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

folder = "."  # this folder, or where you put it
model = AutoPeftModelForCausalLM.from_pretrained(folder)  # loads the base model as well
tokenizer = AutoTokenizer.from_pretrained(folder)
"""


def write_model_card(
    folder: Path,
    *,
    recipe: Mapping[str, Any],
    objective_name: str,
    base_model: str,
    datasets: Sequence[str],
    has_reference: bool,
    is_adapter: bool,
    metrics: Mapping[str, float],
    versions: Mapping[str, str],
) -> None:
    """Write README.md beside the weights; nothing is looked up on a network.

    Args:
        folder: the model's folder.
        recipe: the resolved recipe; of absolute paths the card shows the last part.
        objective_name: as in the registry.
        base_model: folder or hub id of the model that training started from.
        datasets: folders, files or hub ids of the training data.
        has_reference: True if the objective measures log-probs against a reference; the recipe says
            which, or it is the policy as training began.
        is_adapter: True if the folder holds a peft adapter and not a whole model.
        metrics: final values by name.
        versions: of Python and of the packages that the result depends on.
    """
    tags = ["prefopt", objective_name, "preference-optimization"]
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        pipeline_tag="text-generation",
        base_model=base_model if _is_hub_id(base_model) else None,
        datasets=[name for name in datasets if _is_hub_id(name)] or None,
        tags=[*tags, "lora"] if is_adapter else tags,
    )
    paragraphs = [
        f"---\n{data.to_yaml()}\n---",
        f"# {Path(recipe['training']['output_dir']).absolute().name}",
        f"{'An adapter for' if is_adapter else 'All weights of'} {_named(base_model)}, "
        f"trained by prefopt.",
        "\n".join(
            [
                f"- Objective: `{objective_name}`",
                f"- Data: {', '.join(_named(name) for name in datasets)}",
                f"- Reference: {_reference(recipe) if has_reference else 'none'}",
            ]
        ),
        "## Load it",
        _fenced("python", _ADAPTER_CODE if is_adapter else _FULL_MODEL_CODE),
        *_metrics_section(metrics),
        "## Recipe",
        _fenced("yaml", yaml.safe_dump(_shown(recipe), sort_keys=False, allow_unicode=True)),
        "## Versions",
        "\n".join(f"- {name} {version}" for name, version in versions.items()),
    ]
    ModelCard("\n\n".join(paragraphs) + "\n").save(folder / "README.md")


def _reference(recipe: Mapping[str, Any]) -> str:
    path = recipe.get("reference", {}).get("path")
    return _named(path) if path else "the model as it was when training began"


def _metrics_section(metrics: Mapping[str, float]) -> list[str]:
    if not metrics:
        return []
    rows = [f"| {name} | {value:.4g} |" for name, value in metrics.items()]
    return ["## Final metrics", "\n".join(["| metric | value |", "|---|---|", *rows])]


def _named(source: str) -> str:
    """A hub id as it is; of what lies on a disk the last part of the path."""
    return f"`{source if _is_hub_id(source) else Path(source).name}`"


def _shown(value: Any) -> Any:
    """A recipe for others: what its whole paths say of a machine is of no use to them."""
    if isinstance(value, Mapping):
        return {key: _shown(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(inner) for inner in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _fenced(language: str, text: str) -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def _is_hub_id(source: str) -> bool:
    """True for `name` or `owner/name` that is no file or folder here."""
    return _HUB_ID.fullmatch(source) is not None and not Path(source).exists()
