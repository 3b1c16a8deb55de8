"""What a recipe says of the model, its adapter and the reference."""

from collections.abc import Callable
from typing import Any, Literal

from pydantic import Field, field_validator, model_serializer, model_validator

from prefopt.errors import UserError
from prefopt.section import Section


class ModelSection(Section):
    """The policy to start from and its tokenizer."""

    path: str
    """A folder with a causal language model, or its id on the hub."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer, if it does not lie with the model."""
    dtype: Literal["auto", "float32", "bfloat16", "float64"] = "float32"
    """Type of the weights; `auto` takes the checkpoint's. Small updates vanish in bfloat16 weights:
    for full fine-tuning keep float32 and set `training.bf16`; for LoRA bfloat16 is right."""
    layout: Literal["auto", "shared", "packed", "padded"] = "auto"
    """How a micro-batch lies in the model. shared: one row in which a prompt stands once for all
    its responses; packed: one row of whole sequences; padded: a padded row per response, which
    every model can do. auto: shared where the architecture allows it, else padded, and says so."""
    attn_implementation: str | None = None
    """Attention kernel of transformers, such as sdpa, eager or flash_attention_2, for padded rows;
    flat rows have their own."""
    trust_remote_code: bool = False
    """Run Python code that lies with the model. Off: a model that needs it is refused."""
    chat_template: str | None = None
    """A template's name (`chatml`, or one that trl brings, such as `llama3`) or a .jinja file;
    null takes the tokenizer's own."""
    eos_token: str | None = None
    """The end-of-sequence token, if the tokenizer names none or the wrong one."""
    quantization: Literal["nf4"] | None = None
    """nf4 holds the frozen weights in 4 bits (QLoRA); needs an adapter and bitsandbytes."""
    dropout: bool = False
    """Keep the model's dropout while training. Off: policy and reference agree before step 1."""


class AdapterSection(Section):
    """A LoRA adapter to train instead of the weights."""

    path: str | None = None
    """An adapter to go on training from; it brings its own shape, so the keys below stay away."""
    r: int = Field(default=16, ge=1)
    """Rank of the update."""
    alpha: int = Field(default=32, ge=1)
    """The update is scaled by alpha / r."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Dropout on the adapter's input; needs `model.dropout: true`."""
    target_modules: str | list[str] = "all-linear"
    """Layers to adapt, by name; `all-linear` takes every linear layer but the output projection."""
    modules_to_save: list[str] | None = None
    """Layers to train in full beside the adapter, such as embed_tokens."""
    dora: bool = False
    """Train magnitudes apart from directions (weight-decomposed LoRA)."""
    rslora: bool = False
    """Scale by alpha / sqrt(r) instead, which is steadier at high rank."""

    @model_validator(mode="after")
    def _shape_comes_from_one_place(self) -> "AdapterSection":
        given = sorted(self.model_fields_set - {"path"})
        if self.path is not None and given:
            raise UserError(
                f"adapter.path brings the adapter's own shape. Remove {', '.join(given)}."
            )
        return self

    @model_serializer(mode="wrap")
    def _shape_stays_with_the_adapter(self, serialize: Callable[[Any], Any]) -> dict[str, Any]:
        """Without the keys that validation refuses beside `path`, so that it can be read again."""
        values: dict[str, Any] = serialize(self)
        return values if self.path is None else {"path": self.path}


class ReferenceSection(Section):
    """What log-ratios are measured against."""

    path: str | None = None
    """Another model as reference: a folder or hub id with the policy's tokenizer. null: the policy
    as it starts, which an adapter run gets by switching the adapter off or keeping its start."""
    cache: Literal["auto", "always", "off"] = "auto"
    """Log-probs that are computed once and kept under `data.cache_dir`, for every run with the same
    reference and tokens. auto: use them where they are complete, compute them where the run reads
    the data at least once; always: compute them anyway; off: run the reference in each step."""

    @field_validator("cache", mode="before")
    @classmethod
    def _off_is_no_boolean(cls, value: Any) -> Any:
        """YAML reads an unquoted `off` as false."""
        return "off" if value is False else value
