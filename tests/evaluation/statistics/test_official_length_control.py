import csv

import numpy as np
import pytest
from scipy.special import expit

from prefopt.errors import UserError
from prefopt.evaluation.statistics.official_length_control import (
    Gamed,
    official_length_controlled,
    read_gamed,
)


def world(num_prompts, seed):
    rng = np.random.default_rng(seed)
    difficulty = rng.normal(size=num_prompts)
    gamed_delta = np.concatenate(
        [rng.normal(-1, 0.5, size=num_prompts), rng.normal(1, 0.5, size=num_prompts)]
    )
    both = np.tile(difficulty, 2)
    noise = 0.5 * rng.normal(size=2 * num_prompts)
    gamed_wins = expit(-0.8 * np.tanh(gamed_delta) + 0.1 * both + noise)
    deltas = np.round(rng.normal(-200, 500, size=num_prompts))
    logits = -0.9 * np.tanh(deltas / 500) + 0.7 * difficulty - 0.6
    wins = expit(logits + rng.normal(size=num_prompts))
    gamed = Gamed(
        wins=gamed_wins, scaled_delta=gamed_delta, row_difficulty=both, difficulty=difficulty
    )
    return wins, deltas, gamed


# Of scikit-learn 1.9.1's LogisticRegressionCV on the same rows, called as alpaca_eval 0.6.6 calls
# it (l1, liblinear, no intercept, GroupKFold(5), scored by the soft log loss) with tol=1e-8; with
# its default tol of 1e-4 it gives 0.394107, 0.359486 and 0.391392.
BY_SCIKIT_LEARN = [
    (100, 0, 0.3940973527232161),
    (100, 1, 0.3594791144175026),
    (805, 2, 0.3913900491449368),
]


@pytest.mark.parametrize(("num_prompts", "seed", "expected"), BY_SCIKIT_LEARN)
def test_the_rate_is_that_of_alpaca_evals_own_fit(num_prompts, seed, expected):
    wins, deltas, gamed = world(num_prompts, seed)

    estimate = official_length_controlled(wins, deltas, gamed)

    assert estimate["value"] == pytest.approx(expected, abs=1e-6)
    assert estimate["n"] == num_prompts
    # The interval refits, so it is about as wide as that of the raw rate.
    raw = wins.std(ddof=1) / num_prompts**0.5
    assert (estimate["high"] - estimate["low"]) / 3.92 == pytest.approx(raw, rel=0.25)


def test_other_prompts_than_alpaca_evals_are_refused():
    wins, deltas, gamed = world(100, 0)

    with pytest.raises(UserError, match=r"99 judged prompts, but difficulties of 100: .*prefopt"):
        official_length_controlled(wins[1:], deltas[1:], gamed)
    with pytest.raises(UserError, match="no length to control"):
        official_length_controlled(wins, np.zeros(100), gamed)


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


ROW = {
    "model": "wordy",
    "index": 0,
    "preference": 0.25,
    "std_delta_len": -1.5,
    "instruction_difficulty": 0.5,
    "not_gamed_baseline": False,
}


def test_the_file_is_read_by_its_columns(tmp_path):
    path = tmp_path / "df_gamed.csv"
    second = ROW | {"index": 1, "instruction_difficulty": -2.0}
    write(path, [second, ROW, ROW | {"preference": 0.75}, second])

    gamed = read_gamed(path)

    assert gamed.wins.tolist() == [0.25, 0.25, 0.75, 0.25]
    assert gamed.scaled_delta.tolist() == [-1.5] * 4
    # In the order of the index, each once.
    assert gamed.difficulty.tolist() == [0.5, -2.0]
    assert gamed.row_difficulty.tolist() == [-2.0, 0.5, 0.5, -2.0]


def test_a_wrong_file_is_named(tmp_path):
    path = tmp_path / "df_gamed.csv"
    with pytest.raises(UserError, match="no such file"):
        read_gamed(path)
    write(path, [{key: value for key, value in ROW.items() if key != "std_delta_len"}])
    with pytest.raises(UserError, match="no column std_delta_len"):
        read_gamed(path)
    write(path, [ROW | {"preference": "high"}])
    with pytest.raises(UserError, match="could not convert string to float: 'high'"):
        read_gamed(path)
