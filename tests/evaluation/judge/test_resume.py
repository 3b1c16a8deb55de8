import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from prefopt.evaluation.judge.judgments import read_judgments
from prefopt.evaluation.judge.runner import run_judge
from prefopt.evaluation.types import Reply
from tests.support.judge_server import Said, always, chat, chat_judge, pair, serving

GOOD = chat("A", {"A": 0.75, "B": 0.25})
ROOT = Path(__file__).parents[3]


def many(num):
    return [(pair(f"yes {n}", f"no {n}", f"Question {n}?"), "ours", "base") for n in range(num)]


def test_a_torn_last_line_is_asked_again(tmp_path):
    with chat_judge(always(GOOD)) as (judge, server):
        run_judge(judge, many(2), [], tmp_path / "j.jsonl")
        whole = (tmp_path / "j.jsonl").read_bytes()
        (tmp_path / "j.jsonl").write_bytes(whole[:-30])
        found = run_judge(judge, many(2), [], tmp_path / "j.jsonl")

        assert len(server.requests) == 4 + 1
    assert len(read_judgments(tmp_path / "j.jsonl")[1]) == len(found) == 4


class Interrupting:
    """A judge during whose third question Ctrl-C is pressed."""

    name = "interrupting"
    kinds = frozenset({"pair"})
    levels = ()
    num_in_flight = 2
    max_calls = None

    def __init__(self):
        self.identity = {"backend": "test"}
        self.num_asked = 0
        self._lock = threading.Lock()

    def rendered(self, question):
        return repr(question)

    def ask(self, question):
        with self._lock:
            self.num_asked += 1
            is_third = self.num_asked == 3
        if is_third:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        return Reply(status="ok", probs=(1.0, 0.0, 0.0))

    def close(self):
        pass


def test_ctrl_c_keeps_what_was_paid_for(tmp_path, hears_ctrl_c):
    judge = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        run_judge(judge, many(50), [], tmp_path / "j.jsonl")

    assert 3 <= judge.num_asked <= 6
    assert len(read_judgments(tmp_path / "j.jsonl")[1]) == judge.num_asked
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


CHILD = """
import sys
from pathlib import Path
from tests.support.judge_server import judge_of, pair
from prefopt.evaluation.judge.runner import run_judge
url, path = sys.argv[1:]
pairs = [(pair(f"yes {n}", f"no {n}", f"Question {n}?"), "ours", "base") for n in range(150)]
section = dict(backend="openai_chat", model="m", mode="logprobs", num_in_flight=32)
with judge_of(**section, base_url=url) as judge:
    run_judge(judge, pairs, [], Path(path))
"""


def test_a_killed_run_goes_on_without_a_repeated_call(tmp_path):
    path = tmp_path / "j.jsonl"
    with serving(always(Said(GOOD.body, seconds=0.05))) as server:
        command = [sys.executable, "-c", CHILD, server.url, str(path)]
        child = subprocess.Popen(command, cwd=ROOT)
        while not path.exists() or path.read_bytes().count(b"\n") < 60:
            assert child.poll() is None
            time.sleep(0.005)
        child.kill()
        child.wait()
        # Connections that were open when it died are still being served.
        time.sleep(0.3)
        kept = read_judgments(path)[1]
        num_before = len(server.requests)
        subprocess.run(command, cwd=ROOT, check=True)
        judgments = read_judgments(path)[1]

    assert server.most_at_once > 16
    assert 59 <= len(kept) < 300
    # Replies to what was in flight when it died reached nobody; all others are in the file.
    assert num_before - len(kept) <= 32
    assert len(server.requests) - num_before == 300 - len(kept)
    assert len(judgments) == 300
    stored = {each.key: each for each in judgments}
    assert all(stored[each.key] == each for each in kept)
