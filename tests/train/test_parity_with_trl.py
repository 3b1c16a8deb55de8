"""Losses and gradient norms of every step against TRL's own DPO trainer on the same rows."""

import random
from dataclasses import dataclass

import datasets
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.runs import logged, run
from tests.support.tiny import random_text, save_tiny_model, write_jsonl

# TRL itself uses arguments that transformers deprecates.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

NUM_STEPS, PAIRS_PER_STEP, BETA = 20, 4, 0.1
# Scaled up, so that a new adapter gets somewhere in 20 steps at the bar's learning rate.
SHAPE = {"r": 8, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"]}
ALPHA = 128
OBJECTIVES = {
    "dpo": ({"name": "dpo", "beta": BETA}, "sigmoid"),
    "ipo": ({"name": "ipo", "tau": BETA}, "ipo"),
}
LEAST_MOVE = {"dpo": 0.05, "ipo": 1.0}
METRICS = [
    "rewards/chosen",
    "rewards/rejected",
    "rewards/accuracies",
    "rewards/margins",
    "logps/chosen",
    "logps/rejected",
]


@dataclass(frozen=True)
class Case:
    objective: str
    adapter: str
    """none, new, or one that training goes on from"""
    recompute: bool
    rows: str = "text"


FAST = [Case("ipo", "new", recompute=True)]
ALL = [
    Case(objective, adapter, recompute)
    for objective in OBJECTIVES
    for adapter in ("none", "new", "started")
    for recompute in (False, True)
] + [
    Case("dpo", "none", recompute=False, rows="chat"),
    Case("ipo", "new", recompute=True, rows="chat"),
]
CASES = [
    *FAST,
    *(pytest.param(case, marks=pytest.mark.slow) for case in ALL if case not in FAST),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trl")
    save_tiny_model(folder / "model")
    base = AutoModelForCausalLM.from_pretrained(folder / "model")
    torch.manual_seed(1)
    started = get_peft_model(base, new_adapter())
    for name, value in started.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(value, std=0.01)
    started.save_pretrained(folder / "started")
    return folder


def new_adapter():
    return LoraConfig(lora_alpha=ALPHA, task_type="CAUSAL_LM", **SHAPE)


def rows_of(kind):
    """Pairs with a rule that is learned in 20 steps: the better answer is all vowels."""
    generator = random.Random(3)
    rows = [
        {
            "prompt": random_text(generator, 3, 12),
            "chosen": "".join(generator.choices("aeiou", k=generator.randint(2, 9))),
            "rejected": "".join(generator.choices("bcdfg", k=generator.randint(2, 9))),
        }
        for _ in range(NUM_STEPS * PAIRS_PER_STEP)
    ]
    if kind == "text":
        return rows
    return [
        {
            "prompt": [{"role": "user", "content": row["prompt"]}],
            "chosen": [{"role": "assistant", "content": row["chosen"]}],
            "rejected": [{"role": "assistant", "content": row["rejected"]}],
        }
        for row in rows
    ]


def run_of_prefopt(folder, case, output):
    sections = {}
    if case.adapter != "none":
        started = {"path": str(folder / "started")}
        sections["adapter"] = started if case.adapter == "started" else {"alpha": ALPHA, **SHAPE}
    return run(
        folder,
        str(output),
        data={"sources": [{"path": str(folder / f"{case.rows}.jsonl")}]},
        objective=OBJECTIVES[case.objective][0],
        training={
            "groups_per_step": PAIRS_PER_STEP,
            "max_steps": NUM_STEPS,
            "shuffle": False,
            "learning_rate": 5.0e-4,
            "lr_scheduler_type": "linear",
            "max_grad_norm": 1.0,
            "optim": "adamw_torch",
            "gradient_checkpointing": case.recompute,
        },
        **sections,
    )


def run_of_trl(folder, case, output):
    from trl import DPOConfig, DPOTrainer

    load = AutoModelForCausalLM.from_pretrained
    model, reference = load(folder / "model"), load(folder / "model")
    if case.adapter == "started":
        model = PeftModel.from_pretrained(model, folder / "started", is_trainable=True)
    trainer = DPOTrainer(
        model=model,
        ref_model=reference if case.adapter == "none" else None,
        args=DPOConfig(
            output_dir=str(output),
            loss_type=OBJECTIVES[case.objective][1],
            beta=BETA,
            per_device_train_batch_size=PAIRS_PER_STEP,
            train_sampling_strategy="sequential",
            max_steps=NUM_STEPS,
            learning_rate=5e-4,
            lr_scheduler_type="linear",
            max_grad_norm=1.0,
            optim="adamw_torch",
            gradient_checkpointing=case.recompute,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
        processing_class=AutoTokenizer.from_pretrained(folder / "model"),
        train_dataset=datasets.Dataset.from_list(rows_of(case.rows)),
        peft_config=new_adapter() if case.adapter == "new" else None,
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, vars(case).values())))
def test_twenty_steps_are_those_of_trl(folder, tmp_path, monkeypatch, case):
    monkeypatch.setenv("CI", "1")  # or TRL reports its use
    write_jsonl(folder / f"{case.rows}.jsonl", rows_of(case.rows))

    ours = run_of_prefopt(folder, case, tmp_path / "ours")
    theirs = run_of_trl(folder, case, tmp_path / "theirs")

    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    assert [
        (record.prompt_ids.tolist(), *(ids.tolist() for ids in record.response_ids))
        for record in ours.train_dataset.store
    ] == [tuple(row[name] for name in names) for row in theirs.train_dataset]
    assert ours.model.is_activation_checkpointing == case.recompute
    history = [line for line in theirs.state.log_history if "loss" in line]
    losses = logged(ours, "loss")
    assert len(losses) == len(history) == NUM_STEPS
    assert losses == pytest.approx([line["loss"] for line in history], rel=1e-5)
    norms = logged(ours, "grad_norm")
    assert norms == pytest.approx([line["grad_norm"] for line in history], rel=1e-5)
    assert abs(losses[-1] - losses[0]) > LEAST_MOVE[case.objective]
    if case.objective == "dpo":
        for name in METRICS:
            expected = [history[0][name], history[-1][name]]
            assert [logged(ours, name)[0], logged(ours, name)[-1]] == pytest.approx(
                expected, rel=1e-4, abs=1e-5
            )
