"""A DeepSpeed configuration beside a recipe is filled in, or refused where it contradicts it."""

import copy

import pytest

from prefopt.errors import UserError
from prefopt.train.arguments import training_arguments
from prefopt.train.deepspeed_config import match_deepspeed
from prefopt.train.section import TrainingSection

# As accelerate makes it of recipes/accelerate/zero2.yaml.
PLAIN = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": 1,
    "zero_optimization": {
        "stage": 2,
        "offload_optimizer": {"device": "none", "nvme_path": None},
        "offload_param": {"device": "none", "nvme_path": None},
        "stage3_gather_16bit_weights_on_model_save": False,
    },
    "steps_per_print": float("inf"),
    "bf16": {"enabled": False},
    "fp16": {"enabled": False},
}


@pytest.fixture
def match(tmp_path):
    def match(changes, **training):
        section = TrainingSection.model_validate({"output_dir": str(tmp_path / "run"), **training})
        arguments = training_arguments(section, has_evaluation=False)
        config = {**copy.deepcopy(PLAIN), **changes}
        match_deepspeed(config, arguments)
        return config

    return match


def zero(**changes):
    return {"zero_optimization": {**PLAIN["zero_optimization"], **changes}}


def test_clipping_is_that_of_the_recipe(match):
    assert match({}, max_grad_norm=0.25)["gradient_clipping"] == 0.25
    assert match({"gradient_clipping": "auto"}, max_grad_norm=3)["gradient_clipping"] == 3


def test_a_file_without_a_batch_size_leaves_it_to_the_launch(match):
    config = match({})
    del config["train_micro_batch_size_per_gpu"]

    assert match(config)["train_micro_batch_size_per_gpu"] == "auto"


def test_zero_3_saves_whole_weights(match):
    key = "stage3_gather_16bit_weights_on_model_save"

    assert match(zero(stage=3))["zero_optimization"][key] is True
    assert match({})["zero_optimization"][key] is False


def test_what_agrees_with_the_recipe_is_taken(match):
    agreeing = {
        "gradient_clipping": 0.5,
        "train_batch_size": 1,
        "bf16": {"enabled": "auto"},
        "scheduler": None,
        "curriculum_learning": {"enabled": False},
        **zero(offload_optimizer={"device": "cpu"}),
    }

    assert match(agreeing, max_grad_norm=0.5)["gradient_clipping"] == 0.5


@pytest.mark.parametrize(
    ("changes", "training", "words"),
    [
        (
            {"gradient_clipping": 1.0},
            {"max_grad_norm": 0.5},
            ["training.max_grad_norm", "gradient_clipping 1.0", "wants 0.5", "auto"],
        ),
        (
            {"gradient_accumulation_steps": 8},
            {},
            ["training.groups_per_step", "gradient_accumulation_steps 8", "wants 1"],
        ),
        ({"train_batch_size": 64}, {}, ["training.groups_per_step", "train_batch_size 64"]),
        (
            {"train_micro_batch_size_per_gpu": 4},
            {},
            ["training.groups_per_step", "train_micro_batch_size_per_gpu 4"],
        ),
        ({"bf16": {"enabled": True}}, {}, ["training.bf16", "bf16.enabled true", "wants false"]),
        ({"fp16": {"enabled": True}}, {}, ["training.fp16", "fp16.enabled true"]),
        ({"amp": {"enabled": True}}, {}, ["training.bf16", "amp.enabled true"]),
        (
            {"bf16": {"enabled": False, "check_grad_overflow": False}},
            {},
            ["training.max_skipped_steps", "bf16.check_grad_overflow false"],
        ),
        (
            zero(compute_grad_norm=False),
            {},
            ["training.max_skipped_steps", "zero_optimization.compute_grad_norm false"],
        ),
        (
            {"optimizer": {"type": "AdamW", "params": {"lr": 1e-5}}},
            {},
            ["training.optim", "section optimizer", "Remove"],
        ),
        (
            {"scheduler": {"type": "WarmupLR"}},
            {},
            ["training.lr_scheduler_type", "section scheduler"],
        ),
        (
            {"curriculum_learning": {"enabled": True}},
            {},
            ["training.shuffle", "section curriculum_learning"],
        ),
        (
            {"tensor_parallel": {"autotp_size": 2}},
            {},
            ["training.groups_per_step", "tensor_parallel.autotp_size 2"],
        ),
        (zero(stage=0), {}, ["zero_optimization.stage", "1, 2 or 3", "got 0", "ddp"]),
        (
            zero(offload_optimizer={"device": "cpu"}),
            {"optim": "sgd"},
            ["training.optim: sgd would become Adam", "offload_optimizer.device cpu", "none"],
        ),
    ],
)
def test_what_contradicts_the_recipe_is_refused_in_one_line(match, changes, training, words):
    with pytest.raises(UserError) as error:
        match(changes, **training)

    line = str(error.value)
    assert "\n" not in line
    assert all(word in line for word in words), line


def test_an_optimiser_that_is_not_to_be_replaced_is_taken(match):
    config = {"zero_force_ds_cpu_optimizer": False, **zero(offload_optimizer={"device": "cpu"})}

    assert match(config, optim="sgd")["zero_force_ds_cpu_optimizer"] is False
