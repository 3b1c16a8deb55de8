"""The step plan: the same groups for any number of ranks, each of them exactly once."""

import subprocess
import sys
from collections import Counter

import pytest

from prefopt.data.plan import GroupSize, StepPlan, Stream, split_step

RANKS = [1, 2, 3, 4, 5, 6, 7, 8, 9]


def plan(**changes: object) -> StepPlan:
    settings: dict[str, object] = {
        "records_per_source": (10,),
        "source_weights": (1.0,),
        "groups_per_step": 4,
        "seed": 0,
    }
    return StepPlan(**{**settings, **changes})


def epoch_of(a_plan: StepPlan, epoch: int = 0) -> list[int]:
    """All groups of an epoch, step by step."""
    steps = range(a_plan.steps_per_epoch)
    return [int(group) for step in steps for group in a_plan.groups(epoch, step)]


def sizes_of(num_groups: int) -> list[GroupSize]:
    """Groups of 1 to 4 rows of 5 to 60 tokens."""
    return [GroupSize(num_rows=1 + i % 4, longest_row=5 + (i * 37) % 56) for i in range(num_groups)]


def test_an_epoch_holds_every_group_exactly_once():
    assert sorted(epoch_of(plan())) == list(range(10))


def test_the_last_step_takes_what_is_left():
    a_plan = plan()

    assert a_plan.steps_per_epoch == 3
    assert [len(a_plan.groups(0, step)) for step in range(3)] == [4, 4, 2]


def test_without_shuffling_the_data_keeps_its_order():
    a_plan = plan(records_per_source=(4, 3), source_weights=(1.0, 1.0), shuffle=False)

    assert epoch_of(a_plan) == list(range(7))
    assert epoch_of(a_plan, epoch=1) == list(range(7))


def test_shuffling_mixes_and_differs_between_epochs_and_seeds():
    big = plan(records_per_source=(100,))

    orders = [epoch_of(big, 0), epoch_of(big, 1), epoch_of(plan(records_per_source=(100,), seed=1))]

    assert [sorted(order) for order in orders] == [list(range(100))] * 3
    assert len({tuple(order) for order in [*orders, list(range(100))]}) == 4


def test_asking_again_or_out_of_order_gives_the_same():
    late = plan().groups(7, 2).tolist()
    for epoch in range(20):
        plan().groups(epoch, 0)

    assert plan().groups(7, 2).tolist() == late


def test_weights_say_how_often_a_source_is_seen():
    a_plan = plan(records_per_source=(10, 10, 10), source_weights=(0.5, 2.0, 1.5))

    times = Counter(epoch_of(a_plan))

    assert a_plan.groups_per_epoch == 5 + 20 + 15
    # Half of the first once; all of the second twice; all of the third once and half of it twice.
    assert Counter(times[record] for record in range(10)) == {1: 5, 0: 5}
    assert Counter(times[record] for record in range(10, 20)) == {2: 10}
    assert Counter(times[record] for record in range(20, 30)) == {1: 5, 2: 5}


def test_half_of_a_source_is_another_half_in_another_epoch():
    a_plan = plan(records_per_source=(100,), source_weights=(0.5,))

    first, second = set(epoch_of(a_plan, 0)), set(epoch_of(a_plan, 1))

    assert len(first) == len(second) == 50
    assert first != second


def test_a_weighted_source_that_is_not_shuffled_keeps_its_order():
    a_plan = plan(records_per_source=(10,), source_weights=(1.5,), shuffle=False)

    order = epoch_of(a_plan)

    assert order[:10] == list(range(10))
    assert order[10:] == sorted(set(order[10:]))


def test_an_empty_source_is_no_trouble():
    assert epoch_of(plan(records_per_source=(0, 3), source_weights=(1.0, 1.0), shuffle=False)) == [
        0,
        1,
        2,
    ]


