"""A converted config trains as TRL's own trainer does from the same config."""

import random
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from prefopt.commands.convert import recipe_text
from prefopt.commands.train import train
from prefopt.config import recipe_of
from prefopt.train.trainer import PreferenceTrainer
from tests.support.runs import logged
from tests.support.tiny import random_text, save_tiny_model, write_jsonl

# TRL itself uses arguments that transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore")

NUM_ROWS, NUM_STEPS = 6, 4
SGD = {
    "optim": "sgd",
    "learning_rate": 0.05,
    "lr_scheduler_type": "constant",
    "max_grad_norm": 10.0,
}
ALL_ROWS = {
    "max_steps": NUM_STEPS,
    "logging_steps": 1,
    "save_strategy": "no",
    "bf16": False,
    "use_cpu": True,
}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sigmoid": ("dpo", {}),
    "sigmoid_norm": ("dpo", {"loss_type": "sigmoid_norm", "beta": 2.0}),
    "ipo": ("dpo", {"loss_type": "ipo", "beta": 0.5, "learning_rate": 0.01}),
    "hinge": ("dpo", {"loss_type": "hinge", "beta": 0.3}),
    "robust": ("dpo", {"loss_type": "robust", "label_smoothing": 0.1}),
    "exo": ("dpo", {"loss_type": "exo_pair", "label_smoothing": 0.01}),
    "nca": ("dpo", {"loss_type": "nca_pair"}),
    "bco": ("dpo", {"loss_type": "bco_pair"}),
    "sppo": ("dpo", {"loss_type": "sppo_hard", "beta": 0.5, "learning_rate": 0.002}),
    "apo_zero": ("dpo", {"loss_type": "apo_zero"}),
    "apo_down": ("dpo", {"loss_type": "apo_down"}),
    "several": ("dpo", {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}),
    "lora": ("dpo", {"use_peft": True, "lora_r": 4, "learning_rate": 0.5}),
    "kto": ("kto", {"desirable_weight": 1.5}),
    "cpo": ("cpo", {"learning_rate": 0.01}),
    "cpo_hinge": ("cpo", {"loss_type": "hinge", "learning_rate": 0.01, "cpo_alpha": 0.5}),
    "simpo": ("cpo", {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0}),
    "simpo_alone": ("cpo", {"loss_type": "simpo", "cpo_alpha": 0.0}),
}
FAST = ("simpo",)
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in CASES if name not in FAST]


def rows_of(trainer: str) -> list[dict[str, Any]]:
    generator = random.Random(3)
    if trainer == "kto":
        # Of two rows there is one way to give each the other's response, and none is cut.
        texts = [[random_text(generator, 6, 6) for _ in range(2)] for _ in range(2)]
        labels = (True, False)
        return [
            {"prompt": prompt, "completion": completion, "label": label}
            for (prompt, completion), label in zip(texts, labels, strict=True)
        ]
    names = ("prompt", "chosen", "rejected")
    return [{name: random_text(generator, 3, 9) for name in names} for _ in range(NUM_ROWS)]


def history_of_trl(values: dict[str, Any], trainer: str, rows: list[Any]) -> list[dict[str, Any]]:
    """What TRL logs of each step of a config, which its own parser reads."""
    import trl
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from trl.scripts.utils import TrlParser

    own, cls = {
        "dpo": (trl.DPOConfig, trl.DPOTrainer),
        "kto": (trl.KTOConfig, trl.KTOTrainer),
        "cpo": (CPOConfig, CPOTrainer),
        "orpo": (ORPOConfig, ORPOTrainer),
    }[trainer]
    file = Path(values["output_dir"]).with_suffix(".yaml")
    file.write_text(yaml.safe_dump({**values, "train_sampling_strategy": "sequential"}))
    parser = TrlParser((trl.ScriptArguments, own, trl.ModelConfig))
    _, args, model = parser.parse_args_and_config(["--config", str(file)])
    args.model_init_kwargs = {"dtype": model.dtype}
    made = cls(
        model=model.model_name_or_path,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        peft_config=trl.get_peft_config(model),
        processing_class=_tokenizer(model.model_name_or_path),
    )
    made.train()
    return [line for line in made.state.log_history if "loss" in line]


def _tokenizer(path: str) -> Any:
    return AutoTokenizer.from_pretrained(path)


def write_config(folder: Path, rows: list[Any], own: dict[str, Any]) -> dict[str, Any]:
    """A config whose steps are the whole data, without an output folder."""
    (folder / "data").mkdir()
    write_jsonl(folder / "data" / "train.jsonl", rows)
    return {
        "model_name_or_path": str(save_tiny_model(folder / "model")),
        "dataset_name": str(folder / "data"),
        "per_device_train_batch_size": len(rows),
        **ALL_ROWS,
        **SGD,
        **own,
    }


def train_converted(config: dict[str, Any], trainer: str, output: Path) -> PreferenceTrainer:
    text, _ = recipe_text({**config, "output_dir": str(output)}, trainer=trainer)
    return train(recipe_of(yaml.safe_load(text)))


@pytest.fixture(autouse=True)
def nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CI", "1")  # or TRL reports its use
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", [*FAST, *SLOW])
def test_losses_of_full_batch_steps_are_those_of_trl(name: str, tmp_path: Path):
    trainer, own = CASES[name]
    rows = rows_of(trainer)
    config = write_config(tmp_path, rows, own)

    ours = logged(train_converted(config, trainer, tmp_path / "ours"), "loss")
    history = history_of_trl({**config, "output_dir": str(tmp_path / "theirs")}, trainer, rows)

    assert ours == pytest.approx([line["loss"] for line in history], rel=1e-4, abs=1e-5)
    assert abs(ours[-1] - ours[0]) > 0.01


@pytest.mark.slow
def test_orpo_has_the_odds_of_trl_and_the_nll_of_responses(tmp_path: Path):
    rows = rows_of("orpo")
    config = write_config(tmp_path, rows, {"beta": 0.3, "max_steps": 1})

    ours = train_converted(config, "orpo", tmp_path / "ours")
    [line] = history_of_trl({**config, "output_dir": str(tmp_path / "theirs")}, "orpo", rows)

    [margin], [loss] = logged(ours, "rewards/margins"), logged(ours, "loss")
    assert margin == pytest.approx(line["log_odds_chosen"], rel=1e-4)
    nll = loss + 0.3 * line["log_odds_ratio"]
    assert nll == pytest.approx(nll_per_response(config["model_name_or_path"], rows), rel=1e-4)
    assert nll != pytest.approx(line["nll_loss"], rel=1e-2)


def nll_per_response(path: str, rows: list[dict[str, Any]]) -> float:
    """The mean over rows of the mean over a chosen response's tokens, by the model itself."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path), _tokenizer(path)
    values = []
    for row in rows:
        prompt = tokenizer(row["prompt"])["input_ids"]
        response = [*tokenizer(row["chosen"])["input_ids"], tokenizer.eos_token_id]
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        values.append(torch.nn.functional.cross_entropy(logits, torch.tensor(response)).item())
    return sum(values) / len(values)
