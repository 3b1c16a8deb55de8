import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from prefopt.evaluation.judge.doctor import examine
from prefopt.evaluation.judge.runner import run_judge
from tests.support.judge_server import judge_of, pair, score
from tests.support.tiny import save_tiny_model

pytestmark = pytest.mark.slow


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A tiny model's folder and the URL at which `transformers serve` answers for it."""
    folder = save_tiny_model(tmp_path_factory.mktemp("served"), seed=2)
    port = free_port()
    log = (folder / "serve.log").open("w")
    command = Path(sys.executable).with_name("transformers")
    server = subprocess.Popen(
        [command, "serve", "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", folder],
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    try:
        deadline = time.monotonic() + 120
        while not is_up(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None, (folder / "serve.log").read_text()
            assert time.monotonic() < deadline, (folder / "serve.log").read_text()
            time.sleep(0.2)
        yield str(folder), f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        server.wait(timeout=30)
        log.close()


def is_up(url):
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


def test_served_probabilities_are_those_of_the_model_in_this_process(served, tmp_path):
    folder, url = served
    pairs = [(pair(f"yes {n}", f"no {n}", f"Question {n}?"), "a", "b") for n in range(4)]
    scores = [(score("yes", f"Question {n}?"), "a") for n in range(2)]
    with judge_of(backend="systemone", model=folder, base_url=url, num_in_flight=4) as judge:
        served_judgments = run_judge(judge, pairs, scores, tmp_path / "served.jsonl")
    with judge_of(backend="hf_decision", model=folder, device="cpu", dtype="float32") as judge:
        local_judgments = run_judge(judge, pairs, scores, tmp_path / "local.jsonl")

    assert len(served_judgments) == 10
    for one, other in zip(served_judgments, local_judgments, strict=True):
        assert one.reply.probs == pytest.approx(other.reply.probs, abs=1e-5)
        assert sum(one.reply.probs) == pytest.approx(1.0)
    assert served_judgments[0].reply.usage["input_tokens"] > 100


def test_its_chat_is_rejected_because_it_gives_no_log_probs(served):
    folder, url = served
    section = {"backend": "openai_chat", "model": folder, "base_url": url, "num_in_flight": 1}
    with judge_of(**section, mode="logprobs") as judge:
        found = examine(judge)

    assert not found.is_usable
    assert found.by_status.keys() == {"no_logprobs"}
    assert "gives no log-probs. Set judge.mode: text" in found.lines[0]


def test_a_random_model_is_rejected_by_the_doctor(served):
    folder, url = served
    with judge_of(backend="systemone", model=folder, base_url=url) as judge:
        found = examine(judge)

    assert not found.is_usable
    assert found.right_share < 0.7