def test_another_process_makes_the_same_plan():
    code = (
        "from prefopt.data.plan import StepPlan\n"
        "plan = StepPlan(records_per_source=(50, 9), source_weights=(0.5, 2.0),"
        " groups_per_step=43, seed=3)\n"
        "print(plan.groups(2, 0).tolist())"
    )
    here = plan(
        records_per_source=(50, 9), source_weights=(0.5, 2.0), groups_per_step=43, seed=3
    ).groups(2, 0)

    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert there.stdout.strip() == str(here.tolist())


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("num_groups", [1, 3, 32])
@pytest.mark.parametrize("budget", [1, 120, 10**6])
def test_ranks_share_a_steps_groups_and_make_equally_many_micro_batches(
    num_ranks: int, num_groups: int, budget: int
):
    sizes = sizes_of(num_groups)

    split = split_step(sizes, num_ranks=num_ranks, tokens_per_micro_batch=budget)

    groups = [i for rank in split for micro_batch in rank for i in micro_batch]
    assert sorted(groups) == list(range(num_groups))
    assert len(split) == num_ranks
    assert len({len(rank) for rank in split}) == 1
    assert len(split[0]) >= 1


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("budget", [1, 60, 120, 500])
def test_a_micro_batch_stays_in_the_budget_unless_one_group_exceeds_it(num_ranks: int, budget: int):
    sizes = sizes_of(32)

    split = split_step(sizes, num_ranks=num_ranks, tokens_per_micro_batch=budget)

    for micro_batch in (groups for rank in split for groups in rank if groups):
        rows = sum(sizes[i].num_rows for i in micro_batch)
        padded = rows * max(sizes[i].longest_row for i in micro_batch)
        assert padded <= budget or len(micro_batch) == 1


@pytest.mark.parametrize("num_ranks", [2, 4, 8])
def test_ranks_get_about_the_same_number_of_tokens(num_ranks: int):
    sizes = sizes_of(64)

    split = split_step(sizes, num_ranks=num_ranks, tokens_per_micro_batch=500)

    loads = [
        sum(sizes[i].num_rows * sizes[i].longest_row for groups in rank for i in groups)
        for rank in split
    ]
    # Each group goes to the least loaded rank, so no two differ by more than the largest group.
    assert max(loads) - min(loads) <= max(size.num_rows * size.longest_row for size in sizes)


def test_a_rank_without_a_group_has_empty_micro_batches():
    split = split_step(sizes_of(2), num_ranks=4, tokens_per_micro_batch=10**6)

    assert sorted(map(str, split)) == ["[[0]]", "[[1]]", "[[]]", "[[]]"]


def test_a_large_budget_makes_one_micro_batch():
    split = split_step(sizes_of(32), num_ranks=1, tokens_per_micro_batch=10**6)

    assert [len(rank) for rank in split] == [1]


def flat(tokens: list[int]) -> list[GroupSize]:
    """Groups of two rows that add so many tokens to a flat row."""
    return [GroupSize(num_rows=2, longest_row=num, num_tokens=num) for num in tokens]


@pytest.mark.parametrize("num_ranks", RANKS)
@pytest.mark.parametrize("budget", [1, 90, 200, 10**6])
def test_flat_rows_hold_every_group_once_within_the_budget(num_ranks: int, budget: int):
    sizes = flat([5 + (i * 37) % 56 for i in range(32)])

    split = split_step(sizes, num_ranks=num_ranks, tokens_per_micro_batch=budget)

    assert sorted(i for rank in split for groups in rank for i in groups) == list(range(32))
    assert len({len(rank) for rank in split}) == 1
    for groups in (groups for rank in split for groups in rank):
        assert sum(sizes[i].num_tokens for i in groups) <= budget or len(groups) == 1


def test_flat_rows_are_about_equally_full():
    # 600 tokens take 3 rows of 250 at least, and three groups of 200 make them equal.
    split = split_step(flat([110, 100, 100, 100, 100, 90]), num_ranks=1, tokens_per_micro_batch=250)

    assert sorted(sum(map([110, 100, 100, 100, 100, 90].__getitem__, g)) for g in split[0]) == [
        200,
        200,
        200,
    ]


