"""The sections `model`, `data` and `adapter` of the recipe that a TRL config becomes."""

from collections.abc import Mapping
from typing import Any

from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from transformers import AutoConfig

from prefopt.commands.convert_config import TrlConfig
from prefopt.commands.convert_draft import Draft
from prefopt.commands.convert_tables import MODEL_ARGUMENTS, MODEL_ARGUMENTS_LEFT_OUT
from prefopt.errors import UserError
from prefopt.models.tokenizer import first_line

# TRL's trainers without a reference fall back to it.
_LENGTH_WITHOUT_ONE = 512
# Longer than any context, for trainers that cut nothing then.
_NO_LENGTH = 2**24

_FILES = ("json", "parquet")
_SOURCE_KEYS = ("path", "name", "split", "data_dir", "data_files", "columns", "fraction")


def write_model(config: TrlConfig, draft: Draft) -> None:
    """The policy: weights, tokenizer, dropout, 4 bits.

    Raises:
        UserError: if the config names no model.
    """
    path = config["model_name_or_path"]
    if path is None:
        raise UserError("model_name_or_path is missing. Say which model TRL would train.")
    given = _model_arguments(config)
    draft.put("model", "path", path)
    dtype = "auto" if given["dtype"] is None else str(given["dtype"]).removeprefix("torch.")
    if dtype == "float16":
        config.refuse("dtype", dtype, "weights are float32 or bfloat16")
    draft.put("model", "dtype", dtype)
    if given["revision"] not in (None, "main"):
        draft.put("model", "revision", given["revision"])
    if given["attn_implementation"] is not None:
        draft.put("model", "attn_implementation", given["attn_implementation"])
    if given["trust_remote_code"]:
        draft.put("model", "trust_remote_code", True)
    if not config["disable_dropout"]:
        draft.put("model", "dropout", True)
    if config["load_in_4bit"]:
        if not config["use_peft"]:
            config.refuse("load_in_4bit", True, "weights of 4 bits need use_peft, in TRL too")
        draft.put("model", "quantization", "nf4")


def _model_arguments(config: TrlConfig) -> dict[str, Any]:
    """What the model is loaded with: model_init_kwargs stand above the keys of the file."""
    given = {
        "dtype": config["dtype"],
        "revision": config["model_revision"],
        "attn_implementation": config["attn_implementation"],
        "trust_remote_code": config["trust_remote_code"],
    }
    more = config["model_init_kwargs"] or {}
    if not isinstance(more, Mapping):
        config.refuse("model_init_kwargs", more, "no mapping")
        more = {}
    for key, value in more.items():
        if key in MODEL_ARGUMENTS:
            given["dtype" if key == "torch_dtype" else key] = value
        elif key in MODEL_ARGUMENTS_LEFT_OUT:
            config.leave_out(f"model_init_kwargs.{key}", MODEL_ARGUMENTS_LEFT_OUT[key])
        else:
            config.refuse(f"model_init_kwargs.{key}", value, "a recipe's model has no such key")
    return given


def write_adapter(config: TrlConfig, draft: Draft) -> None:
    """The LoRA adapter, with all that TRL and peft would take for it.

    Raises:
        UserError: if the config leaves the layers to peft, and peft knows none for the model.
    """
    if not config["use_peft"]:
        return
    draft.put("adapter", "r", config["lora_r"])
    draft.put("adapter", "alpha", config["lora_alpha"])
    dropout = config["lora_dropout"]
    if dropout and config["disable_dropout"]:
        draft.put("adapter", "dropout", 0.0, "TRL's disable_dropout reaches the adapter's too")
    else:
        draft.put("adapter", "dropout", dropout)
    targets = config["lora_target_modules"]
    if targets is None:
        chosen = _layers_by_architecture(config)
        draft.put("adapter", "target_modules", chosen, "peft's choice for this architecture")
    else:
        is_all = targets == ["all-linear"]
        draft.put("adapter", "target_modules", "all-linear" if is_all else targets)
    for key, ours in (
        ("lora_modules_to_save", "modules_to_save"),
        ("use_dora", "dora"),
        ("use_rslora", "rslora"),
    ):
        if config[key]:
            draft.put("adapter", ours, config[key])


