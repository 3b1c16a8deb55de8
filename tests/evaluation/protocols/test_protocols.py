import csv
import math

import pytest

from prefopt.errors import UserError
from prefopt.evaluation.formats.alpaca_eval import read_annotations, read_model_outputs
from prefopt.evaluation.protocols.alpaca_eval import alpaca_eval_rows
from prefopt.evaluation.protocols.mt_bench import mt_bench_pairs, mt_bench_scores
from prefopt.evaluation.types import Judgment, Prompt, Reply
from tests.support.shared import SHARED, needs_data

DATA = SHARED / "alpaca_eval"

PROMPTS = [
    Prompt(turns=("a", "b"), category="math"),
    Prompt(turns=("c", "d"), category="math"),
    Prompt(turns=("e", "f"), category="stem"),
]
FIRST, SECOND, TIE = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)


def judged(prompt, probs, *, turn=1, system="m", opponent="b", sample=0, levels=(), judge="J"):
    return Judgment(
        key=f"{prompt.prompt_id}/{turn}/{system}/{sample}",
        prompt_id=prompt.prompt_id,
        turn=turn,
        sample=sample,
        kind="score" if levels else "pair",
        system=system,
        opponent=None if levels else opponent,
        levels=levels,
        judge=judge,
        reply=Reply(status="ok" if probs else "api_error", probs=probs),
        asked_at="",
    )


def both(prompt, probs, swapped, **about):
    return [
        judged(prompt, probs, **about),
        judged(prompt, swapped, system="b", opponent="m", **about),
    ]


def score(prompt, value, turn):
    return judged(prompt, (1.0,) if value is not None else (), turn=turn, levels=(value or 0.0,))


@needs_data
def test_the_published_win_rate_is_reproduced():
    folder = DATA / "FuseChat-Llama-3.2-1B-Instruct"
    system, prompts, answers = read_model_outputs(folder / "model_outputs.json")
    annotations = read_annotations(folder / "annotations_slim.json")
    with (DATA / "leaderboard_rows.csv").open(encoding="utf-8") as file:
        [published] = csv.DictReader(file)

    [row] = alpaca_eval_rows(prompts, annotations.judgments, "gpt4_1106_preview", {system: answers})

    assert row.system == published["name"] == system
    assert row.win_rate == pytest.approx(float(published["win_rate"]), abs=1e-6)
    assert row.avg_length == int(published["avg_length"])
    # As get_winrate of alpaca-eval 0.6.6 gives them for this file.
    assert row.standard_error == pytest.approx(1.3934584328741795, abs=1e-9)
    assert (row.n_wins, row.n_wins_base, row.n_draws, row.n_total) == (233, 570, 2, 805)
    assert row.discrete_win_rate == pytest.approx(29.068322981366464, abs=1e-9)
    assert row.title == "AlpacaEval protocol with judge weighted_alpaca_eval_gpt4_turbo"
    assert row.win["low"] < row.win["value"] < row.win["high"]


def test_orders_are_averaged_and_missing_prompts_are_counted():
    judgments = [
        *both(PROMPTS[0], (0.75, 0.25, 0.0), (0.5, 0.25, 0.25)),
        *both(PROMPTS[1], FIRST, FIRST),
        # One order of the third prompt failed.
        *both(PROMPTS[2], FIRST, ()),
    ]
    more = Prompt(turns=("never judged",))

    [row] = alpaca_eval_rows([*PROMPTS, more], judgments, "b")

    # (0.75 + 0.25 + 0.25 / 2) / 2 = 0.5625, and a judge that always takes the first slot: 0.5.
    assert row.win_rate == pytest.approx(100 * (0.5625 + 0.5) / 2)
    spread = abs(0.5625 - 0.5) / math.sqrt(2)
    assert row.standard_error == pytest.approx(100 * spread / math.sqrt(2))
    assert (row.n_wins, row.n_draws, row.n_wins_base) == (1, 1, 0)
    assert row.discrete_win_rate == 75.0
    assert (row.n_total, row.num_missing) == (2, 2)
    assert row.avg_length is None