def test_a_large_group_stands_alone_and_the_others_share():
    (rank,) = split_step(flat([500, 30, 20, 40]), num_ranks=1, tokens_per_micro_batch=100)

    assert sorted(map(sorted, rank)) == [[0], [1, 2, 3]]


def test_a_rank_with_less_splits_it_as_often_instead_of_waiting():
    # The first rank has 100 and twice 60, which takes three rows; the second four times 50, which
    # would fit two.
    split = split_step(flat([100, 60, 60, 50, 50, 50, 50]), num_ranks=2, tokens_per_micro_batch=100)

    sums = [[sum([100, 60, 60, 50, 50, 50, 50][i] for i in g) for g in rank] for rank in split]
    assert sorted(map(sorted, sums)) == [[50, 50, 100], [60, 60, 100]]


def two_streams(**changes: object) -> StepPlan:
    """Sources 0 and 2 lead, 4 groups a step; 3 groups of source 1 go along."""
    settings = {
        "records_per_source": (6, 7, 5),
        "source_weights": (1.0, 1.0, 1.0),
        "companions": (Stream(sources=(1,), groups_per_step=3),),
    }
    return plan(**{**settings, **changes})


def test_every_step_has_its_number_of_groups_of_each_stream():
    a_plan = two_streams()

    steps = [a_plan.groups(epoch, step).tolist() for epoch in (0, 1) for step in range(3)]

    along = [[group for group in step if 6 <= group < 13] for step in steps]
    assert [len(step) for step in steps] == [7, 7, 6] * 2
    assert [len(groups) for groups in along] == [3] * 6
    assert a_plan.steps_per_epoch == 3
    assert a_plan.groups_per_epoch == 11 + 3 * 3


def test_an_epoch_is_one_of_the_leading_stream():
    epoch = [group for group in epoch_of(two_streams()) if not 6 <= group < 13]

    assert sorted(epoch) == [*range(6), *range(13, 18)]


def test_a_stream_that_goes_along_begins_again_when_it_is_used_up():
    a_plan = two_streams()

    drawn = [g for epoch in range(7) for g in epoch_of(a_plan, epoch) if 6 <= g < 13]

    # 7 epochs of 3 steps draw 63 groups: 9 passes over 7 records, each a permutation of its own.
    passes = [drawn[i : i + 7] for i in range(0, 63, 7)]
    assert [sorted(each) for each in passes] == [list(range(6, 13))] * 9
    assert len({tuple(each) for each in passes}) > 5


def test_a_stream_that_goes_along_does_not_change_the_order_of_the_leading_one():
    alone = plan(records_per_source=(6,), source_weights=(1.0,))
    together = plan(
        records_per_source=(6, 7),
        source_weights=(1.0, 1.0),
        companions=(Stream(sources=(1,), groups_per_step=2),),
    )

    leading = [group for group in epoch_of(together, 3) if group < 6]

    assert leading == epoch_of(alone, 3)


def orders_of(a_plan: StepPlan, num_records: int) -> list[tuple[int, ...]]:
    """Each source's order in the first epoch, as places in the source."""
    epoch = epoch_of(a_plan)
    starts = range(0, sum(a_plan.records_per_source), num_records)
    return [tuple(g - start for g in epoch if start <= g < start + num_records) for start in starts]


@pytest.mark.parametrize("along", [(1, 2), (0, 1), (2, 0)])
def test_streams_of_one_size_are_each_shuffled_in_an_order_of_their_own(along: tuple[int, ...]):
    together = plan(
        records_per_source=(20, 20, 20),
        source_weights=(1.0, 1.0, 1.0),
        companions=tuple(Stream(sources=(source,), groups_per_step=4) for source in along),
    )

    orders = orders_of(together, 20)

    assert [sorted(order) for order in orders] == [list(range(20))] * 3
    assert len(set(orders)) == 3
