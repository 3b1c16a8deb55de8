"""Measures the memory of real training on CPUs and sets it beside what `prefopt plan` predicts.

Usage: python scripts/measure_memory.py [NAME ...], from the project's root; names choose cases, the
others keep their numbers. Writes docs/scaling.json; `python scripts/make_scaling_page.py` makes the
page of it. Takes half an hour on two cores.

Each case is `prefopt train` on a random model, in processes of its own: the second step's most
resident memory, above that of the same process before it loaded anything. A step has two
micro-batches on each process, so that gradients are there when the second begins.
"""

import json
import os
import platform
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from benchmark_callbacks import Stop, forget_peak, hung_in, memory
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from prefopt.config import load_recipe
from prefopt.models.blueprint import draw_up, stored_dtype
from prefopt.models.dry_run import Row
from prefopt.models.section import AdapterSection, ModelSection
from prefopt.train.footprint import (
    REDUCE_BUCKET,
    Footprint,
    Mode,
    Precision,
    Split,
    footprint,
    optimizer_of,
)
from prefopt.train.passes import pass_of
from prefopt.train.run_folder import installed_versions

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "scaling.json"
PROMPT, RESPONSE = 64, 96
GROUP = PROMPT + 2 * RESPONSE
LORA = {"r": 16, "alpha": 32}
OPTIMIZER = "adamw_torch_fused"
SPECIAL = ("<pad>", "<eos>", "<unk>")

