"""Trains with a live reference and with a cached one, in the mode it is launched in."""

import json
import sys
from pathlib import Path
from unittest.mock import patch

from accelerate import PartialState

from prefopt.commands.train import leave_together, train
from prefopt.config import Recipe
from prefopt.data import reference_cache
from prefopt.models.reference import FrozenCopy, StartOfAdapter

ADAPTERS = {
    "full": {},
    "lora": {"adapter": {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj"]}},
    "going-on": {"adapter": {"path": "started"}},
}


def main(folder: Path) -> None:
    # 41 records in pieces of 8: the last holds one record, so one of two ranks has nothing of it.
    reference_cache.RECORDS_PER_PIECE = 8
    facts = {}
    for kind, adapter in ADAPTERS.items():
        for cache in ("off", "auto", "again"):
            name = f"{kind}-{cache}"
            sections = {
                "model": {"path": str(folder.parent / "model")},
                "data": {
                    "sources": [{"path": str(folder.parent / "pairs.jsonl")}],
                    "cache_dir": str(folder / "cache"),
                    "evaluation": {"num_groups": 5},
                },
                "objective": {"name": "ipo" if cache == "again" else "dpo"},
                "reference": {"cache": "off" if cache == "off" else "auto"},
                "training": {
                    "output_dir": str(folder / name),
                    "groups_per_step": 7,
                    "tokens_per_micro_batch": 100,
                    "max_steps": 8,
                    "learning_rate": 1.0e-3,
                    "logging_steps": 1,
                    "save_strategy": "no",
                },
            }
            if adapter:
                section = adapter["adapter"]
                path = {"path": str(folder.parent / "started")} if "path" in section else section
                sections["adapter"] = path
            with (
                patch.object(
                    FrozenCopy, "token_logps", autospec=True, side_effect=FrozenCopy.token_logps
                ) as of_copy,
                patch.object(
                    StartOfAdapter,
                    "token_logps",
                    autospec=True,
                    side_effect=StartOfAdapter.token_logps,
                ) as of_adapter,
            ):
                trainer = train(Recipe.model_validate(sections))
            facts[name] = {
                "passes": of_copy.call_count + of_adapter.call_count,
                "reference": type(trainer.reference).__name__,
                "type": str(trainer.accelerator.distributed_type),
                "processes": trainer.accelerator.num_processes,
            }
    rank = PartialState().process_index
    (folder / f"facts-{rank}.json").write_text(json.dumps(facts))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
