"""Training arguments: what they become, and one clear line for what fails late or does nothing."""

from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from prefopt.errors import UserError
from prefopt.train.arguments import training_arguments
from prefopt.train.checks import METRICS, as_one_line
from prefopt.train.metrics import group_metrics
from prefopt.train.section import TrainingSection
from prefopt.types import ObjectiveInputs, ObjectiveOutput


def build(folder: Path, *, has_evaluation: bool = True, **keys: object) -> TrainingArguments:
    section = TrainingSection.model_validate({"output_dir": str(folder / "run"), **keys})
    return training_arguments(section, has_evaluation=has_evaluation)


def refusal(folder: Path, *, has_evaluation: bool = True, **keys: object) -> str:
    """The one line that these keys are refused with."""
    with pytest.raises(UserError) as error:
        build(folder, has_evaluation=has_evaluation, **keys)
    line = str(error.value)
    assert line.startswith("training")
    assert "\n" not in line
    assert line.endswith((".", "?"))
    return line


@pytest.mark.parametrize("name", ["save", "eval"])
def test_an_interval_sets_its_strategy(tmp_path: Path, name: str):
    arguments = build(tmp_path, **{f"{name}_steps": 7})

    assert getattr(arguments, f"{name}_strategy") == "steps"
    assert getattr(arguments, f"{name}_steps") == 7


def test_without_intervals_epochs_are_saved_and_evaluated(tmp_path: Path):
    arguments = build(tmp_path)

    assert (arguments.save_strategy, arguments.eval_strategy) == ("epoch", "epoch")


@pytest.mark.parametrize("name", ["logging", "save", "eval"])
@pytest.mark.parametrize("strategy", ["epoch", "no", False])
def test_an_interval_beside_another_strategy_is_refused(
    tmp_path: Path, name: str, strategy: object
):
    line = refusal(tmp_path, **{f"{name}_steps": 7, f"{name}_strategy": strategy})

    assert line.startswith(f"training.{name}_steps has no effect beside training.{name}_strategy")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eval_steps", 5),
        ("eval_delay", 1),
        ("eval_on_start", True),
        ("metric_for_best_model", "eval_loss"),
        ("greater_is_better", False),
        ("load_best_model_at_end", True),
        ("save_strategy", "best"),
    ],
)
def test_what_evaluations_feed_needs_held_out_data(tmp_path: Path, key: str, value: object):
    line = refusal(tmp_path, has_evaluation=False, **{key: value})

    assert line.startswith(f"training.{key} needs held-out data. Add data.evaluation")


def test_what_evaluations_feed_is_refused_when_they_are_switched_off(tmp_path: Path):
    line = refusal(tmp_path, eval_strategy="no", metric_for_best_model="loss")

    assert line.startswith("training.metric_for_best_model has no effect beside")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr"}, ["lr_scheduler_type", "min_lr_rate"]),
        ({"lr_scheduler_kwargs": {"foo": 1}}, ["lr_scheduler_kwargs", "'foo'"]),
        (
            {"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"foo": 1}},
            ["lr_scheduler_kwargs has no effect"],
        ),
        (
            {"lr_scheduler_type": "polynomial", "learning_rate": 1e-8},
            ["lr_scheduler_type: polynomial", "lr_end"],
        ),
        ({"optim_args": "foo"}, ["optim_args should be like", "'foo'"]),
        ({"optim_args": "rank=64"}, ["optim_args: 'rank=64' has no effect", "adamw_torch_fused"]),
        ({"optim": "sgd", "optim_args": "momentum=fast"}, ["optim: sgd", "'fast'"]),
        ({"adam_beta1": 1.5}, ["optim: adamw_torch_fused", "beta", "1.5"]),
        (
            {"optim": "sgd", "optim_args": "momentum=0.9,momentm=0.9"},
            ["optim_args: 'momentm=0.9' has no effect", "sgd"],
        ),
        ({"optim": "adafactor", "adam_beta1": 0.8}, ["adam_beta1 has no effect", "adafactor"]),
        ({"optim": "sgd", "adam_epsilon": 1e-6}, ["adam_epsilon has no effect", "sgd"]),
        ({"optim_target_modules": ["q_proj"]}, ["optim_target_modules has no effect", "galore"]),
        (
            {"lr_scheduler_type": "constant", "warmup_steps": 3},
            ["warmup_steps has no effect", "constant_with_warmup"],
        ),
        ({"project": "mine"}, ["project has no effect without trackio"]),
        (
            {"gradient_checkpointing_kwargs": {"use_reentrant": False}},
            ["gradient_checkpointing_kwargs has no effect", "gradient_checkpointing: true"],
        ),
        ({"fsdp_config": {"reshard_after_forward": True}}, ["fsdp_config has no effect"]),
        ({"debug": "tpu_metrics_debug"}, ["debug has no effect by tpu_metrics_debug"]),
        ({"optim": "adam_torch"}, ["adam_torch"]),
        ({"fsdp": "full_shard"}, ["training.fsdp", "one only", "accelerate launch"]),
        ({"save_strategy": "best"}, ["save_strategy: best", "metric_for_best_model"]),
        ({"greater_is_better": True}, ["greater_is_better has no effect without a metric"]),
        ({"run_name": "mine"}, ["run_name has no effect without a tracker", "report_to"]),
        ({"warmup_steps": -1}, ["warmup_steps"]),
        ({"report_to": "nonsense"}, ["nonsense"]),
        ({"deepspeed": "nowhere.json"}, ["training: "]),
        (
            {"load_best_model_at_end": True, "eval_steps": 5},
            ["training.load_best_model_at_end requires", "steps", "epoch"],
        ),
    ],
)
def test_what_the_trainer_would_fail_on_is_one_line(
    tmp_path: Path, keys: dict[str, object], words: list[str]
):
    line = refusal(tmp_path, **keys)

    assert all(word in line for word in words), line


