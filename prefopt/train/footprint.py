"""Bytes on a GPU, and bytes sent, under every way to split a run over GPUs: arithmetic alone.

The letters: T trained and F frozen weights, G GPUs. What engines add is that of DeepSpeed 0.19 and
of FSDP2 in torch 2.13 as accelerate 1.15 sets them up.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from prefopt.models.blueprint import Counts

Mode = Literal["single", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"]
"""As the files of recipes/accelerate are named."""
MODES: tuple[Mode, ...] = get_args(Mode)

_SPLITS_WEIGHTS = ("zero3", "zero3_offload", "fsdp2")
_IS_DEEPSPEED = ("zero1", "zero2", "zero3", "zero3_offload")

# Elements: reduce_bucket_size, stage3_max_live_parameters and sub_group_size of DeepSpeed.
REDUCE_BUCKET = 500_000_000
_MOST_GATHERED = 1_000_000_000
_SUB_GROUP = 1_000_000_000
# FSDP2 gathers a layer while it computes the one before.
_LAYERS_GATHERED = 2
_BYTES_FLOAT32 = 4
# 4 bits, a byte of scale per 64 weights and a float32 per 256 of those.
_BYTES_NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True, kw_only=True, slots=True)
class Precision:
    """Bytes of a weight, by what becomes of it."""

    stored: int
    """A frozen one as it is loaded."""
    trained: int
    """A trained one as it is loaded."""
    is_bf16: bool
    """Whether passes compute in bfloat16 whatever the weights are."""

    def under(self, mode: Mode) -> "Precision":
        """What the engine makes of them for its passes: DeepSpeed and FSDP2 cast whole weights."""
        is_cast = self.is_bf16 and (mode in _IS_DEEPSPEED or mode == "fsdp2")
        return Precision(stored=2, trained=2, is_bf16=True) if is_cast else self


@dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """What an optimiser keeps of a trained weight."""

    num_states: int
    bytes_per_state: int | None = None
    """None: as many as the weight has."""
    num_copies: int = 0
    """Of all trained weights, while it moves them."""

    def kept(self, bytes_per_weight: int) -> int:
        """Bytes per trained weight."""
        return self.num_states * (self.bytes_per_state or bytes_per_weight)


_ADAM = Optimizer(num_states=2)
_BY_BEGINNING = {
    "adamw_torch_fused": _ADAM,
    "adamw_torch": Optimizer(num_states=2, num_copies=1),
    "adamw_8bit": Optimizer(num_states=2, bytes_per_state=1),
    "adamw_bnb_8bit": Optimizer(num_states=2, bytes_per_state=1),
    "paged_adamw_8bit": Optimizer(num_states=2, bytes_per_state=1),
    "paged_adamw": _ADAM,
    "adafactor": Optimizer(num_states=0, num_copies=1),
    "sgd": Optimizer(num_states=0),
    "lion": Optimizer(num_states=1),
}


def optimizer_of(name: str) -> tuple[Optimizer, bool]:
    """What the optimiser of that name in TrainingArguments keeps, and whether it is known.

    One that is not known is counted as AdamW.
    """
    for beginning, found in _BY_BEGINNING.items():
        if name.startswith(beginning):
            return found, True
    return _ADAM, False


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """What a micro-batch takes, in bytes."""

    activations: int
    head: int
    """A tile of logits and the gradients that the head adds up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """How a run is split, and what of it is not in the weights."""

    mode: Mode
    num_gpus: int
    precision: Precision
    optimizer: Optimizer
    num_micro_batches: int
    """Of a GPU in a step."""
    reference_weights: int = 0
    """Of a frozen copy that is held while training."""
    bucket: int = REDUCE_BUCKET
    """Elements that DeepSpeed reduces at a time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """Bytes of one GPU."""

    weights: int
    gradients: int
    optimizer: int
    reference: int
    activations: int
    head: int
    engine: int
    """Buckets and gathered weights in forward and backward pass."""
    step: int
    """What the optimiser adds while it moves the weights: activations are gone by then."""
    host: int = 0
    """Beside the GPU, in the memory of its machine."""

    @property
    def total(self) -> int:
        """The most that is there at once."""
        kept = self.weights + self.gradients + self.optimizer + self.reference
        return kept + max(self.activations + self.head + self.engine, self.step)


def head_memory(counts: Counts, *, hidden: int, scored: int, tile: int, is_cast: bool) -> int:
    """Bytes that the log-prob head holds beside the hidden states that it is given.

    Args:
        counts: the model's; a trained projection has trained weights.
        hidden: size of a hidden state.
        scored: tokens.
        tile: tokens of a tile.
        is_cast: whether products run in bfloat16, for which logits are there twice.
    """
    vocabulary = counts.head // hidden
    is_trained = counts.adapter == 0
    logits = min(tile, scored) * vocabulary * (_BYTES_FLOAT32 + (2 if is_cast else 0))
    of_hidden = scored * hidden * _BYTES_FLOAT32
    return logits + of_hidden + (counts.head * _BYTES_FLOAT32 if is_trained else 0)


def footprint(counts: Counts, split: Split, of_pass: Pass) -> Footprint:
    """Bytes of one GPU under a mode."""
    by_mode = {
        "single": _whole,
        "ddp": _whole,
        "zero1": _zero_1_and_2,
        "zero2": _zero_1_and_2,
        "zero3": _zero3,
        "zero3_offload": _zero3,
        "fsdp2": _fsdp2,
    }
    return by_mode[split.mode](counts, split, of_pass)


def _whole(counts: Counts, split: Split, of_pass: Pass) -> Footprint:
    """Everything on every GPU. DDP reduces gradients in a copy of them."""
    trained, precision = counts.trained, split.precision
    gradients = trained * precision.trained
    return Footprint(
        weights=trained * precision.trained + _frozen(counts, precision),
        gradients=gradients * (2 if split.mode == "ddp" else 1),
        optimizer=trained * split.optimizer.kept(precision.trained),
        reference=split.reference_weights * precision.stored,
        activations=of_pass.activations,
        head=of_pass.head,
        engine=0,
        step=split.optimizer.num_copies * gradients,
    )


def _zero_1_and_2(counts: Counts, split: Split, of_pass: Pass) -> Footprint:
    """Weights whole, float32 masters and optimiser state split, with stage 2 gradients too."""
    trained, each = counts.trained, split.precision.under(split.mode)
    share = _share(trained, split)
    gradients = (share if split.mode == "zero2" else trained) * each.trained
    return Footprint(
        weights=trained * each.trained + _frozen(counts, each),
        gradients=gradients,
        optimizer=_masters_and_states(share, split),
        reference=split.reference_weights * each.stored,
        activations=of_pass.activations,
        head=of_pass.head,
        engine=split.bucket * each.trained,
        step=share * _BYTES_FLOAT32 * (1 + split.optimizer.num_copies),
    )


def _zero3(counts: Counts, split: Split, of_pass: Pass) -> Footprint:
    """Everything split; weights are gathered, and kept up to a number of them."""
    each = split.precision.under(split.mode)
    total, trained = counts.trained + counts.frozen, counts.trained
    share = _share(trained, split)
    weights = _share(trained * each.trained + _frozen(counts, each), split)
    gradients = share * each.trained
    # In float32 the weights are their own masters.
    optimizer = (
        _masters_and_states(share, split)
        if each.trained < _BYTES_FLOAT32
        else (share * split.optimizer.kept(_BYTES_FLOAT32))
    )
    # What lies in a bucket is laid out once more, by who owns it.
    buckets = split.bucket + min(split.bucket, trained)
    is_offloaded = split.mode == "zero3_offload"
    host = weights + optimizer + share * (each.trained + _BYTES_FLOAT32) if is_offloaded else 0
    return Footprint(
        weights=0 if is_offloaded else weights,
        gradients=0 if is_offloaded else gradients,
        optimizer=0 if is_offloaded else optimizer,
        reference=_share(split.reference_weights * each.stored, split),
        activations=of_pass.activations,
        head=of_pass.head,
        engine=min(total, _MOST_GATHERED) * each.stored + buckets * each.trained,
        step=0 if is_offloaded else min(share, _SUB_GROUP) * _BYTES_FLOAT32,
        host=host,
    )


def _fsdp2(counts: Counts, split: Split, of_pass: Pass) -> Footprint:
    """Everything split but the gradients of all micro-batches before the last, which stay whole."""
    stored, each = split.precision, split.precision.under(split.mode)
    trained, share = counts.trained, _share(counts.trained, split)
    master = _BYTES_FLOAT32 if stored.is_bf16 else stored.trained
    of_share = share * master
    is_whole = split.num_micro_batches > 1
    layer, layer_trained = counts.largest_layer, counts.largest_layer_trained
    gathered = (_LAYERS_GATHERED * layer + counts.head) * each.stored
    return Footprint(
        weights=of_share + _share(_frozen(counts, stored), split),
        gradients=max(of_share, trained * each.trained) if is_whole else of_share,
        optimizer=share * split.optimizer.kept(master),
        reference=_share(split.reference_weights * stored.stored, split),
        activations=of_pass.activations,
        head=of_pass.head,
        engine=gathered + _LAYERS_GATHERED * layer_trained * each.trained,
        step=split.optimizer.num_copies * of_share,
    )


def _share(whole: int, split: Split) -> int:
    """A GPU's part, rounded up: the last one is padded."""
    return -(-whole // split.num_gpus)


def _masters_and_states(share: int, split: Split) -> int:
    return share * (_BYTES_FLOAT32 + split.optimizer.kept(_BYTES_FLOAT32))


def _frozen(counts: Counts, precision: Precision) -> int:
    whole = counts.frozen - counts.quantized
    return whole * precision.stored + round(counts.quantized * _BYTES_NF4)


def bytes_sent(counts: Counts, split: Split, *, num_forward_passes: int = 0) -> int:
    """Bytes that a GPU sends in a step, with collectives that send each byte once around a ring.

    Args:
        counts: the model's.
        split: how it is split.
        num_forward_passes: passes without gradient that a micro-batch takes beside its own.
    """
    each, num = split.precision.under(split.mode), split.num_micro_batches
    gradients = counts.trained * each.trained
    weights = gradients + _frozen(counts, each)
    gathered = (2 + num_forward_passes) * num * weights
    whole = {
        "single": 0,
        "ddp": 2 * gradients,
        # Reduced to who owns them; moved weights are gathered by all.
        "zero1": 2 * gradients,
        "zero2": (num + 1) * gradients,
        "zero3": gathered + num * gradients,
        "zero3_offload": gathered + num * gradients,
        # Only the last micro-batch reduces gradients.
        "fsdp2": gathered + gradients,
    }[split.mode]
    return whole * (split.num_gpus - 1) // split.num_gpus
