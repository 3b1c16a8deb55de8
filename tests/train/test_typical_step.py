"""A typical step has the tokens of its groups and the micro-batches of training."""

import numpy as np
import pytest

from prefopt.data.lengths import Lengths
from prefopt.models.dry_run import Row
from prefopt.train.typical_step import mean_tokens, typical_step

# One kind of group: a prompt of 4, responses of 6 and 10.
CONSTANT = Lengths(
    prompts=np.array([4]), responses=np.array([[6, 10]]), num_records=1, said_by="hand"
)


def step(lengths=CONSTANT, **changes):
    settings = {
        "groups_per_step": 8,
        "num_ranks": 2,
        "tokens_per_micro_batch": 45,
        "layout": "shared",
    }
    return typical_step(lengths, **{**settings, **changes})


def test_a_step_is_split_as_training_splits_it():
    # 4 groups of 20 tokens on each of 2 GPUs, of which 45 tokens hold 2.
    found = step()

    assert found.num_micro_batches == 2
    assert found.tokens.unique == 8 * 20
    assert found.tokens.scored == 8 * 16


def test_the_largest_micro_batch_fills_the_budget():
    found = step()

    assert found.row == Row(prompt=9, responses=(36,))


def test_a_share_below_the_budget_is_one_micro_batch_of_its_own_size():
    found = step(tokens_per_micro_batch=1000)

    assert found.num_micro_batches == 1
    assert found.row == Row(prompt=16, responses=(64,))


def test_more_gpus_have_smaller_shares_and_the_same_step():
    few, many = step(tokens_per_micro_batch=1000), step(tokens_per_micro_batch=1000, num_ranks=8)

    assert many.tokens == few.tokens
    assert many.row == Row(prompt=4, responses=(16,))


@pytest.mark.parametrize(
    ("layout", "unique", "visible"),
    [
        # Segments of 4, 6 and 10 tokens, and 16 tokens that see a prompt of 4.
        ("shared", 4 + 16, 10 + 21 + 55 + 4 * 16),
        # Rows of 10 and 14 tokens.
        ("packed", 10 + 14, 55 + 105),
        ("padded", 10 + 14, 55 + 105),
    ],
)
def test_what_a_group_costs_depends_on_how_often_its_prompt_stands_there(layout, unique, visible):
    found = mean_tokens(CONSTANT, layout)

    assert (found.unique, found.scored, found.visible) == (unique, 16, visible)


def test_an_absent_response_costs_nothing():
    ragged = Lengths(
        prompts=np.array([4, 4]),
        responses=np.array([[6, 10], [6, 0]]),
        num_records=2,
        said_by="hand",
    )

    assert mean_tokens(ragged, "shared").unique == (20 + 10) / 2
    assert mean_tokens(ragged, "packed").unique == (24 + 10) / 2


def test_padded_rows_are_as_wide_as_the_longest_text():
    found = step(layout="padded", tokens_per_micro_batch=45)

    # 3 rows of 14 in 45 tokens; of a text of 12 tokens on average 8 are scored.
    assert len(found.row.responses) == 3
    assert found.row.prompt + found.row.responses[0] == 14
