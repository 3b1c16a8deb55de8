"""Trains a few objectives, full and LoRA, in one launch; test_modes.py compares the results.

Usage: train_all.py FOLDER DTYPE TOKENS_PER_MICRO_BATCH, below accelerate launch.
"""

import json
import sys
from pathlib import Path

from accelerate import PartialState
from torch.distributed.tensor import DTensor

from prefopt.commands.train import leave_together, train
from prefopt.config import Recipe

OBJECTIVES = {
    "dpo": {"name": "dpo"},
    "ipo": {"name": "ipo"},
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
ADAPTERS = {
    "full": None,
    "lora": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
}


def main(folder: Path, dtype: str, tokens_per_micro_batch: int) -> None:
    facts = {}
    for objective, section in OBJECTIVES.items():
        for kind, adapter in ADAPTERS.items():
            name = f"{objective}-{kind}"
            sections = {
                "model": {"path": str(folder.parent / "model"), "dtype": dtype},
                "data": {
                    "sources": [{"path": str(folder.parent / "pairs.jsonl")}],
                    "cache_dir": str(folder.parent / "cache"),
                },
                "objective": section,
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
            }
    if PartialState().is_main_process:
        (folder / "facts.json").write_text(json.dumps(facts))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