# Hidden size, width of the MLP, layers, heads, vocabulary.
SIZES = {
    "7M": (256, 768, 6, 4, 8192),
    "21M, wide": (256, 768, 6, 4, 65536),
    "110M": (768, 2048, 12, 12, 32000),
}
# Each tensor is a map of its own, given back at once: what is resident is what lives.
_ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(2**16),
    "MALLOC_TRIM_THRESHOLD_": str(2**16),
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is trained."""

    size: str
    mode: Mode = "single"
    tokens: int = 512
    """Of a micro-batch."""
    is_lora: bool = False
    dtype: str = "float32"
    is_bf16: bool = False
    is_recomputed: bool = False

    @property
    def name(self) -> str:
        """What tells it from the others."""
        parts = [self.size, "LoRA" if self.is_lora else "full", self.mode, f"{self.tokens} tokens"]
        parts += [f"{self.dtype} weights"] if self.dtype != "float32" else []
        parts += ["bf16"] if self.is_bf16 else []
        parts += ["checkpointing"] if self.is_recomputed else []
        return ", ".join(parts)

    @property
    def num_processes(self) -> int:
        """Over which the step is split."""
        return 1 if self.mode == "single" else 2


def cases() -> Iterator[Case]:
    """Every part of the formula dominates in some."""
    yield Case(size="7M", tokens=4096)
    yield Case(size="7M", tokens=4096, is_recomputed=True)
    yield Case(size="7M", tokens=4096, is_lora=True)
    yield Case(size="21M, wide", tokens=1024)
    yield Case(size="110M")
    yield Case(size="110M", is_lora=True)
    yield Case(size="110M", is_bf16=True, is_recomputed=True)
    yield Case(size="110M", is_lora=True, dtype="bfloat16", is_bf16=True)
    modes: tuple[Mode, ...] = ("ddp", "zero2", "zero3", "fsdp2")
    for mode in modes:
        yield Case(size="110M", mode=mode, tokens=GROUP)
    yield Case(size="110M", mode="zero3", tokens=GROUP, is_lora=True)
    yield Case(size="110M", mode="fsdp2", tokens=GROUP, is_lora=True)
    # DeepSpeed takes no bf16 on CPUs.
    yield Case(size="110M", mode="fsdp2", tokens=GROUP, is_bf16=True)


def predict(case: Case, model: Path) -> Footprint:
    """What the formulas say of a process, without a reserve.

    On CPUs a bucket takes only what is written into it.
    """
    section = ModelSection.model_validate({"path": str(model), "dtype": case.dtype})
    adapter = AdapterSection.model_validate(LORA) if case.is_lora else None
    blueprint = draw_up(section, adapter, stored_dtype(section))
    widths = {w.requires_grad: w.dtype.itemsize for w in blueprint.model.parameters()}
    precision = Precision(
        stored=widths.get(False, widths[True]), trained=widths[True], is_bf16=case.is_bf16
    )
    if precision.under(case.mode) != precision:
        blueprint = draw_up(section, adapter, torch.bfloat16, is_cast=True)
    of_pass = pass_of(
        blueprint,
        Row(prompt=case.tokens * PROMPT // GROUP, responses=(case.tokens * 2 * RESPONSE // GROUP,)),
        is_autocast=case.is_bf16 and precision.under(case.mode) == precision,
        is_recomputed=case.is_recomputed,
    )
    split = Split(
        mode=case.mode,
        num_gpus=case.num_processes,
        precision=precision,
        optimizer=optimizer_of(OPTIMIZER)[0],
        num_micro_batches=2,
        bucket=min(REDUCE_BUCKET, blueprint.counts.trained),
    )
    return footprint(blueprint.counts, split, of_pass)


def save_shape(size: str, folder: Path) -> Path:
    """A folder with the configuration of a size."""
    hidden, intermediate, layers, heads, vocabulary = SIZES[size]
    LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    ).save_pretrained(folder)
    return folder


def save_model(size: str, folder: Path) -> Path:
    """A folder with a random model of a size and a tokenizer of one word per token."""
    if folder.is_dir():
        return folder
    config = LlamaConfig.from_pretrained(save_shape(size, folder))
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    words = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), SIZES[size][-1]))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)
    return folder


def write_recipe(case: Case, model: Path, folder: Path) -> Path:
    """A recipe, and the data that it reads: pairs of one length."""
    generator = random.Random(0)
    words = SIZES[case.size][-1]

    def text(num: int) -> str:
        return " ".join(f"w{generator.randrange(len(SPECIAL), words)}" for _ in range(num))

    num_groups = 2 * case.num_processes * case.tokens // GROUP
    rows = [
        # The end-of-sequence token comes on top.
        {"prompt": text(PROMPT), **{k: f" {text(RESPONSE - 1)}" for k in ("chosen", "rejected")}}
        for _ in range(num_groups)
    ]
    data = folder / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "model": {"path": str(model), "dtype": case.dtype},
        "data": {"sources": [{"path": str(data)}], "cache_dir": str(folder / "cache")},
        "objective": {"name": "simpo"},
        "training": {
            "output_dir": str(folder / "run"),
            "groups_per_step": num_groups,
            "tokens_per_micro_batch": case.tokens,
            "max_steps": 2,
            "bf16": case.is_bf16,
            "gradient_checkpointing": case.is_recomputed,
            "optim": OPTIMIZER,
            "save_strategy": "no",
        },
    } | ({"adapter": LORA} if case.is_lora else {})
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe), encoding="utf-8")
    return path


class _SecondStep(TrainerCallback):
    """Takes the peak of the second step, when optimiser state is there."""

    peak = 0.0

    def on_step_begin(self, _: Any, state: Any, __: Any, **___: Any) -> None:
        """Forget what loading and the first step have left."""
        if state.global_step == 1:
            forget_peak(is_cuda=False)

    def on_step_end(self, _: Any, state: Any, __: Any, **___: Any) -> None:
        """The optimiser has moved."""
        if state.global_step == 2:
            self.peak = memory(is_cuda=False)["peak"]

    def on_train_end(self, *_: Any, **__: Any) -> None:
        """Nothing need be saved."""
        raise Stop


def work(recipe: Path, results: Path) -> None:
    """Train in this process, one of a launch, and write its MiB down."""
    from prefopt.commands.train import leave_together, train

    if "ACCELERATE_USE_DEEPSPEED" in os.environ:
        __import__("deepspeed")
    # What the first product of a process allocates for good is not the model's.
    torch.randn(512, 512, requires_grad=True).matmul(torch.randn(512, 512)).sum().backward()
    forget_peak(is_cuda=False)
    before = memory(is_cuda=False)["now"]
    callback = _SecondStep()
    with hung_in(callback):
        train(load_recipe(recipe), overwrite=True)
    file = results / f"{os.environ.get('RANK', '0')}.json"
    file.write_text(json.dumps(callback.peak - before), encoding="utf-8")
    leave_together()


def measure(case: Case, model: Path) -> float:
    """MiB of the process that takes most.

    Raises:
        RuntimeError: with the end of its log, if it failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "results").mkdir()
        recipe = write_recipe(case, model, folder)
        own = [str(Path(__file__).resolve()), "--work", str(recipe), str(folder / "results")]
        configuration = ROOT / "recipes" / "accelerate" / f"{case.mode}.yaml"
        launcher = ["-m", "accelerate.commands.launch", "--config_file", str(configuration)]
        done = subprocess.run(
            [sys.executable, *([] if case.mode == "single" else launcher), *own],
            env={**os.environ, **_ENVIRONMENT},
            capture_output=True,
            text=True,
            check=False,
        )
        found = [json.loads(f.read_text("utf-8")) for f in (folder / "results").iterdir()]
        if len(found) < case.num_processes:
            raise RuntimeError(f"{case.name} failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
        return float(max(found))


def record(case: Case, measured: float) -> None:
    """Write a result down, among those of other cases."""
    content = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    content["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, without a GPU"
    content["versions"] = installed_versions()
    content.setdefault("measured", {})[case.name] = round(measured, 1)
    RESULTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main(names: Sequence[str]) -> None:
    """Measure the named cases, or all."""
    chosen = [case for case in cases() if not names or case.name in names]
    with tempfile.TemporaryDirectory() as folder:
        for case in chosen:
            measured = measure(case, save_model(case.size, Path(folder) / case.size))
            record(case, measured)
            print(f"{case.name}: {measured:.0f} MiB", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--work"]:
        work(Path(sys.argv[2]), Path(sys.argv[3]))
    else:
        os.environ.update(HF_HUB_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
        main(sys.argv[1:])
