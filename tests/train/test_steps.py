"""What each rank does of a step: every group once, fillers for the rest, and what is coupled."""

import pytest
import torch

from prefopt.data.plan import StepPlan
from prefopt.data.store import TokenStore
from prefopt.models.layout import LayoutName
from prefopt.objectives import build
from prefopt.train.share import StepShare
from prefopt.train.steps import StepDataset
from tests.data.builders import prepare

# Prompts of 1, and responses of 10, 11 or 12 and 2 tokens, so that the last is the longest.
ROWS = [
    {"prompt": "p", "responses": ["abcdefghi", "b"], "scores": [1.0, 0.0]},
    {"prompt": "q", "responses": ["cdefghijkl", "e"], "scores": [0.0, 1.0]},
    {"prompt": "r", "responses": ["fghijklmnop", "l"], "scores": [1.0, 1.0]},
]
# Two padded rows of 13 tokens hold the last; no other one fits beside it, nor the first beside
# the second.
ONE_GROUP, WHOLE_STEP = 26, 100_000


@pytest.fixture
def store(tmp_path) -> TokenStore:
    return prepare(tmp_path, ROWS).train


def shares_of(
    store: TokenStore,
    objective: str,
    *,
    num_ranks: int = 1,
    budget: int = WHOLE_STEP,
    seed: int = 0,
    passes: float = 1.0,
    key: tuple[int, int] = (0, 0),
    layout: LayoutName = "padded",
) -> list[StepShare]:
    """Of each rank, in a step that takes the whole store in its order, `passes` times an epoch."""
    plan = StepPlan(
        records_per_source=(len(store),),
        source_weights=(passes,),
        groups_per_step=len(store),
        seed=seed,
        shuffle=False,
    )
    return [
        StepDataset(
            store,
            plan,
            build({"name": objective}),
            rank=rank,
            num_ranks=num_ranks,
            tokens_per_micro_batch=budget,
            layout=layout,
        )[key]
        for rank in range(num_ranks)
    ]


def name(position: int) -> str:
    return f"rows.jsonl:{position + 1}"


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
@pytest.mark.parametrize("num_groups", [1, 2, 3])
@pytest.mark.parametrize("budget", [ONE_GROUP, WHOLE_STEP])
def test_ranks_together_hold_every_group_once_before_their_fillers(
    store, num_ranks, num_groups, budget
):
    shares = shares_of(store[:num_groups], "dpo", num_ranks=num_ranks, budget=budget)

    held = []
    for share in shares:
        assert len(share.positions) == len(share.micro_batches) == len(shares[0].micro_batches)
        real = share.micro_batches[: share.num_real]
        for batch, positions in zip(real, share.positions[: share.num_real], strict=True):
            assert batch.ids == tuple(map(name, positions))
            held += positions
        assert set(share.positions[share.num_real :]) <= {()}
        # A filler repeats the cheapest group, here the first.
        assert {batch.ids for batch in share.micro_batches[share.num_real :]} <= {(name(0),)}
    assert sorted(held) == list(range(num_groups))


def test_a_rank_with_less_to_do_than_another_fills_up(store):
    first, second = shares_of(store, "dpo", num_ranks=2, budget=ONE_GROUP)

    # The longest group goes to one rank, the other two to the other.
    assert (first.num_real, first.positions) == (1, ((2,), ()))
    assert (second.num_real, second.positions) == (2, ((1,), (0,)))


def test_every_rank_knows_the_denominators_of_the_whole_step(store):
    shares = shares_of(store, "dpo", num_ranks=2, budget=ONE_GROUP)

    # Two groups prefer a response; the third ties. Tokens: 3 prompts, and 10 + 2 + 11 + 2 + 12 + 2.
    assert [share.denominators for share in shares] == [{"loss": 2.0}] * 2
    assert [share.num_tokens for share in shares] == [3 + 39] * 2
    assert [share.num_groups for share in shares] == [3] * 2