def test_samples_of_a_prompt_are_one_unit():
    judgments = [
        *both(PROMPTS[0], FIRST, SECOND, sample=0),
        *both(PROMPTS[0], SECOND, FIRST, sample=1),
        *both(PROMPTS[1], FIRST, SECOND, sample=0),
    ]

    [row] = alpaca_eval_rows(PROMPTS[:2], judgments, "b")

    assert row.n_total == 2
    assert row.win_rate == 75.0


def test_tables_of_nothing_or_of_two_judges_are_refused():
    judgments = both(PROMPTS[0], FIRST, SECOND)
    other = judged(PROMPTS[0], FIRST, judge="K")

    with pytest.raises(UserError, match="Name a baseline among b, m"):
        alpaca_eval_rows(PROMPTS, judgments, "x")
    with pytest.raises(UserError, match="the judgments are of J, K"):
        alpaca_eval_rows(PROMPTS, [*judgments, other], "b")
    with pytest.raises(UserError, match="no judgment of m against b counts"):
        alpaca_eval_rows(PROMPTS, both(PROMPTS[0], (), ()), "b")
    with pytest.raises(UserError, match="are of nobody"):
        mt_bench_scores(PROMPTS, judgments)
    with pytest.raises(UserError, match="nothing was judged against x"):
        mt_bench_pairs(PROMPTS, judgments, "x")


def test_scores_go_by_turn_and_category_and_missing_ones_are_counted():
    scores = {(0, 1): 8.0, (0, 2): 4.0, (1, 1): 6.0, (1, 2): None, (2, 1): 3.0}
    judgments = [score(PROMPTS[i], value, turn) for (i, turn), value in scores.items()]

    [row] = mt_bench_scores(PROMPTS, judgments)

    assert row.title == "MT-Bench protocol with judge J"
    assert {turn: each["value"] for turn, each in row.by_turn.items()} == {
        1: pytest.approx((8 + 6 + 3) / 3),
        2: 4.0,
    }
    assert {name: each["value"] for name, each in row.by_category.items()} == {
        "math": pytest.approx(((8 + 4) / 2 + 6) / 2),
        "stem": 3.0,
    }
    assert row.overall["value"] == pytest.approx((6 + 6 + 3) / 3)
    assert row.overall["n"] == 3
    assert row.mean_of_rows == pytest.approx((8 + 4 + 6 + 3) / 4)
    # Question 1 got no score for its second turn, question 2 was not even asked.
    assert row.num_missing == {1: 0, 2: 2}


def test_a_distribution_counts_by_its_mean():
    judgments = [judged(PROMPTS[0], (0.5, 0.0, 0.5), levels=(1.0, 5.0, 10.0))]

    [row] = mt_bench_scores(PROMPTS[:1], judgments)

    assert row.overall["value"] == 5.5


def test_fastchat_counts_a_win_only_where_both_orders_agree():
    judgments = [
        *both(PROMPTS[0], FIRST, SECOND),
        *both(PROMPTS[0], FIRST, FIRST, turn=2),
        *both(PROMPTS[1], SECOND, FIRST),
        *both(PROMPTS[1], TIE, SECOND, turn=2),
        *both(PROMPTS[2], FIRST, ()),
        judged(PROMPTS[2], FIRST, turn=2),
    ]

    [row] = mt_bench_pairs(PROMPTS, judgments, "b")

    assert (row.num_wins, row.num_losses, row.num_ties) == (1, 1, 2)
    assert row.win_rate_adjusted == 0.5
    # Averaged orders: 1, 0.5, 0, and (0.5 + 1) / 2.
    assert row.by_turn[1]["value"] == 0.5
    assert row.by_turn[2]["value"] == (0.5 + 0.75) / 2
    assert row.win["value"] == ((1 + 0.5) / 2 + (0 + 0.75) / 2) / 2
    assert row.win["n"] == 2
    assert list(row.by_category) == ["math"]
    # A failed order, and one that was never asked.
    assert row.num_missing == 2
