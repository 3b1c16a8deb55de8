"""Trains some objectives, full and LoRA, in one launch; test_modes.py compares the results.

Usage: train_all.py FOLDER DTYPE TOKENS_PER_MICRO_BATCH OBJECTIVE..., below accelerate launch.
FOLDER.parent holds what `write_inputs` makes.
"""

import json
import random
import sys
from pathlib import Path
from unittest.mock import patch

from accelerate import PartialState
from torch.distributed.tensor import DTensor

from prefopt.commands.train import leave_together, train
from prefopt.config import Recipe
from tests.support.tiny import (
    random_text,
    save_tiny_model,
    write_jsonl,
    write_lists,
    write_pairs,
)

OBJECTIVES = {
    "dpo": {"name": "dpo"},
    "lipo": {"name": "lipo", "ranking": "lambda"},
    "dr_dpo": {"name": "dr_dpo"},
    "pairwise_cringe": {"name": "pairwise_cringe"},
    "npo_kl": {"name": "npo", "retain": "kl"},
    # All that is asked of the whole vocabulary, of tokens and of the other groups of a step.
    "all_traits": {
        "name": "weighted_sum",
        "terms": [
            {"name": "kto", "weight": 1.0},
            {"name": "cringe", "k": 2, "weight": 0.1},
            {"name": "npo", "retain": "kl", "weight": 0.05},
        ],
    },
}
SOURCES = {
    "lipo": [{"path": "lists.jsonl"}],
    "npo_kl": [
        {"path": "forget.jsonl", "role": "forget"},
        {"path": "retain.jsonl", "role": "retain"},
    ],
}
"""Of objectives that do not train on pairs."""
ADAPTERS = {
    "full": None,
    "lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
}


def write_inputs(folder: Path) -> None:
    """A model, pairs, scored lists, and what to forget and to retain."""
    save_tiny_model(folder / "model")
    write_pairs(folder / "pairs.jsonl", 40)
    write_lists(folder / "lists.jsonl", 40)
    generator = random.Random(0)
    for role, num in (("forget", 30), ("retain", 40)):
        rows = [
            {
                "prompt": random_text(generator, 3, 12),
                "completion": random_text(generator, 2, 12),
            }
            for _ in range(num)
        ]
        write_jsonl(folder / f"{role}.jsonl", rows)


def main(folder: Path, dtype: str, tokens_per_micro_batch: int, objectives: list[str]) -> None:
    inputs, facts = folder.parent, {}
    for objective in objectives:
        sources = SOURCES.get(objective, [{"path": "pairs.jsonl"}])
        for kind, adapter in ADAPTERS.items():
            name = f"{objective}-{kind}"
            sections = {
                "model": {"path": str(inputs / "model"), "dtype": dtype},
                "data": {
                    "sources": [{**each, "path": str(inputs / each["path"])} for each in sources],
                    "cache_dir": str(inputs / "cache"),
                },
                "objective": OBJECTIVES[objective],
                "training": {
                    "output_dir": str(folder / name),
                    "groups_per_step": 7,
                    "tokens_per_micro_batch": tokens_per_micro_batch,
                    "max_steps": 20,
                    "learning_rate": 1.0e-3,
                    # Not the 1.0 that DeepSpeed clips at when nobody tells it otherwise.
                    "max_grad_norm": 0.5,
                    "logging_steps": 1,
                    "save_strategy": "no",
                },
            }
            if adapter is not None:
                sections["adapter"] = adapter
            with patch("prefopt.commands.train.plot_curves"):
                trainer = train(Recipe.model_validate(sections))
            parameters = list(trainer.model_wrapped.parameters())
            facts[name] = {
                "processes": trainer.accelerator.num_processes,
                "type": str(trainer.accelerator.distributed_type),
                "dtensors": sum(isinstance(p, DTensor) for p in parameters),
                "partitioned": sum(
                    hasattr(p, "ds_tensor") and p.ds_tensor.numel() < p.ds_numel for p in parameters
                ),
                "parameters": len(parameters),
                "zero_stage": getattr(trainer.model_wrapped, "zero_optimization_stage", int)(),
            }
    if PartialState().is_main_process:
        (folder / "facts.json").write_text(json.dumps(facts))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4:])
