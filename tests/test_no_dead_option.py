"""Each key of a recipe changes something that a run leaves, or is refused.

Parameters of objectives: tests/objectives/test_every_parameter.py.
"""

import inspect
import typing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from pydantic import BaseModel
from transformers import TrainingArguments, trainer, training_args
from transformers.integrations import integration_utils

from prefopt.config import Recipe
from prefopt.data.prepare import prepare_data
from prefopt.models.section import ModelSection
from prefopt.models.tokenizer import load_tokenizer
from prefopt.objectives import Objective
from prefopt.train.section import REFUSED
from tests.support.fingerprint import fingerprint
from tests.support.runs import LORA, recipe, run
from tests.support.tiny import (
    CHAT_TEMPLATE,
    character_tokenizer,
    save_tiny_model,
    write_inputs,
    write_jsonl,
)

Sections = dict[str, Any]
Case = tuple[Sections, Sections]


def test_the_table_has_every_key_of_a_recipe():
    assert set(CASES) | ELSEWHERE.keys() == {*walk(Recipe), *accepted_arguments()}
    assert set(CASES) & ELSEWHERE.keys() == set()


def walk(section: type[BaseModel], where: str = "") -> Iterator[str]:
    """Keys of a section and of those in it, without objectives."""
    for name, field in section.model_fields.items():
        inner = [each for each in classes(field.annotation) if issubclass(each, BaseModel)]
        if not inner:
            yield f"{where}{name}"
        for each in inner:
            if not issubclass(each, Objective):
                yield from walk(each, f"{where}{name}.")


def classes(annotation: Any) -> Iterator[type]:
    if inspect.isclass(annotation) and not typing.get_args(annotation):
        yield annotation
    for part in typing.get_args(annotation):
        yield from classes(part)


def accepted_arguments() -> set[str]:
    hints = typing.get_type_hints(TrainingArguments)
    names = set(inspect.signature(TrainingArguments).parameters) & hints.keys()
    return {f"training.{name}" for name in names - set(REFUSED)}


# What a run holds in tests/support/runs.py, and what a second one has besides.
HELD_OUT = {"evaluation": {"num_groups": 4}}
SELF = {"evaluation": {"sources": [{"path": "pairs.jsonl"}]}}
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1}
BEST = {**EVALUATED, "save_strategy": "steps", "save_steps": 1, "max_steps": 4}
WORST_LOSS = {"metric_for_best_model": "eval_loss", "greater_is_better": True}
LISTS = {"sources": [{"path": "lists.jsonl"}]}
INFONCA = {"name": "infonca", "alpha": 0.1, "beta": 0.1}
CHAT = {"sources": [{"path": "chat.jsonl"}]}


def training(before: Sections | None = None, **after: Any) -> Case:
    """A key of training beside others of it."""
    return {"training": before or {}}, {"training": {**(before or {}), **after}}


def evaluated(before: Sections, *, on: Sections = HELD_OUT, **after: Any) -> Case:
    """The same with held-out data."""
    old, new = training(before, **after)
    return {"data": on, **old}, {"data": on, **new}


def source(**keys: Any) -> Case:
    return {}, {"data": {"sources": [{"path": "pairs.jsonl", **keys}]}}


def lists(before: Sections, **after: Any) -> Case:
    return (
        {"objective": INFONCA, "data": {**LISTS, **before}},
        {"objective": INFONCA, "data": {**LISTS, **before, **after}},
    )


def adapter(before: Sections | None = None, **after: Any) -> Case:
    old = {**LORA, **(before or {})}
    return {"adapter": old}, {"adapter": {**old, **after}}


FORGET = {"objective": {"name": "grad_ascent"}}
PADDED = {"layout": "padded"}

