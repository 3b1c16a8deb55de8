"""What an engine cannot train as the recipe says is refused before weights are read."""

from types import SimpleNamespace

import pytest
import torch

from prefopt.errors import UserError
from prefopt.train.arguments import training_arguments
from prefopt.train.engine_limits import check_engine_limits
from prefopt.train.section import TrainingSection


@pytest.fixture
def check(tmp_path, monkeypatch):
    def check(engine, *, is_quantized=False, normalises_gradients=False, **training):
        section = TrainingSection.model_validate({"output_dir": str(tmp_path / "run"), **training})
        arguments = training_arguments(section, has_evaluation=True)
        if engine.startswith("zero"):
            stage = {"zero_optimization": {"stage": int(engine[-1])}}
            arguments.deepspeed_plugin = SimpleNamespace(deepspeed_config=stage)
        if engine == "fsdp":
            monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
            monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        check_engine_limits(
            arguments, is_quantized=is_quantized, normalises_gradients=normalises_gradients
        )

    return check


def line_of(check, *arguments, **options):
    with pytest.raises(UserError) as error:
        check(*arguments, **options)
    line = str(error.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(("engine", "name"), [("zero3", "ZeRO-3"), ("fsdp", "FSDP2")])
def test_4_bit_weights_are_not_split(check, engine, name):
    line = line_of(check, engine, is_quantized=True)

    assert line.startswith(f"model.quantization: {name} would have to split 4-bit weights")
    assert "--accelerate ddp or zero2" in line


@pytest.mark.parametrize("engine", ["ddp", "zero1", "zero2"])
def test_whole_4_bit_weights_are_taken(check, engine):
    check(engine, is_quantized=True)


@pytest.mark.parametrize(("engine", "name"), [("zero3", "ZeRO-3"), ("fsdp", "FSDP2")])
def test_gradients_are_not_normalised_where_weights_are_split(check, engine, name):
    line = line_of(check, engine, normalises_gradients=True)

    assert line.startswith(f"training.normalise_gradients: {name} would have to gather weights")
    check("zero2", normalises_gradients=True)


@pytest.mark.parametrize("engine", ["zero1", "zero2", "zero3"])
def test_an_optimiser_of_whole_parameters_is_not_given_pieces(check, engine):
    line = line_of(check, engine, optim="adafactor")

    assert line.startswith("training.optim: adafactor looks at whole parameters, and ZeRO-")


@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_an_optimiser_of_whole_parameters_is_taken_where_it_gets_them(check, engine):
    check(engine, optim="adafactor")


@pytest.mark.parametrize("engine", ["zero2", "fsdp"])
def test_the_best_model_cannot_be_loaded_from_the_weights_alone(check, engine):
    keys = {"save_only_model": True, "load_best_model_at_end": True}

    check("ddp", **keys)
    assert "training.load_best_model_at_end does not go with" in line_of(check, engine, **keys)


def test_layers_are_not_checkpointed_twice(check, monkeypatch):
    monkeypatch.setenv("FSDP_ACTIVATION_CHECKPOINTING", "true")

    line = line_of(check, "fsdp", gradient_checkpointing=True)

    assert line.startswith("training.gradient_checkpointing: the launch configuration says")
