import csv
import json
from collections import Counter

import pytest

from prefopt.evaluation.judge.runner import run_judge
from prefopt.evaluation.suites import read_prompts
from prefopt.evaluation.types import PairQuestion, Prompt, ScoreQuestion
from tests.support.judge_server import answer, chat, chat_judge, judge_of
from tests.support.shared import SHARED, needs_data

ALPACA = SHARED / "alpaca_eval"
SYSTEM = "FuseChat-Llama-3.2-1B-Instruct"
MT_BENCH = SHARED / "mt_bench"

pytestmark = needs_data


@pytest.mark.slow
def test_the_published_win_rate_comes_out_of_replayed_annotations(tmp_path):
    reference, outputs = (
        {row["instruction"]: row["output"] for row in json.loads(file.read_text())}
        for file in (
            ALPACA / "reference_gpt4_1106_preview.json",
            ALPACA / SYSTEM / "model_outputs.json",
        )
    )
    slim = json.loads((ALPACA / SYSTEM / "annotations_slim.json").read_text())
    rows = [
        {
            **row,
            "output_1": reference[row["instruction"]],
            "output_2": outputs[row["instruction"]],
        }
        for row in slim
    ]
    # The file as alpaca_eval writes it.
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    pairs = []
    for row in rows:
        prompt = Prompt(turns=(row["instruction"],))
        first, second = answer(prompt, row["output_2"]), answer(prompt, row["output_1"])
        pairs.append((PairQuestion(prompt=prompt, first=first, second=second), SYSTEM, "gpt4"))

    with judge_of(backend="replay", path=str(tmp_path / "annotations.json")) as judge:
        assert judge.name == "weighted_alpaca_eval_gpt4_turbo"
        found = run_judge(judge, pairs, [], tmp_path / "j.jsonl")

    with (ALPACA / "leaderboard_rows.csv").open() as file:
        [published] = [float(row["win_rate"]) for row in csv.DictReader(file)]
    wins = [
        one.win / 2 + (1 - other.win) / 2
        for one, other in zip(found[::2], found[1::2], strict=True)
    ]
    assert len(found) == 2 * 805
    assert 100 * sum(wins) / len(wins) == pytest.approx(published, abs=1e-6)


def test_all_questions_of_mt_bench_are_put_by_their_own_prompts(tmp_path):
    prompts = read_prompts(MT_BENCH / "question.jsonl")
    rows = map(json.loads, (MT_BENCH / "judge_prompts.jsonl").read_text().splitlines())
    # What stands before the first text that is filled in tells them apart.
    starts = {
        row["system_prompt"] + row["prompt_template"].partition("{question")[0]: row["name"]
        for row in rows
    }
    used = Counter()

    def script(body):
        system, user = (message["content"] for message in body["messages"])
        [name] = [name for start, name in starts.items() if (system + user).startswith(start)]
        used[name] += 1
        return chat("Rating: [[7]]" if "[[rating]]" in system + user else "So: [[A]]")

    pairs, scores = [], []
    for prompt in prompts:
        ours, theirs = answer(prompt, "{o1}", "{o2}"), answer(prompt, "{t1}", "{t2}")
        for turn in (1, 2):
            question = PairQuestion(prompt=prompt, first=ours, second=theirs, turn=turn)
            pairs.append((question, "ours", "theirs"))
            scores.append((ScoreQuestion(prompt=prompt, answer=ours, turn=turn), "ours"))
    templates = str(MT_BENCH / "judge_prompts.jsonl")
    with chat_judge(script, mode="text", templates=templates) as (judge, _):
        found = run_judge(judge, pairs, scores, tmp_path / "j.jsonl")

    # Math, reasoning and coding are 30 of the 80 questions; pairs are put in both orders.
    assert used == {
        "pair-v2": 100,
        "pair-v2-multi-turn": 100,
        "pair-math-v1": 60,
        "pair-math-v1-multi-turn": 60,
        "single-v1": 50,
        "single-v1-multi-turn": 50,
        "single-math-v1": 30,
        "single-math-v1-multi-turn": 30,
    }
    assert len(found) == 480
    assert all(each.reply.probs[6] == 1.0 for each in found if each.kind == "score")
