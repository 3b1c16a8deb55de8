"""The policy of a recipe: weights, quantisation, adapter, dropout and the log-prob head."""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.import_utils import is_bitsandbytes_available

from prefopt.errors import UserError, did_you_mean
from prefopt.models.head import check_head, install_logp_head
from prefopt.models.section import AdapterSection, ModelSection, ReferenceSection
from prefopt.models.support import choose_layout
from prefopt.models.tokenizer import check_local_folder, first_line, reason

# The adapter that is trained, by peft's own default name, and the frozen copy of its start.
POLICY_ADAPTER = "default"
REFERENCE_ADAPTER = "reference"


def check_model_sections(
    model: ModelSection,
    adapter: AdapterSection | None,
    reference: ReferenceSection | None = None,
) -> None:
    """Refuse what can be seen to fail before any weight is read.

    Raises:
        UserError: for options that exclude each other and folders that hold something else.
    """
    if model.quantization and adapter is None:
        raise UserError(
            "model.quantization: 4-bit weights cannot be trained themselves. "
            "Add an adapter section, or leave quantization out."
        )
    if model.quantization and not is_bitsandbytes_available():
        raise UserError("model.quantization needs bitsandbytes: pip install 'prefopt[quant]'.")
    if adapter is not None and adapter.dropout > 0 and not model.dropout:
        raise UserError(
            "adapter.dropout has no effect while model.dropout is false. "
            "Set model.dropout: true or adapter.dropout: 0."
        )
    if model.revision is not None and Path(model.path).is_dir():
        raise UserError(
            f"model.revision has no effect on the folder {model.path}. Remove the key, or give "
            "model.path a hub id."
        )
    _check_model_folder(
        model.path,
        "model.path",
        "Put it in adapter.path and its base model in model.path, or merge it: prefopt merge.",
    )
    if reference is not None and reference.path is not None:
        _check_model_folder(reference.path, "reference.path", "Merge it first: prefopt merge.")
    if adapter is not None and adapter.path is not None:
        check_local_folder(adapter.path, "adapter.path")
        if Path(adapter.path).is_dir() and not _is_adapter(adapter.path):
            raise UserError(
                f"adapter.path: {adapter.path} has no adapter_config.json. "
                "Give a folder that peft saved, or leave adapter.path out to start a new adapter."
            )


def load_policy(
    section: ModelSection, adapter: AdapterSection | None, *, with_reference_adapter: bool = False
) -> PreTrainedModel | PeftModel:
    """The model to train, with a log-prob head, and an adapter if one is asked for.

    Args:
        section: which weights.
        adapter: which adapter; None trains the weights themselves.
        with_reference_adapter: also hold a frozen copy of the adapter that training starts from.

    Raises:
        UserError: if weights or adapter cannot be loaded or do not fit each other.
    """
    model = load_causal_lm(section)
    if adapter is None:
        return model
    peft_model = _add_adapter(
        model, adapter, section.revision, with_reference_adapter=with_reference_adapter
    )
    check_head(model)
    if not section.dropout:
        _switch_dropout_off(peft_model)
    if with_reference_adapter:
        # A checkpoint holds what is trained; the reference is rebuilt from its own folder.
        save = peft_model.save_pretrained

        def save_policy_adapter(*args: Any, **kwargs: Any) -> None:
            save(*args, **{"selected_adapters": [POLICY_ADAPTER], **kwargs})

        vars(peft_model)["save_pretrained"] = save_policy_adapter
    return peft_model


def load_causal_lm(section: ModelSection, key: str = "model.path") -> PreTrainedModel:
    """The weights alone, with a log-prob head and without dropout unless it is asked for.

    Raises:
        UserError: naming the key, if no causal language model can be loaded from the path.
    """
    quantization = None
    if section.quantization == "nf4":
        compute = torch.bfloat16 if section.dtype == "auto" else getattr(torch, section.dtype)
        quantization = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=compute,
            bnb_4bit_use_double_quant=True,
        )
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            section.path,
            revision=section.revision,
            dtype=section.dtype,
            attn_implementation=section.attn_implementation,
            trust_remote_code=section.trust_remote_code,
            quantization_config=quantization,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{key}: cannot load {section.path} as a causal language model. {reason(error)}"
        ) from error
    model: PreTrainedModel = loaded[0]
    missing = loaded[1]["missing_keys"]
    if missing:
        # transformers starts these at random, with a warning that is easy to miss.
        raise UserError(
            f"{key}: {section.path} lacks {len(missing)} weights of a {type(model).__name__}, "
            f"such as {min(missing)}. Give a whole causal language model."
        )
    _keep_4_bit_layers_differentiable(model)
    prepare_for_scoring(model, section)
    return model


