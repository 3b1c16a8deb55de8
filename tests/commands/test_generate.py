import json
import os
import signal
import subprocess
import sys
import time

import pytest
import typer
from typer.testing import CliRunner

from prefopt.cli_generate import generate
from prefopt.commands.generate import default_name
from prefopt.errors import UserError
from prefopt.evaluation.generate.answers import read_answers
from tests.evaluation.generate.stub import said, serving
from tests.support.tiny import save_tiny_model, write_jsonl

APP = typer.Typer()
APP.command()(generate)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return str(save_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture
def prompts(tmp_path):
    rows = [{"prompt": f"question {i}", "category": "math" if i else "writing"} for i in range(6)]
    return str(write_jsonl(tmp_path / "prompts.jsonl", rows))


def run(*arguments):
    result = CliRunner().invoke(APP, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def test_answers_are_written_and_summed_up(model, prompts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    result = run(model, "--prompts", prompts, "max_new_tokens=5", "num_samples=2", "temperature=1")

    header, answers = read_answers(tmp_path / "generations" / "tiny.jsonl")
    assert (header["system"], header["model"]) == ("tiny", model)
    assert len(answers) == 12
    tokens = sum(answer.num_tokens[0] for answer in answers) / 12
    cut = sum(answer.finish_reasons == ("length",) for answer in answers) / 12
    empty = sum(not answer.turns[0].strip() for answer in answers) / 12
    assert result.stdout == (
        f"12 answers, {tokens:.1f} tokens on average, {cut:.1%} cut by the limit, {empty:.1%} "
        "empty, in generations/tiny.jsonl\n"
    )


def test_name_output_and_keys_of_the_model_are_taken(model, prompts, tmp_path):
    path = tmp_path / "a.jsonl"

    run(
        model,
        *("--prompts", prompts, "--name", "mine", "--output", path),
        *("max_new_tokens=3", "temperature_by_category=mt_bench", "model.chat_template=chatml"),
    )

    header = read_answers(path)[0]
    plain = tmp_path / "b.jsonl"
    run(model, "--prompts", prompts, "--output", plain, "max_new_tokens=3")
    assert header["system"] == "mine"
    assert header["decode"]["temperature_by_category"]["writing"] == 0.7
    assert header["chat_template"] != read_answers(plain)[0]["chat_template"]


def test_a_second_call_asks_for_nothing(prompts, tmp_path):
    path = tmp_path / "a.jsonl"
    with serving(lambda body, number: said("fine")) as stub:
        arguments = ("m", "--prompts", prompts, "--output", path, "--endpoint", stub.url)
        first = run(*arguments, "endpoint.num_in_flight=2")
        content = path.read_bytes()
        second = run(*arguments)

        assert len(stub.requests) == 6
    assert first.stdout == second.stdout
    assert path.read_bytes() == content


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_file(model, tmp_path):
    rows = [{"prompt": f"question {i}" + "?" * (i % 7)} for i in range(60)]
    prompts = write_jsonl(tmp_path / "prompts.jsonl", rows)
    code = "import typer; from prefopt.cli_generate import generate; typer.run(generate)"
    arguments = ["max_new_tokens=60", "temperature=1", "num_samples=2", "batch_size=4"]

    def start(path):
        command = [sys.executable, "-c", code, model, "--prompts", str(prompts)]
        return subprocess.Popen([*command, "--output", str(path), *arguments])

    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert start(whole).wait() == 0
    process = start(killed)
    while not killed.exists() or killed.read_bytes().count(b"\n") < 20:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    assert killed.read_bytes() != whole.read_bytes()
    assert whole.read_bytes().startswith(killed.read_bytes().rpartition(b"\n")[0])
    assert start(killed).wait() == 0
    assert killed.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["max_new_tokens=0"], "max_new_tokens should be greater than or equal to 1, got 0"),
        (["max_tokens=4"], r"max_tokens: unknown key\. Did you mean 'max_new_tokens'"),
        (["num_samples=2"], "num_samples: at temperature 0 all 2 would be the same"),
        (["top_p=0.9"], "top_p has no effect at temperature 0"),
        (["temperature_by_category=mtbench"], "no preset 'mtbench'. Did you mean 'mt_bench'"),
        (["temperature_by_category.math=-1"], r"temperature_by_category\.math should be"),
        (["temperature_by_category.art=1"], "categories of the prompts: math, writing"),
        (["stop=['']"], "stop: an empty text"),
        (["temperature"], "'temperature' is no override"),
        (["stop=[a"], r"stop=\[a:1:\d+: not YAML"),
        (["model=x"], r"model has keys below it"),
        (["model.path=x"], r"model\.path is the model itself"),
        (["model.dtpye=x"], r"model\.dtpye: unknown key"),
        (["endpoint.timeout=3"], r"endpoint\.timeout has no effect without --endpoint URL"),
        (["--endpoint", "http://127.0.0.1:9/v1", "model.dtype=auto"], "has no effect on an endp"),
        (["--endpoint", "localhost"], "is no URL"),
    ],
)
def test_wrong_arguments_are_one_line(model, prompts, tmp_path, arguments, problem):
    path = tmp_path / "a.jsonl"

    with pytest.raises(UserError, match=problem) as error:
        run(model, "--prompts", prompts, "--output", path, *arguments)

    assert "\n" not in str(error.value)
    assert not path.exists()


def test_a_model_that_is_not_there_is_one_line(prompts, tmp_path):
    with pytest.raises(UserError, match=r"MODEL: no folder \./absent"):
        run("./absent", "--prompts", prompts, "--output", tmp_path / "a.jsonl")
    (tmp_path / "adapter").mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": None}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"adapter_config\.json names no base model"):
        run(tmp_path / "adapter", "--prompts", prompts, "--output", tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("meta-llama/Llama-3.2-1B", "Llama-3.2-1B"),
        ("gpt 4:latest", "gpt-4-latest"),
        ("org/name/", "name"),
    ],
)
def test_a_system_is_called_by_the_last_part(model, name):
    assert default_name(model) == name