CASES: dict[str, Case] = {
    "model.path": ({}, {"model": {"path": "other"}}),
    "model.revision": ({}, {"model": {"revision": "main"}}),
    "model.tokenizer": ({"data": CHAT}, {"data": CHAT, "model": {"tokenizer": "tokenizer"}}),
    "model.dtype": ({}, {"model": {"dtype": "bfloat16"}}),
    "model.layout": ({}, {"model": PADDED}),
    "model.attn_implementation": (
        {"model": PADDED},
        {"model": {**PADDED, "attn_implementation": "eager"}},
    ),
    "model.trust_remote_code": (
        {"model": {"path": "own_code"}},
        {"model": {"path": "own_code", "trust_remote_code": True}},
    ),
    "model.chat_template": ({"data": CHAT}, {"data": CHAT, "model": {"chat_template": "chatml"}}),
    "model.eos_token": ({}, {"model": {"eos_token": "<a>"}}),
    "model.quantization": (
        {"adapter": LORA},
        {"adapter": LORA, "model": {"quantization": "nf4"}},
    ),
    "model.dropout": (
        {"model": {"path": "with_dropout"}},
        {"model": {"path": "with_dropout", "dropout": True}},
    ),
    "data.sources.path": ({}, {"data": CHAT}),
    "data.sources.name": source(name="part"),
    "data.sources.split": source(split="test"),
    "data.sources.format": source(format="lists"),
    "data.sources.columns": source(columns={"chosen": "rejected", "rejected": "chosen"}),
    "data.sources.as_messages": source(as_messages=True),
    "data.sources.weight": source(weight=0.25),
    "data.sources.role": (
        FORGET,
        {**FORGET, "data": {"sources": [{"path": "pairs.jsonl", "role": "forget"}]}},
    ),
    "data.evaluation.fraction": (
        {"data": {"evaluation": {"fraction": 0.2}}},
        {"data": {"evaluation": {"fraction": 0.5}}},
    ),
    "data.evaluation.num_groups": (
        {"data": {"evaluation": {"num_groups": 2}}},
        {"data": {"evaluation": {"num_groups": 9}}},
    ),
    "data.scores": lists({}, scores="rank"),
    "data.keep": lists({}, keep="best_worst"),
    "data.top_k": lists({"keep": "top_k", "top_k": 2}, top_k=3),
    "data.max_length": ({}, {"data": {"max_length": 15}}),
    "data.too_long": (
        {"data": {"max_length": 15}},
        {"data": {"max_length": 15, "too_long": "cut_response"}},
    ),
    "data.invalid": (
        {"data": {"sources": [{"path": "invalid.jsonl"}]}},
        {"data": {"sources": [{"path": "invalid.jsonl"}], "invalid": "drop"}},
    ),
    "data.seed": ({"data": HELD_OUT}, {"data": {**HELD_OUT, "seed": 3}}),
    "reference.path": ({}, {"reference": {"path": "other"}}),
    "reference.cache": ({}, {"reference": {"cache": "always"}}),
    "adapter.path": ({"adapter": LORA}, {"adapter": {"path": "adapter"}}),
    "adapter.r": adapter(r=2),
    "adapter.alpha": adapter(alpha=2),
    "adapter.dropout": (
        {"adapter": LORA, "model": {"dropout": True}},
        {"adapter": {**LORA, "dropout": 0.5}, "model": {"dropout": True}},
    ),
    "adapter.target_modules": adapter(target_modules=["k_proj"]),
    "adapter.modules_to_save": adapter(modules_to_save=["embed_tokens"]),
    "adapter.dora": adapter(dora=True),
    "adapter.rslora": adapter(rslora=True),
    "training.groups_per_step": training(groups_per_step=3),
    "training.tokens_per_micro_batch": training(tokens_per_micro_batch=32),
    "training.torch_compile": training(torch_compile=True),
    "training.normalise_gradients": training(normalise_gradients=True),
    "training.shuffle": training(shuffle=False),
    "training.early_stopping_patience": evaluated(
        {**EVALUATED, "learning_rate": 0.0, "max_steps": 6}, early_stopping_patience=1
    ),
    "training.early_stopping_threshold": evaluated(
        {**EVALUATED, "early_stopping_patience": 1, "max_steps": 6},
        on=SELF,
        early_stopping_threshold=9.0,
    ),
    "training.max_minutes": training(max_minutes=1e-6),
    "training.max_skipped_steps": training({"learning_rate": 1e38}, max_skipped_steps=3),
    "diagnostics.every": (
        {"training": {"max_steps": 4}, "diagnostics": {"every": 1, "groups": 2}},
        {"training": {"max_steps": 4}, "diagnostics": {"every": 3, "groups": 2}},
    ),
    "diagnostics.groups": (
        {"diagnostics": {"every": 1, "groups": 2}},
        {"diagnostics": {"every": 1, "groups": 3}},
    ),
    "training.num_train_epochs": training({"max_steps": -1}, num_train_epochs=1),
    "training.max_steps": training(max_steps=3),
    "training.learning_rate": training(learning_rate=2e-3),
    "training.lr_scheduler_type": training({"max_steps": 3}, lr_scheduler_type="cosine"),
    "training.lr_scheduler_kwargs": training(
        {"lr_scheduler_type": "cosine_with_restarts", "max_steps": 4},
        lr_scheduler_kwargs={"num_cycles": 2},
    ),
    "training.warmup_steps": training(warmup_steps=2),
    "training.optim": training(optim="sgd"),
    "training.optim_args": training({"optim": "rmsprop"}, optim_args="alpha=0.1"),
    "training.optim_target_modules": training(optim_target_modules="all-linear"),
    "training.weight_decay": training(weight_decay=0.5),
    "training.adam_beta1": training(adam_beta1=0.5),
    "training.adam_beta2": training(adam_beta2=0.5),
    "training.adam_epsilon": training(adam_epsilon=1e-2),
    "training.max_grad_norm": training(max_grad_norm=1e-4),
    "training.bf16": training(bf16=True),
    "training.activation_checkpointing": training(activation_checkpointing=True),
    "training.gradient_checkpointing": training(gradient_checkpointing=True),
    "training.activation_checkpointing_kwargs": training(
        {"activation_checkpointing": True}, activation_checkpointing_kwargs={"use_reentrant": True}
    ),
    "training.gradient_checkpointing_kwargs": training(
        {"gradient_checkpointing": True}, gradient_checkpointing_kwargs={"use_reentrant": True}
    ),
    "training.logging_strategy": training(logging_steps=None, logging_strategy="no"),
    "training.logging_steps": training(logging_steps=2),
    "training.logging_first_step": training({"logging_steps": 2}, logging_first_step=True),
    "training.log_level": training(log_level="error"),
    "training.report_to": training(report_to="tensorboard"),
    "training.run_name": training(run_name="mine"),
    "training.project": training(project="mine"),
    "training.trackio_space_id": training(trackio_space_id="mine"),
    "training.trackio_bucket_id": training(trackio_bucket_id="mine"),
    "training.trackio_static_space_id": training(trackio_static_space_id="mine"),
    "training.eval_strategy": evaluated({"max_steps": 4}, eval_strategy="no"),
    "training.eval_steps": evaluated(EVALUATED, eval_steps=2),
    "training.eval_delay": evaluated(EVALUATED, eval_delay=2),
    "training.eval_on_start": evaluated(EVALUATED, eval_on_start=True),
    "training.save_only_model": training({"save_strategy": "steps"}, save_only_model=True),
    "training.save_strategy": training(save_strategy="epoch"),
    "training.save_steps": training({"save_strategy": "steps"}, save_steps=1),
    "training.save_total_limit": training(
        {"save_strategy": "steps", "save_steps": 1}, save_total_limit=1
    ),
    "training.load_best_model_at_end": evaluated(
        {**BEST, **WORST_LOSS}, load_best_model_at_end=True
    ),
    "training.metric_for_best_model": evaluated(
        {**BEST, "load_best_model_at_end": True, "greater_is_better": True, **WORST_LOSS},
        metric_for_best_model="eval_rewards/margins",
    ),
    "training.greater_is_better": evaluated(
        {**BEST, "load_best_model_at_end": True, **WORST_LOSS}, greater_is_better=False
    ),
    "training.full_determinism": training(full_determinism=True),
    "training.seed": training(seed=7),
    "training.data_seed": training(data_seed=7),
    "training.debug": training(debug="underflow_overflow"),
    "training.skip_memory_metrics": training(skip_memory_metrics=False),
    "training.dataloader_num_workers": training(dataloader_num_workers=1),
    "training.fsdp": training(fsdp="full_shard"),
    "training.fsdp_config": training(fsdp_config={"reshard_after_forward": True}),
    "training.deepspeed": training(deepspeed="absent.json"),
    "training.ddp_backend": training(ddp_backend="gloo"),
}

