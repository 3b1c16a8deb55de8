"""What a reference is, in facts that its log-probs depend on, and where these lie on disk."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType

from prefopt.data.cache import errors_of_cache_are_one_line
from prefopt.data.reference_cache import About, reference_folder, tokens_digest
from prefopt.data.shard import Shard
from prefopt.models.head import base_of, layout_of
from prefopt.models.layout import LayoutName
from prefopt.models.reference import FrozenCopy, Reference, StartOfAdapter
from prefopt.models.section import AdapterSection, ModelSection, ReferenceSection
from prefopt.models.weights import weights_digest
from prefopt.train.precompute import CachedSource
from prefopt.train.processes import on_first_process

_FORMAT = "1"
"""Raise it when the same facts would give other numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReferenceIdentity:
    """What a reference is, told before anything wraps or shards it."""

    facts: Mapping[str, str]
    """Everything that its log-probs depend on but the tokens and the engine that runs it."""
    model: str
    """Where it came from, in words."""
    layout: LayoutName
    is_wide: bool
    """Whether it computes in float64, which the cache would round."""
    cache: Path
    """Folder of the cache."""


def identify(
    reference: ReferenceSection,
    model: ModelSection,
    adapter: AdapterSection | None,
    live: Reference,
    cache: Path,
) -> ReferenceIdentity:
    """What the reference of a recipe is: content of weights and adapter, types, layout, versions.

    Args:
        reference: what the recipe says of it.
        model: the policy's section.
        adapter: the policy's adapter; its rank and seed do not matter, only where it goes on from.
        live: the reference, just loaded.
        cache: folder of the cache.

    Raises:
        UserError: on all processes, if no weights lie where they were loaded from.
    """
    path, key = (reference.path, "reference.path") if reference.path else (model.path, "model.path")
    revision = None if reference.path else model.revision
    start = None if adapter is None or reference.path else adapter.path

    def digests() -> tuple[str, str]:
        memo = cache / "weights"
        with errors_of_cache_are_one_line(memo):
            of_start = "none" if start is None else weights_digest(start, "adapter.path", memo=memo)
            return weights_digest(path, key, revision=revision, memo=memo), of_start

    weights, of_start = on_first_process(digests)
    base = _base_model(live)
    layout = layout_of(base)[0]
    facts = {
        "format": _FORMAT,
        "weights": weights,
        "adapter": of_start,
        "dtype": str(base.config.dtype).removeprefix("torch."),
        "quantization": model.quantization or "none",
        "layout": layout,
        "attention": str(base.config._attn_implementation),
        "torch": metadata.version("torch"),
        "transformers": metadata.version("transformers"),
    }
    return ReferenceIdentity(
        facts=facts,
        model=path if start is None else f"{path} with {start}",
        layout=layout,
        is_wide=facts["dtype"] == "float64",
        cache=cache,
    )


def cached_sources(
    identity: ReferenceIdentity, accelerator: Accelerator, shards: Sequence[Shard]
) -> list[CachedSource]:
    """Where the log-probs of each source lie or will lie, on this machine."""
    digests = on_first_process(lambda: [tokens_digest(shard) for shard in shards])
    engine = {
        "precision": _precision(accelerator),
        "device": accelerator.device.type,
    }
    sources = []
    for shard, digest in zip(shards, digests, strict=True):
        facts = {**identity.facts, **engine, "tokens": digest}
        about = About(
            facts=facts,
            num_records=len(shard),
            num_tokens=len(shard.column("response_tokens")),
            model=identity.model,
            source=", ".join(shard.part_names),
            made=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        folder = reference_folder(identity.cache, facts, len(shard))
        sources.append(CachedSource(shard=shard, folder=folder, about=about))
    return sources


def _base_model(live: Reference) -> Any:
    """The causal language model itself."""
    assert isinstance(live, FrozenCopy | StartOfAdapter)
    return base_of(live.model if isinstance(live, FrozenCopy) else live.peft_model)


def _precision(accelerator: Accelerator) -> str:
    """What the engine makes of the weights' type: sharding ones cast weights, others operations."""
    if accelerator.mixed_precision == "no":
        return "as the weights"
    engine = "autocast"
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        engine = "deepspeed"
    elif accelerator.is_fsdp2:
        engine = "fsdp2"
    return f"{accelerator.mixed_precision} by {engine}"
