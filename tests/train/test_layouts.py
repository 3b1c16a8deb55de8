"""Layout, token budget and tiles split a step's work; what it learns stays the same."""

import itertools
import random
from unittest.mock import patch

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

import prefopt.models.head as head
from prefopt.errors import UserError
from prefopt.models.head import layout_of
from prefopt.ops.cascade import cascade_on_cpu
from prefopt.train.trainer import PreferenceTrainer
from tests.support.runs import LORA, logged, policy, run, snapshot
from tests.support.slow import slow_but
from tests.support.tiny import (
    character_tokenizer,
    random_text,
    save_tiny_model,
    tiny_config,
    write_jsonl,
)

NUM_GROUPS, NUM_RESPONSES = 3, 4
SGD = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "max_steps": 2}
# Every way in which a loss reads its groups: pairs, lists, labels with a baseline of mismatched
# groups, weights shared out over a step, tokens with statistics of the vocabulary.
OBJECTIVES = {
    "dpo": {"name": "dpo"},
    "lipo": {"name": "lipo"},
    "kto": {"name": "kto"},
    "dr_dpo": {"name": "dr_dpo", "beta_prime": 0.01},
    "cringe": {"name": "cringe", "k": 3},
    "bmc": {"name": "bmc"},
    "sum": {"name": "weighted_sum", "terms": [{"name": "dpo"}, {"name": "nll", "weight": 0.5}]},
}
NUMBERS = itertools.count()
# A micro-batch holds one response, two or three, or the step.
BUDGETS = [1, 40, 100_000]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("layouts")
    save_tiny_model(folder / "model")
    save_tiny_model(folder / "other", seed=1)
    generator = random.Random(0)
    rows = [
        {
            "prompt": random_text(generator, 5, 14),
            "responses": [random_text(generator, 2, 12) for _ in range(NUM_RESPONSES)],
            "scores": [float(k == g) for k in range(NUM_RESPONSES)],
        }
        for g in range(NUM_GROUPS)
    ]
    write_jsonl(folder / "pairs.jsonl", rows)
    return folder


def trained(folder, objective, *, layout="shared", budget=100_000, **sections) -> PreferenceTrainer:
    """Two steps of all groups each, in float64."""
    if objective["name"] != "cringe":
        sections["reference"] = {"path": str(folder / "other")}
    return run(
        folder,
        f"run-{next(NUMBERS)}",
        objective=objective,
        model={"dtype": "float64", "layout": layout},
        training={**SGD, "groups_per_step": NUM_GROUPS, "tokens_per_micro_batch": budget},
        **sections,
    )


def assert_learnt_the_same(ours: PreferenceTrainer, theirs: PreferenceTrainer) -> None:
    # The norms are in float32 whatever the rest, and round differently in another layout.
    for key in ("loss", "rewards/margins", "grad_norm"):
        assert logged(ours, key) == pytest.approx(logged(theirs, key), rel=1e-5, abs=1e-8)
    start = snapshot(policy(theirs))
    for name, value in policy(ours).named_parameters():
        torch.testing.assert_close(value.data, start[name], rtol=0, atol=2e-7)


@pytest.mark.parametrize("name", slow_but(["dpo", "kto"], OBJECTIVES))
def test_a_shared_row_in_pieces_changes_nothing_in_what_is_learnt(folder, name):
    objective = OBJECTIVES[name]

    plain = trained(folder, objective, layout="padded")
    ours = trained(folder, objective, layout="shared", budget=1)

    assert [layout_of(each.model)[0] for each in (plain, ours)] == ["padded", "shared"]
    assert_learnt_the_same(ours, plain)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_no_layout_and_no_budget_changes_what_is_learnt(folder, objective, layout):
    plain = trained(folder, objective, layout="padded")

    for budget in BUDGETS:
        ours = trained(folder, objective, layout=layout, budget=budget)
        assert layout_of(ours.model)[0] == layout
        assert_learnt_the_same(ours, plain)


@pytest.mark.parametrize("budget", slow_but([40], BUDGETS))
def test_an_adapter_learns_the_same_from_pieces(folder, budget):
    adapter = {"adapter": LORA}

    ours = trained(folder, {"name": "dpo"}, budget=budget, **adapter)

    assert_learnt_the_same(ours, trained(folder, {"name": "dpo"}, layout="padded", **adapter))


def test_no_forward_pass_holds_more_than_a_piece(folder):
    trainer = trained(folder, {"name": "dpo"}, budget=1)
    seen: list[int] = []
    decoder = policy(trainer).get_decoder()
    decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    store = trainer.train_dataset.store

    trainer.training_step(trainer.model, trainer.train_dataset[0, 0])

    # Every response behind its prompt: once for what the loss wants, once for the gradient.
    sizes = [
        int(store.prompt_lengths[g] + length)
        for g in range(NUM_GROUPS)
        for length in store.response_lengths(g)
    ]
    assert sorted(seen) == sorted(sizes * 2)