@pytest.mark.parametrize(
    ("num_ranks", "budget", "is_needed"),
    [(1, WHOLE_STEP, False), (1, ONE_GROUP, True), (2, WHOLE_STEP, True), (2, ONE_GROUP, True)],
)
def test_a_statistic_is_taken_unless_one_micro_batch_is_the_whole_step(
    store, num_ranks, budget, is_needed
):
    for share in shares_of(store, "dr_dpo", num_ranks=num_ranks, budget=budget):
        # It is of the same groups, so that what is a filler here is one there.
        assert share.statistic_batches == (share.micro_batches if is_needed else ())
        assert share.statistic_positions == (share.positions if is_needed else ())


def test_a_rank_without_a_group_takes_part_in_the_statistic(store):
    first, second = shares_of(store[:1], "dr_dpo", num_ranks=2)

    assert (first.statistic_positions, second.statistic_positions) == (((0,),), ((),))
    assert len(first.statistic_batches) == len(second.statistic_batches) == 1


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("budget", [ONE_GROUP, WHOLE_STEP])
def test_an_objective_that_couples_nothing_takes_no_statistic(store, num_ranks, budget):
    for share in shares_of(store, "dpo", num_ranks=num_ranks, budget=budget):
        assert (share.statistic_batches, share.statistic_positions) == ((), ())


@pytest.mark.parametrize("num_ranks", [1, 2, 4])
@pytest.mark.parametrize("budget", [ONE_GROUP, WHOLE_STEP])
def test_a_mismatched_group_has_its_own_prompt_and_all_else_of_the_next_one(
    store, num_ranks, budget
):
    shares = shares_of(store, "kto", num_ranks=num_ranks, budget=budget)

    prompts = [record.prompt_ids.tolist() for record in store]
    found = {}
    for share in shares:
        batches = zip(share.statistic_batches, share.statistic_positions, strict=True)
        for batch, positions in batches:
            if not positions:
                continue
            lengths = batch.num_tokens.flatten().tolist()
            responses = [ids.tolist() for ids in batch.targets.split(lengths)]
            for g, position in enumerate(positions):
                assert position not in found
                assert batch.ids[g] == name(position)
                assert batch.input_ids[g].item() == prompts[position][0]
                found[position] = (responses[2 * g : 2 * g + 2], batch.scores[g].tolist())
    # All prompts have one token, so that no response is cut.
    assert found == {
        i: (
            [ids.tolist() for ids in store[(i + 1) % 3].response_ids],
            ROWS[(i + 1) % 3]["scores"],
        )
        for i in range(3)
    }


def test_a_step_of_one_group_has_nothing_to_mismatch(store):
    for share in shares_of(store[:1], "kto", num_ranks=2):
        assert (share.statistic_batches, share.statistic_positions) == ((), ())


def test_noise_depends_on_the_plans_seed_epoch_and_step(store):
    def noise(**changes: object) -> torch.Tensor:
        (share,) = shares_of(store, "cringe", **changes)
        (batch,) = share.micro_batches
        return batch.noise

    assert torch.equal(noise(), noise())
    assert noise().shape == (39,)
    # No number of 39 is drawn a second time, not even for the same records later in an epoch.
    draws = [noise(), noise(seed=1), noise(seed=2), noise(key=(1, 0)), noise(key=(2, 0))]
    draws.append(noise(passes=2.0, key=(0, 1)))
    assert len(set(torch.cat(draws).tolist())) == 6 * 39


def test_noise_of_a_group_is_the_same_on_any_rank(store):
    def by_group(num_ranks: int, budget: int) -> dict[str, list[float]]:
        found = {}
        for share in shares_of(store, "cringe", num_ranks=num_ranks, budget=budget):
            for batch in share.micro_batches[: share.num_real]:
                sizes = batch.num_tokens.sum(dim=1).tolist()
                pieces = batch.noise.split(sizes)
                found |= {i: p.tolist() for i, p in zip(batch.ids, pieces, strict=True)}
        return found

    whole = by_group(1, WHOLE_STEP)
    assert whole.keys() == {name(0), name(1), name(2)}
    assert by_group(2, ONE_GROUP) == by_group(3, WHOLE_STEP) == whole