def test_an_optimiser_without_its_package_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("transformers.trainer_optimizer.is_galore_torch_available", lambda: False)

    line = refusal(tmp_path, optim="galore_adamw", optim_target_modules=["q_proj"])

    assert line.startswith("training.optim: galore_adamw: You need to install")


def test_an_optimiser_that_reads_the_model_is_left_to_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def needs_model(arguments: TrainingArguments) -> None:
        raise ValueError("You need to pass a model to initialize galore_adamw optimizer.")

    monkeypatch.setattr("transformers.Trainer.get_optimizer_cls_and_kwargs", needs_model)

    assert build(tmp_path, optim="galore_adamw", optim_target_modules=["q_proj"])


@pytest.mark.parametrize(
    "keys",
    [
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 9}},
        {"lr_scheduler_type": "constant_with_warmup", "warmup_steps": 500},
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "max_steps": 3},
        {"lr_scheduler_type": "reduce_lr_on_plateau"},
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        {"optim": "adafactor"},
        {"optim": "adamw_torch"},
        {"save_strategy": "best", "metric_for_best_model": "rewards/accuracies"},
        {"save_steps": 4, "eval_steps": 2, "load_best_model_at_end": True},
    ],
)
def test_what_the_trainer_can_work_with_is_taken(tmp_path: Path, keys: dict[str, object]):
    assert build(tmp_path, **keys)


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ("nonsense", "Known: "),
        ("los", "Did you mean 'loss'?"),
        ("eval_rewards/acuracies", "Did you mean 'rewards/accuracies'?"),
        ("logps/rejcted", "Did you mean 'logps/rejected'?"),
    ],
)
def test_an_unknown_metric_gets_the_nearest_name(tmp_path: Path, given: str, hint: str):
    line = refusal(tmp_path, metric_for_best_model=given)

    assert line.startswith(f"training.metric_for_best_model: no metric '{given}'. {hint}")


@pytest.mark.parametrize(
    ("metric", "greater_is_better"),
    [
        ("loss", False),
        ("eval_loss", False),
        ("dpo/loss", False),
        ("rewards/accuracies", True),
        ("eval_rewards/margins", True),
        ("logps/chosen", True),
    ],
)
def test_losses_are_better_small_and_other_metrics_large(
    tmp_path: Path, metric: str, greater_is_better: bool
):
    assert build(tmp_path, metric_for_best_model=metric).greater_is_better is greater_is_better
    said = build(tmp_path, metric_for_best_model=metric, greater_is_better=not greater_is_better)
    assert said.greater_is_better is not greater_is_better


def test_early_stopping_watches_the_loss(tmp_path: Path):
    arguments = build(tmp_path, early_stopping_patience=2)

    assert arguments.metric_for_best_model == "eval_loss"
    assert arguments.greater_is_better is False


def test_the_known_metrics_are_those_that_are_computed():
    scores, where = torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool)
    logps = torch.zeros(1, 2)
    inputs = ObjectiveInputs(
        policy_logps=logps,
        reference_logps=None,
        num_tokens=torch.ones(1, 2, dtype=torch.int64),
        scores=scores,
        where=where,
    )
    output = ObjectiveOutput(
        losses=torch.zeros(1), counted=torch.ones(1, dtype=torch.bool), rewards=logps, metrics={}
    )

    assert {"loss", *group_metrics(inputs, output)} == set(METRICS)


def test_ddp_searches_for_unused_parameters_only_when_told(tmp_path: Path):
    assert build(tmp_path).ddp_find_unused_parameters is False
    assert build(tmp_path, ddp_find_unused_parameters=True).ddp_find_unused_parameters is True


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one\n- two\n", "one - two."),
        ("--save_steps and --eval_steps differ.", "training.save_steps and training.eval_steps"),
        ("", "ValueError."),
    ],
)
def test_an_error_becomes_one_line(message: str, line: str):
    assert as_one_line(ValueError(message)).startswith(line)


def test_a_long_error_is_cut_at_a_word():
    line = as_one_line(ValueError("word " * 1000))

    assert len(line) <= 400
    assert line.endswith("word ...")