REFUSED_HERE = {
    *("model.revision", "data.sources.name", "data.sources.split", "data.sources.format"),
    *("training.optim_target_modules", "training.run_name", "training.project"),
    *(f"training.trackio_{name}" for name in ("space_id", "bucket_id", "static_space_id")),
    *(f"training.{name}" for name in ("fsdp", "fsdp_config", "deepspeed", "ddp_backend")),
}
"""Keys that say nothing of a run in one process, on one file, or without what they belong to."""
ENDS = {"training.max_minutes": "Stopped"}

_DDP = "read by transformers where several processes share a model; several modes run in CI"
ELSEWHERE = {
    "data.num_workers": "test_records_are_tokenised_by_as_many_processes",
    "data.cache_dir": "test_the_cache_lies_where_the_recipe_says",
    "data.evaluation.sources.path": "the keys of sources, for held-out data",
    **{
        f"data.evaluation.sources.{name}": "the keys of sources, for held-out data"
        for name in ("name", "split", "format", "columns", "as_messages", "weight", "role")
    },
    "training.output_dir": "test_a_run_lies_where_the_recipe_says",
    "training.tf32": "of GPUs",
    "training.use_cpu": "of machines with an accelerator",
    "training.ddp_find_unused_parameters": _DDP,
    "training.ddp_bucket_cap_mb": _DDP,
    "training.ddp_broadcast_buffers": _DDP,
    "training.ddp_static_graph": _DDP,
    "training.ddp_timeout": _DDP,
    "training.log_on_each_node": "of several machines",
    "training.log_level_replica": "of processes but the first",
}
"""Keys that a single process on CPUs cannot show, and why or where they are shown."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = write_inputs(tmp_path_factory.mktemp("options"), num_pairs=24, num_lists=8)
    save_tiny_model(place / "other", seed=5)
    save_tiny_model(place / "with_dropout", attention_dropout=0.5)
    _write_own_code(place / "own_code")
    character_tokenizer(CHAT_TEMPLATE.replace("<u>", "<a>")).save_pretrained(place / "tokenizer")
    said = [
        {
            "prompt": [{"role": "user", "content": f"ab{letter}"}],
            "chosen": [{"role": "assistant", "content": letter}],
            "rejected": [{"role": "assistant", "content": f"{letter}z"}],
        }
        for letter in "cdefghijkl"
    ]
    write_jsonl(place / "chat.jsonl", said)
    run(place, "adapter", adapter=LORA)
    rows = [{"prompt": f"a{i}", "chosen": "b" * (i % 3), "rejected": "c"} for i in range(12)]
    write_jsonl(place / "invalid.jsonl", rows)
    return place


def _write_own_code(place: Path) -> None:
    """A model that lies with code of its own, as many on the hub do."""
    save_tiny_model(place)
    config = place / "config.json"
    text = config.read_text(encoding="utf-8")
    named = (
        '"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.Own"},\n'
        '  "model_type": "own_llama"'
    )
    config.write_text(text.replace('"model_type": "llama"', named), encoding="utf-8")
    (place / "own.py").write_text(
        "from transformers import LlamaConfig, LlamaForCausalLM\n\n\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own_llama'\n\n\n"
        "class Own(LlamaForCausalLM):\n    config_class = OwnConfig\n",
        encoding="utf-8",
    )


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """Fingerprints of runs that several keys start from."""
    return {}


@pytest.mark.slow
# The compiler's own code, not ours, warns.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("key", CASES)
def test_a_key_changes_what_a_run_leaves(
    folder: Path, known: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(folder)
    before, after = CASES[key]
    if str(before) not in known:
        known[str(before)] = fingerprint(folder, before)

    left = fingerprint(folder, after)
    assert left != known[str(before)]
    assert left["ended"] == ENDS.get(key, "UserError" if key in REFUSED_HERE else "")


@pytest.mark.slow
def test_one_and_the_same_run_leaves_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    sections = {"data": HELD_OUT, "training": {**EVALUATED, "save_strategy": "steps"}}

    assert fingerprint(folder, sections) == fingerprint(folder, sections)


@pytest.mark.slow
def test_records_are_tokenised_by_as_many_processes(folder: Path, tmp_path: Path):
    # A process gets a thousand at a time.
    rows = [{"prompt": f"a{i}", "chosen": "b", "rejected": "c"} for i in range(1001)]
    section = recipe(folder, data={"num_workers": 2, "cache_dir": str(tmp_path / "cache")}).data
    source = section.sources[0].model_copy(
        update={"path": str(write_jsonl(tmp_path / "many.jsonl", rows))}
    )
    tokenizer = load_tokenizer(ModelSection(path=str(folder / "model")))

    with patch("prefopt.data.tokens.ProcessPoolExecutor", wraps=ProcessPoolExecutor) as pool:
        prepare_data(section.model_copy(update={"sources": (source,)}), tokenizer)

    assert [call.args[0] for call in pool.call_args_list] == [2]


def test_the_cache_lies_where_the_recipe_says(folder: Path, tmp_path: Path):
    section = recipe(folder, data={"cache_dir": str(tmp_path / "here")}).data
    prepare_data(section, load_tokenizer(ModelSection(path=str(folder / "model"))))

    assert any(path.is_file() for path in (tmp_path / "here").rglob("*"))


@pytest.mark.slow
def test_a_run_lies_where_the_recipe_says(folder: Path, tmp_path: Path):
    fingerprint(folder, {"training": {"output_dir": str(tmp_path / "there")}})

    assert (tmp_path / "there" / "model.safetensors").is_file()


def test_what_needs_several_processes_is_read_by_transformers():
    source = "".join(map(inspect.getsource, (trainer, training_args, integration_utils)))
    keys = [key.removeprefix("training.") for key in ELSEWHERE if key.startswith("training.")]

    unread = [key for key in keys if f"args.{key}" not in source and f"self.{key}" not in source]
    assert unread == []