def prepare_for_scoring(model: PreTrainedModel, section: ModelSection) -> None:
    """Give a model its log-prob head in the layout it can have, and take away its dropout.

    Raises:
        UserError: if the section asks for a layout that the model cannot have.
    """
    if not section.dropout:
        _switch_dropout_off(model)
    layout, why_padded = choose_layout(model, section)
    install_logp_head(model, layout, why_padded)


def _check_model_folder(path: str, key: str, way_out: str) -> None:
    check_local_folder(path, key)
    if _is_adapter(path):
        raise UserError(f"{key}: {path} holds an adapter, not a model. {way_out}")


def _is_adapter(path: str) -> bool:
    folder = Path(path)
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _add_adapter(
    model: PreTrainedModel,
    adapter: AdapterSection,
    model_revision: str | None,
    *,
    with_reference_adapter: bool,
) -> PeftModel:
    if adapter.path is not None:
        try:
            peft_model = PeftModel.from_pretrained(model, adapter.path, is_trainable=True)
            if with_reference_adapter:
                peft_model.load_adapter(adapter.path, adapter_name=REFERENCE_ADAPTER)
        except (OSError, ValueError, RuntimeError) as error:
            raise UserError(
                f"adapter.path: {adapter.path} does not fit model.path. {first_line(error)}"
            ) from error
        return peft_model
    return add_new_adapter(model, adapter, model_revision)


def add_new_adapter(
    model: PreTrainedModel, adapter: AdapterSection, model_revision: str | None
) -> PeftModel:
    """The model with an adapter that starts at nothing.

    Raises:
        UserError: if there are no such layers.
    """
    config = LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        target_modules=adapter.target_modules,
        modules_to_save=adapter.modules_to_save,
        use_dora=adapter.dora,
        use_rslora=adapter.rslora,
        # GPT-2 keeps its weights transposed, in a layer of transformers' own.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        revision=model_revision,
        task_type="CAUSAL_LM",
    )
    _check_layers_exist(model, adapter)
    with warnings.catch_warnings():
        # check_head refuses what this warns of.
        warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
        # peft fills these patterns itself for mixtures of experts.
        warnings.filterwarnings("ignore", ".* keys did not match any targeted", RuntimeWarning)
        try:
            new_adapter = get_peft_model(model, config)
        except ValueError as error:
            raise UserError(f"adapter.target_modules: {first_line(error)}") from error
    assert isinstance(new_adapter, PeftModel)
    return new_adapter


def _check_layers_exist(model: PreTrainedModel, adapter: AdapterSection) -> None:
    """Refuse names of layers that peft would pass over without a word."""
    layers = {name.rpartition(".")[2]: None for name, _ in model.named_modules() if name}
    targets = [] if isinstance(adapter.target_modules, str) else adapter.target_modules
    given = {"target_modules": targets, "modules_to_save": adapter.modules_to_save or []}
    for key, names in given.items():
        for name in names:
            if not any(f".{layer}".endswith(f".{name}") for layer, _ in model.named_modules()):
                raise UserError(f"adapter.{key}: no layer '{name}'. {did_you_mean(name, layers)}")


def _keep_4_bit_layers_differentiable(model: nn.Module) -> None:
    """Stop bitsandbytes from repacking weights for fast inference on CPUs with bfloat16.

    It does so at the first forward pass in eval mode, such as the reference's, and never undoes it;
    the repacked layer returns no gradient, so all layers before it would stop learning.
    """
    for module in model.modules():
        if "support_avx512bf16_for_cpu" in vars(module):
            vars(module)["support_avx512bf16_for_cpu"] = False


def _switch_dropout_off(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in dropout_rates(module):
            setattr(module, name, 0.0)


def dropout_rates(module: nn.Module) -> dict[str, float]:
    """The rates at which a module drops values itself, by the names of its attributes."""
    return {
        name: value
        for name, value in vars(module).items()
        if "dropout" in name and isinstance(value, float)
    }