def _layers_by_architecture(config: TrlConfig) -> list[str]:
    path, way_out = config["model_name_or_path"], "Say lora_target_modules, such as all-linear."
    try:
        model = AutoConfig.from_pretrained(path, revision=config["model_revision"])
    except (OSError, ValueError) as error:
        raise UserError(
            f"lora_target_modules is left to peft, which decides by the model's configuration, and "
            f"that of {path} cannot be read. {way_out} {first_line(error)}"
        ) from error
    chosen = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.model_type)
    if chosen is None:
        raise UserError(
            f"lora_target_modules is left to peft, which knows none for {model.model_type}. "
            f"{way_out}"
        )
    return list(chosen)


def write_data(config: TrlConfig, draft: Draft) -> None:
    """Sources, held-out data and lengths.

    Raises:
        UserError: if the config names no data.
    """
    if config["datasets"]:
        _write_mixture(config, draft)
    elif config["dataset_name"] is None:
        raise UserError("dataset_name is missing. Say it, or a list of datasets.")
    else:
        source = _without_none(path=config["dataset_name"], name=config["dataset_config"])
        draft.put("data", "sources", [source | {"split": config["dataset_train_split"]}])
        if config["eval_strategy"] != "no":
            held_out = source | {"split": config["dataset_test_split"]}
            draft.put("data", "evaluation", {"sources": [held_out]})
    length = config["max_length"]
    if length is not None:
        draft.put("data", "max_length", length)
    elif config.trainer in ("cpo", "orpo"):
        draft.put("data", "max_length", _LENGTH_WITHOUT_ONE, "TRL's, where the config has null")
    else:
        draft.put("data", "max_length", _NO_LENGTH, "no limit, as in TRL")
    draft.put("data", "too_long", "cut_response")
    if (config["dataset_num_proc"] or 1) > 1:
        draft.put("data", "num_workers", config["dataset_num_proc"])


def _write_mixture(config: TrlConfig, draft: Draft) -> None:
    sources = [
        source
        for number, each in enumerate(config["datasets"])
        for source in _sources_of(config, f"datasets.{number}", each)
    ]
    draft.put("data", "sources", sources)
    share = config["test_split_size"]
    if share is not None:
        key = "fraction" if share < 1 else "num_groups"
        draft.put("data", "evaluation", {key: share if share < 1 else int(share)})
    elif config["eval_strategy"] != "no":
        why = "beside datasets TRL needs test_split_size for it"
        config.refuse("eval_strategy", config["eval_strategy"], why)


def _sources_of(config: TrlConfig, place: str, given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sources of one entry of `datasets`: a data set, or the files that it names."""
    for key in given:
        if key not in _SOURCE_KEYS:
            config.refuse(f"{place}.{key}", given[key], "an entry of datasets has no such key")
    if given.get("fraction") is not None:
        why = "a source has a weight instead, its passes per epoch"
        config.refuse(f"{place}.fraction", given["fraction"], why)
    if given.get("data_dir") is not None:
        config.refuse(f"{place}.data_dir", given["data_dir"], "name the folder as path")
    if given.get("columns"):
        config.leave_out(f"{place}.columns", "columns that a format does not read change nothing")
    path, split, files = given.get("path"), given.get("split", "train"), given.get("data_files")
    if path is None:
        raise UserError(f"{place}.path is missing. Say which data set it is.")
    if not files:
        return [_without_none(path=path, name=given.get("name")) | {"split": split}]
    named = files.get(split) if isinstance(files, dict) else files
    if path not in _FILES or named is None:
        config.refuse(f"{place}.data_files", files, "only files of json and parquet are read")
        return []
    return [{"path": file} for file in ([named] if isinstance(named, str) else named)]


def _without_none(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
