"""Steps that are not finite, in one launch per mode; test_guard_modes.py compares the results.

Usage: guard_all.py FOLDER, below accelerate launch.
"""

import json
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from safetensors.torch import save_file

import prefopt.commands.assemble as assemble
import prefopt.commands.train as command
from prefopt.config import Recipe
from prefopt.objectives.dpo import DPO
from prefopt.train.guard import NonFiniteLossError
from prefopt.train.trainer import PreferenceTrainer
from prefopt.types import ObjectiveInputs, ObjectiveOutput

GROUPS_PER_STEP, SKIPPED_STEP, LAST_STEP = 5, 3, 5
HUGE_SCORE = 9


class Exploding(DPO):
    """DPO whose loss is not a number for groups with a huge score."""

    def __call__(self, inputs: ObjectiveInputs) -> ObjectiveOutput:
        output = super().__call__(inputs)
        bad = (inputs.scores == HUGE_SCORE).any(dim=1)
        return ObjectiveOutput(
            losses=output.losses * torch.where(bad, torch.nan, 1.0),
            counted=output.counted,
            rewards=output.rewards,
            metrics={},
        )


class Watched(PreferenceTrainer):
    """A trainer that the script can look into, with one infinite gradient where it is told."""

    last: "Watched"
    steep_step = 0

    def training_step(self, model, inputs, num_items_in_batch=None):
        Watched.last = self
        is_steep = self.state.global_step + 1 == self.steep_step
        layer = self.accelerator.unwrap_model(model).model.layers[0]

        def make_steep(module, arguments, output):
            if output.requires_grad:
                output.register_hook(lambda gradient: torch.full_like(gradient, torch.inf))

        # Of one process alone: the others must hear of it.
        is_here = is_steep and self.args.process_index == self.args.world_size - 1
        handle = layer.register_forward_hook(make_steep) if is_here else None
        loss = super().training_step(model, inputs, num_items_in_batch)
        if handle is not None:
            handle.remove()
        return loss


def run(folder: Path, name: str, *, steep_step: int = 0, **training: object) -> dict:
    """Train; what came of it, and the weights as they are then in `name`.safetensors."""
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(folder.parent / "model")},
            "data": {
                "sources": [{"path": str(folder.parent / f"{name}.jsonl")}],
                "cache_dir": str(folder.parent / "cache"),
            },
            "objective": Exploding(),
            "reference": {"cache": "off"},
            "training": {
                "output_dir": str(folder / name),
                "groups_per_step": GROUPS_PER_STEP,
                "tokens_per_micro_batch": 60,
                "shuffle": False,
                "max_steps": LAST_STEP,
                "learning_rate": 1.0e-2,
                # Every step has another learning rate, the same whatever the number of steps.
                "lr_scheduler_type": "constant_with_warmup",
                "warmup_steps": 8,
                "logging_steps": 1,
                "save_strategy": "no",
                **training,
            },
        }
    )
    Watched.steep_step = steep_step
    error = ""
    with patch.object(assemble, "PreferenceTrainer", Watched), patch.object(command, "plot_curves"):
        try:
            command.train(recipe)
        except NonFiniteLossError as raised:
            error = str(raised)
    trainer = Watched.last
    weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if PartialState().is_main_process:
        whole = {key: value.contiguous().clone() for key, value in weights.items()}
        save_file(whole, folder / f"{name}.safetensors")
    return {
        "errors": gather_object([error]),
        "steps": trainer.state.global_step,
        "skipped": gather_object([trainer.window.num_skipped]),
    }


def main(folder: Path) -> None:
    facts = {
        "loss_then_gradient": run(
            folder, "loss_then_gradient", steep_step=LAST_STEP, max_skipped_steps=1
        ),
        "gradient_then_loss": run(
            folder, "gradient_then_loss", steep_step=SKIPPED_STEP, max_skipped_steps=1
        ),
        "without_either": run(folder, "without_either", max_steps=LAST_STEP - 2),
    }
    if PartialState().is_main_process:
        (folder / "facts.json").write_text(json.dumps(facts))
    command.leave_together()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
