"""Trains with diagnostics, full and with an adapter, in the mode it is launched in."""

import json
import sys
from pathlib import Path
from unittest.mock import patch

from accelerate import PartialState

from prefopt.commands.train import leave_together, train
from prefopt.config import Recipe
from prefopt.diagnostics.gram import GramMeter

LORA = {"r": 4, "alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
RUNS = {
    "full": {},
    "tied": {"model": "tied", "checkpointing": True},
    "lora": {"adapter": LORA},
    # Statistics of the whole step.
    "coupled": {"objective": {"name": "dr_dpo", "coupling": "step"}, "tokens": 80},
    # Groups of one response, of ties and of pairs, whose tokens count unequally.
    "mixed": {"objective": {"name": "bmc"}, "data": "mixed.jsonl"},
}


def main(folder: Path) -> None:
    grams: dict[str, list[list[object]]] = {}
    for name, changes in RUNS.items():
        seen = grams.setdefault(name, [])
        plain = GramMeter.measure

        def measure(self, batch, weights=None, plain=plain, seen=seen):
            found = plain(self, batch, weights)
            assert all(p.grad is None for p in self.model.parameters())
            of_parameter = {n: g.tolist() for n, g in found.of_parameter.items()}
            seen.append([batch.ids[0], of_parameter, list(found.missing)])
            return found

        sections = {
            "model": {"path": str(folder.parent / changes.get("model", "model"))},
            "data": {
                "sources": [{"path": str(folder.parent / changes.get("data", "pairs.jsonl"))}],
                "cache_dir": str(folder / "cache"),
            },
            "objective": changes.get("objective", {"name": "dpo"}),
            "training": {
                "output_dir": str(folder / name),
                "groups_per_step": 6,
                "tokens_per_micro_batch": changes.get("tokens", 120),
                "max_steps": 4,
                "learning_rate": 1.0e-3,
                "logging_steps": 1,
                "save_strategy": "no",
                "gradient_checkpointing": changes.get("checkpointing", False),
            },
            # An odd number: one of two ranks has a group less.
            "diagnostics": {"every": 2, "groups": 5},
        }
        if "adapter" in changes:
            sections["adapter"] = changes["adapter"]
        with patch.object(GramMeter, "measure", measure):
            train(Recipe.model_validate(sections))
    rank = PartialState().process_index
    (folder / f"grams-{rank}.json").write_text(json.dumps(grams))
    leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
