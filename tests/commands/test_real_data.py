"""Real preference files train as they are, full and with an adapter."""

import json
import math

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from prefopt.commands.train import train
from prefopt.config import Recipe
from tests.data.builders import bpe_tokenizer
from tests.support.shared import SHARED, needs_data
from tests.support.tiny import tiny_config

PREFERENCES = SHARED / "preferences"
FILES = {
    "hh_harmless_test_400.jsonl": {"name": "dpo"},
    "dpo_en_demo.json": {"name": "ipo"},
    "alpaca_lists_k6.jsonl": {"name": "dpo"},
    "kto_en_demo.json": {"name": "nll", "of": "preferred"},
}
SOURCES = {"alpaca_lists_k6.jsonl": {"as_messages": True}}
ADAPTERS = {"full": None, "lora": {"r": 4}}

pytestmark = needs_data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    tokenizer = bpe_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            tiny_config(
                vocab_size=len(tokenizer),
                pad_token_id=None,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )
        )
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("file", FILES)
def test_ten_steps_on_a_real_file_move_the_model(folder, file, adapter):
    output = folder / f"{file}-{adapter}"
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(folder / "model")},
            "data": {
                "sources": [{"path": str(PREFERENCES / file), **SOURCES.get(file, {})}],
                "max_length": 512,
                "too_long": "cut_response",
                "cache_dir": str(folder / "cache"),
            },
            "objective": FILES[file],
            "adapter": ADAPTERS[adapter],
            "training": {
                "output_dir": str(output),
                "groups_per_step": 4,
                "max_steps": 10,
                "learning_rate": 1e-3,
                "logging_steps": 1,
                "save_strategy": "no",
            },
        }
    )

    trainer = train(recipe)

    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "learning_rate" in line]
    assert len(losses) == 10
    assert all(math.isfinite(loss) for loss in losses)
    start = AutoModelForCausalLM.from_pretrained(folder / "model").state_dict()
    moved = {
        name: parameter
        for name, parameter in trainer.model.named_parameters()
        if parameter.requires_grad
    }
    if adapter == "full":
        assert all(not torch.equal(parameter, start[name]) for name, parameter in moved.items())
    else:
        assert all(parameter.abs().sum() > 0 for parameter in moved.values())
