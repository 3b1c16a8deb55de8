"""What a folder or id stands for: a model, an adapter, or a run of either."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig

from prefopt.data.cache import errors_of_cache_are_one_line
from prefopt.data.section import default_cache_folder
from prefopt.errors import UserError, check_section
from prefopt.evaluation.generate.local import LocalBackend
from prefopt.evaluation.generate.section import GenerationSection
from prefopt.models.load import check_model_sections, load_policy
from prefopt.models.section import AdapterSection, ModelSection
from prefopt.models.tokenizer import check_local_folder, first_line, load_tokenizer
from prefopt.models.weights import weights_digest

_TOKENIZER_FILE = "tokenizer_config.json"


def load_backend(
    target: str,
    section: GenerationSection,
    model: Mapping[str, Any] | None = None,
    *,
    device: torch.device | str | None = None,
) -> LocalBackend:
    """A model or an adapter on its base, ready to answer.

    Args:
        target: folder of a model, an adapter or a run, or a hub id.
        section: how it answers.
        model: values of a recipe's model section beside the path, such as dtype or chat_template.
        device: by default the GPU if there is one.

    Raises:
        UserError: if nothing can be loaded from there.
    """
    weights, adapter = sections_of(target, model or {})
    return backend_of(weights, adapter, section, name=target, device=device)


def backend_of(
    weights: ModelSection,
    adapter: AdapterSection | None,
    section: GenerationSection,
    *,
    name: str,
    device: torch.device | str | None = None,
) -> LocalBackend:
    """Weights and adapter as sections of a recipe say them, ready to answer.

    Args:
        weights: what to load.
        adapter: an adapter with a path, or None.
        section: how it answers.
        name: for the header of the file of answers.
        device: by default the GPU if there is one.

    Raises:
        UserError: if nothing can be loaded from there.
    """
    check_model_sections(weights, adapter)
    tokenizer = load_tokenizer(weights)
    # Any: transformers wraps `to` in a way that hides its types.
    policy: Any = load_policy(weights, adapter)
    if weights.quantization is None:
        policy.to(torch.device(device or _best_device()))
    digest = digest_of(weights, adapter)
    return LocalBackend(policy, tokenizer, section, name=name, weights=digest)


def sections_of(
    target: str, model: Mapping[str, Any]
) -> tuple[ModelSection, AdapterSection | None]:
    """Which weights and which adapter a target stands for.

    Raises:
        UserError: if there is nothing, or a value of the model section is wrong.
    """
    check_local_folder(target, "MODEL")
    folder = Path(target)
    values: dict[str, Any] = {"dtype": "auto", "layout": "padded", **model}
    if "path" in values:
        raise UserError(f"model.path is the model itself, here {target}. Remove the key.")
    if not (folder / "adapter_config.json").is_file():
        return check_section(ModelSection, {**values, "path": target}, "model"), None
    try:
        base = PeftConfig.from_pretrained(target).base_model_name_or_path
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{target}: no adapter of peft: {first_line(error)}") from error
    if not base:
        raise UserError(
            f"{target}: adapter_config.json names no base model. Write it into "
            "base_model_name_or_path."
        )
    if (folder / _TOKENIZER_FILE).is_file():
        # It has the chat template and the end that training used.
        values.setdefault("tokenizer", target)
    return (
        check_section(ModelSection, {**values, "path": base}, "model"),
        AdapterSection(path=target),
    )


def digest_of(model: ModelSection, adapter: AdapterSection | None) -> str:
    """What the files hold: a model that was trained again at the same place is another one.

    Nothing is loaded.

    Raises:
        UserError: if no weights lie there.
    """
    memo = default_cache_folder() / "weights"
    with errors_of_cache_are_one_line(memo):
        digests = [weights_digest(model.path, "MODEL", revision=model.revision, memo=memo)]
        if adapter is not None and adapter.path is not None:
            digests.append(weights_digest(adapter.path, "MODEL", memo=memo))
    return "+".join(digests)


def _best_device() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")