def test_a_prompt_runs_once_for_all_its_responses(folder):
    trainer = trained(folder, {"name": "dpo"})
    seen: list[int] = []
    decoder = policy(trainer).get_decoder()
    decoder.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    store = trainer.train_dataset.store

    trainer.training_step(trainer.model, trainer.train_dataset[0, 0])

    assert seen == [int(store.prompt_lengths.sum() + store.all_response_lengths.sum())]


@pytest.mark.parametrize("budget", slow_but([40], BUDGETS))
def test_evaluation_counts_a_group_in_pieces_once(folder, budget):
    data = {"evaluation": {"sources": [{"path": str(folder / "pairs.jsonl")}]}}
    settings = {"data": {"sources": [{"path": str(folder / "pairs.jsonl")}], **data}}

    ours = trained(folder, {"name": "lipo"}, budget=budget, **settings)

    plain = trained(folder, {"name": "lipo"}, layout="padded", **settings)
    for key in ("eval_loss", "eval_rewards/accuracies", "eval_logps/chosen"):
        assert logged(ours, key) == pytest.approx(logged(plain, key), rel=1e-6)


class Calls:
    """How many log-probs each call of the groupwise head is asked for."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.function = head.groupwise_loss

    def __call__(self, hidden, *args, **kwargs):
        self.num_calls += 1
        return self.function(hidden, *args, **kwargs)


MICRO_BATCH = {"name": "dr_dpo", "coupling": "micro_batch"}


@pytest.mark.parametrize(
    ("objective", "budget", "sections", "num_calls"),
    [
        ({"name": "dpo"}, 100_000, {}, 1),
        # Four groups in pieces of one response.
        ({"name": "dpo"}, 1, {}, NUM_GROUPS * NUM_RESPONSES),
        # Nothing to compute in one pass where the projection is not trained.
        ({"name": "dpo"}, 100_000, {"adapter": LORA}, 0),
        # The loss of one group needs all of the call.
        ({"name": "dr_dpo"}, 100_000, {}, 0),
        (MICRO_BATCH, 100_000, {}, 0),
        ({"name": "weighted_sum", "terms": [{"name": "nll"}, MICRO_BATCH]}, 100_000, {}, 0),
        # It has been told of the whole step.
        ({"name": "kto"}, 100_000, {}, 1),
    ],
)
def test_a_trained_projection_gets_its_gradient_in_the_forward_pass_where_that_is_right(
    folder, objective, budget, sections, num_calls
):
    calls = Calls()
    with patch.object(head, "groupwise_loss", calls):
        trained(folder, objective, budget=budget, **sections)

    assert calls.num_calls == 2 * num_calls


@pytest.mark.parametrize("num_tokens", [1, 50])
@pytest.mark.parametrize("name", slow_but(["dpo"], ["dpo", "kto"]))
def test_no_size_of_tiles_changes_what_is_learnt(folder, name, num_tokens):
    plain = trained(folder, OBJECTIVES[name])

    with patch.object(head, "tokens_per_tile", lambda *_: num_tokens):
        assert_learnt_the_same(trained(folder, OBJECTIVES[name]), plain)


def test_a_window_that_only_long_prompts_reach_is_checked_at_the_start(tmp_path):
    config = MistralConfig(**tiny_config().to_dict(), sliding_window=120)
    MistralForCausalLM(config).save_pretrained(tmp_path / "model")
    character_tokenizer().save_pretrained(tmp_path / "model")
    generator = random.Random(0)
    row = {
        "prompt": random_text(generator, 200, 200),
        "chosen": random_text(generator, 8, 8),
        "rejected": random_text(generator, 9, 9),
    }
    write_jsonl(tmp_path / "pairs.jsonl", [row])
    sections = {
        "objective": {"name": "simpo"},
        "training": {"groups_per_step": 1, "max_steps": 1},
    }

    def without_window(*args, window, **kwargs):
        return cascade_on_cpu(*args, window=None, **kwargs)

    run(tmp_path, "right", **sections)
    with (
        patch("prefopt.models.attention.cascade_on_cpu", without_window),
        pytest.raises(UserError, match=r"^model\.path: log-probs differ by .* nats"),
    ):
        run(tmp_path, "wrong", **sections)


def test_a_deviation_on_one_process_stops_all(folder):
    with (
        patch("prefopt.models.self_check.gather", lambda mine: torch.cat([mine, mine + 1.0])),
        pytest.raises(UserError, match=r"^model\.path: log-probs differ by 1 nats"),
    ):
        trained(folder, {"name": "dpo"})
