"""Training on reference log-probs from the cache: the same numbers, no passes, no mix-up."""

import errno
import gc
import os
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlamaModel

from prefopt.data import reference_cache
from prefopt.data.reference_cache import ReferenceFolder, read_about
from prefopt.errors import UserError
from prefopt.models.reference import CachedReference, FrozenCopy, StartOfAdapter
from tests.support.runs import LORA, logged, policy, run, snapshot
from tests.support.slow import slow_but
from tests.support.tiny import save_tiny_model, write_lists, write_pairs

NUM_RECORDS = 12
# Steps of 4 groups: 3 read the data once, 2 less than that.
ENOUGH, TOO_FEW = {"max_steps": 3}, {"max_steps": 2}
OFF = {"reference": {"cache": "off"}}
ALWAYS = {"reference": {"cache": "always"}}
COMPUTED = "reference: computing log-probs of 12 records once"
FROM_CACHE = "reference: 12 records from the cache"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    save_tiny_model(folder / "model")
    save_tiny_model(folder / "other", seed=1)
    write_pairs(folder / "pairs.jsonl", NUM_RECORDS)
    run(folder, "started", adapter=LORA, training={"learning_rate": 1e-2})
    return folder


def linked(inputs, folder):
    for name in ("model", "other", "started", "pairs.jsonl"):
        (folder / name).symlink_to(inputs / name)
    return folder


@pytest.fixture
def folder(inputs, tmp_path):
    """Models and data, with a cache that is empty."""
    return linked(inputs, tmp_path)


@pytest.fixture(scope="module")
def warm(inputs, tmp_path_factory):
    """The same, with a cache that a run has filled."""
    folder = linked(inputs, tmp_path_factory.mktemp("warm"))
    run(folder, "first", training=ENOUGH)
    return folder


def entries(folder) -> list[Path]:
    """The folders of reference log-probs in the cache."""
    return sorted(path.parent for path in (folder / "cache" / "reference").glob("*/about.json"))


def only_entry(folder) -> ReferenceFolder:
    (entry,) = entries(folder)
    return ReferenceFolder(entry, read_about(entry).num_records)


def said(capsys) -> list[str]:
    """What the run said of its reference since the last time."""
    lines = capsys.readouterr().out.splitlines()
    return [line for line in lines if line.startswith("reference:")]


@contextmanager
def forward_passes():
    """Counts every pass through the decoder of whatever model, by the size of its first input."""
    sizes = []

    def count(module, args, kwargs, output):
        if isinstance(module, LlamaModel):
            sizes.append(kwargs["input_ids"].numel())

    handle = torch.nn.modules.module.register_module_forward_hook(
        count, with_kwargs=True, always_call=True
    )
    yield sizes
    handle.remove()


def sections(folder, kind) -> dict[str, dict[str, object]]:
    return {
        "full": {},
        "lora": {"adapter": LORA},
        "going on": {"adapter": {"path": str(folder / "started")}},
        "another model": {"reference": {"path": str(folder / "other")}},
        "bf16": {"training": {"bf16": True}},
        "bf16 weights": {"model": {"dtype": "bfloat16"}, "adapter": LORA},
    }[kind]


def merged(*many) -> dict[str, dict[str, object]]:
    names = {name for each in many for name in each}
    return {
        name: {key: value for each in many for key, value in each.get(name, {}).items()}
        for name in names
    }


KINDS = ["full", "lora", "going on", "another model", "bf16", "bf16 weights"]


@pytest.mark.parametrize("kind", slow_but(["full", "going on"], KINDS))
def test_training_with_the_cache_is_training_with_the_live_reference(folder, capsys, kind):
    common = {
        "data": {"evaluation": {"num_groups": 3}},
        "training": {"max_steps": 5, "eval_strategy": "steps", "eval_steps": 2},
    }
    live = run(folder, "live", **merged(common, sections(folder, kind), OFF))
    assert said(capsys) == ["reference: live (reference.cache: off)"]
    assert not isinstance(live.reference, CachedReference)

    cached = run(folder, "cached", **merged(common, sections(folder, kind)))

    assert said(capsys) == [COMPUTED]
    assert isinstance(cached.reference, CachedReference)
    tolerance = 2e-3 if kind.startswith("bf16") else 1e-6
    for key in ("loss", "eval_loss", "logps/rejected", "rewards/margins"):
        expected = pytest.approx(logged(live, key), rel=tolerance, abs=tolerance)
        assert logged(cached, key) == expected
    before, after = (
        torch.cat([v.flatten() for v in snapshot(policy(t)).values()]) for t in (live, cached)
    )
    assert torch.linalg.norm((before - after).double()) <= tolerance * torch.linalg.norm(
        before.double()
    )


@pytest.mark.parametrize("kind", slow_but(["lora"], ["full", "lora"]))
def test_a_second_objective_on_the_same_data_runs_no_reference(folder, capsys, kind):
    training = {"training": {"max_steps": 6}}
    with forward_passes() as live:
        run(folder, "live", **merged(training, sections(folder, kind), OFF))
    run(folder, "first", **merged(training, sections(folder, kind)))
    said(capsys)

    ipo = {"objective": {"name": "ipo"}}
    with (
        forward_passes() as cached,
        patch.object(FrozenCopy, "token_logps", autospec=True) as of_copy,
        patch.object(StartOfAdapter, "token_logps", autospec=True) as of_adapter,
        patch(
            "prefopt.train.precompute.Scorer.logps_of", side_effect=_stored_sample(folder)
        ) as look,
    ):
        trainer = run(folder, "second", **merged(training, sections(folder, kind), ipo))

    assert said(capsys) == [FROM_CACHE]
    assert isinstance(trainer.reference, CachedReference)
    assert of_copy.call_count == of_adapter.call_count == 0
    # The look at a few records before the first step is the only thing a live reference is for.
    assert look.call_count == 1
    # Each of the 6 steps was one pass of the policy and one of the reference.
    assert len(live) - len(cached) == 6
    assert logged(trainer, "loss")[0] == pytest.approx(25.0, abs=1e-5)


def _stored_sample(folder):
    def answer(records):
        return torch.cat([each for r in records for each in r.reference_logps])

    return answer


def test_a_full_run_holds_one_model_once_the_cache_is_there(folder):
    def num_models():
        gc.collect()
        return sum(type(each) is LlamaForCausalLM for each in gc.get_objects())

    before = num_models()

    cached = run(folder, "cached", training=ENOUGH)
    assert num_models() - before == 1
    live = run(folder, "live", training=ENOUGH, **OFF)

    assert num_models() - before == 3
    assert isinstance(cached.reference, CachedReference)
    assert isinstance(live.reference, FrozenCopy)


CHANGES_NOTHING = {
    "all but the model": {
        "objective": {"name": "ipo", "tau": 0.5},
        "data": {"scores": "rank", "evaluation": {"num_groups": 3}},
        "training": {"seed": 7, "tokens_per_micro_batch": 40, "shuffle": False, "max_steps": 4},
        "reference": {"cache": "always"},
    },
    "an adapter of any rank": {"adapter": {**LORA, "r": 3}, "training": ENOUGH},
    "the same weights by name": {"reference": {"path": "model"}, "training": ENOUGH},
}


@pytest.mark.parametrize("change", slow_but(["all but the model"], CHANGES_NOTHING))
def test_what_the_numbers_do_not_depend_on_shares_the_cache(
    warm, tmp_path, capsys, monkeypatch, change
):
    monkeypatch.chdir(warm)
    known = entries(warm)

    run(warm, str(tmp_path / "run"), **CHANGES_NOTHING[change])

    assert said(capsys) == [FROM_CACHE]
    assert entries(warm) == known


CHANGES_NUMBERS = {
    "weights": {"model": {"path": "other"}},
    "tokens": {"data": {"max_length": 12, "too_long": "cut_response"}},
    "dtype": {"model": {"dtype": "bfloat16"}},
    "autocast": {"training": {"bf16": True}},
    "layout": {"model": {"layout": "padded"}},
    "attention": {"model": {"attn_implementation": "eager"}},
    "starting adapter": {"adapter": {"path": "started"}},
}


@pytest.mark.parametrize("change", slow_but(["weights", "dtype"], CHANGES_NUMBERS))
def test_what_the_numbers_depend_on_has_a_cache_of_its_own(
    warm, tmp_path, capsys, monkeypatch, change
):
    monkeypatch.chdir(warm)
    known = entries(warm)

    run(warm, str(tmp_path / "run"), **merged({"training": ENOUGH}, CHANGES_NUMBERS[change]))

    assert said(capsys) == [COMPUTED]
    assert len(entries(warm)) == len(known) + 1


def test_one_changed_weight_is_another_reference(folder, capsys):
    (folder / "model").unlink()
    save_tiny_model(folder / "model")
    run(folder, "first", training=ENOUGH)
    said(capsys)
    file = folder / "model" / "model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})

    run(folder, "second", training=ENOUGH)

    assert said(capsys) == [COMPUTED]


def test_a_run_that_reads_less_than_the_data_stays_live(folder, capsys):
    trainer = run(folder, "run", training=TOO_FEW)

    assert said(capsys) == [
        "reference: live (the run reads 8 records, and 12 are not in the cache)"
    ]
    assert isinstance(trainer.reference, FrozenCopy)
    assert entries(folder) == []


def test_it_uses_what_is_there_though(warm, tmp_path, capsys):
    run(warm, str(tmp_path / "run"), training=TOO_FEW)

    assert said(capsys) == [FROM_CACHE]


def test_always_computes_for_the_shortest_run(folder, capsys):
    run(folder, "run", training={"max_steps": 1}, **ALWAYS)

    assert said(capsys) == [COMPUTED]


def test_an_epoch_with_held_out_data_reads_all_of_it(folder, capsys):
    training = {"max_steps": -1, "num_train_epochs": 1}

    run(folder, "run", training=training, data={"evaluation": {"num_groups": 3}})

    assert said(capsys) == [COMPUTED]


def _cut(path):
    os.truncate(path, path.stat().st_size - 4)


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [_cut, _flip])
def test_a_damaged_piece_is_computed_again(folder, capsys, monkeypatch, harm):
    monkeypatch.setattr(reference_cache, "RECORDS_PER_PIECE", 4)
    first = run(folder, "first", training=ENOUGH)
    entry = only_entry(folder)
    whole = entry.path(1).read_bytes()
    harm(entry.path(1))
    said(capsys)

    second = run(folder, "second", training=ENOUGH)

    assert said(capsys) == [
        f"reference: 1 of 3 pieces in {entry.folder} are damaged and not used",
        "reference: 8 records from the cache, computing log-probs of 4 records once",
    ]
    assert entry.path(1).read_bytes() == whole
    assert logged(second, "loss") == logged(first, "loss")


def test_what_was_finished_before_a_crash_is_not_computed_again(folder, capsys, monkeypatch):
    monkeypatch.setattr(reference_cache, "RECORDS_PER_PIECE", 4)
    full = OSError(errno.ENOSPC, "No space left on device")
    write, written = ReferenceFolder.write, []

    def write_two(self, piece, logps):
        if len(written) == 2:
            with patch("prefopt.data.reference_cache.os.fsync", side_effect=full):
                write(self, piece, logps)
        write(self, piece, logps)
        written.append(piece)

    with (
        patch.object(ReferenceFolder, "write", write_two),
        pytest.raises(UserError, match="no space left on the disk") as refused,
    ):
        run(folder, "run", training=ENOUGH)
    assert "\n" not in str(refused.value)
    assert only_entry(folder).states() == ["whole", "whole", "missing"]
    said(capsys)

    with patch("prefopt.train.precompute.collate", wraps=reference_collate) as computed:
        run(folder, "again", training=ENOUGH)

    assert said(capsys) == [
        "reference: 8 records from the cache, computing log-probs of 4 records once"
    ]
    # The piece, and the sample that is looked at.
    assert [len(call.args[0]) for call in computed.call_args_list] == [4, 8]


def reference_collate(records):
    from prefopt.data.collate import collate

    return collate(records)


@pytest.mark.parametrize("kind", slow_but(["lora"], ["full", "lora"]))
def test_log_probs_that_the_reference_does_not_give_are_refused(folder, capsys, kind):
    run(folder, "first", **merged({"training": ENOUGH}, sections(folder, kind)))
    entry = only_entry(folder)
    stored = torch.frombuffer(bytearray(entry.path(0).read_bytes()[48:]), dtype=torch.float32)
    entry.write(0, (stored - 0.01).numpy())
    assert entry.states() == ["whole"]

    with pytest.raises(UserError, match=r"differ by 0\.01 nats per token .*") as refused:
        run(folder, "second", **merged({"training": ENOUGH}, sections(folder, kind)))

    line = str(refused.value)
    assert line.startswith(str(entry.folder))
    assert line.endswith(f"prefopt cache prune {entry.folder.name} --cache-dir {folder / 'cache'}")
    assert "\n" not in line


def test_a_reference_that_overflows_is_named_before_anything_is_kept(folder):
    with (
        patch("prefopt.train.precompute.Scorer.logps_of", side_effect=_one_infinite),
        pytest.raises(
            UserError, match=r"^pairs\.jsonl:\d+: the reference gives a log-prob that is"
        ),
    ):
        run(folder, "run", training=ENOUGH)

    assert only_entry(folder).states() == ["missing"]


def _one_infinite(records):
    logps = torch.zeros(int(records.all_response_lengths.sum()))
    logps[-1] = -torch.inf
    return logps


def test_an_objective_that_mismatches_texts_runs_the_reference_on_those_alone(folder, capsys):
    kto = {"objective": {"name": "kto"}, "training": {"max_steps": 3}}
    with forward_passes() as live:
        expected = run(folder, "live", **merged(kto, OFF))
    run(folder, "first", training=ENOUGH)
    said(capsys)

    with forward_passes() as cached:
        trainer = run(folder, "cached", **kto)

    assert said(capsys) == [FROM_CACHE]
    assert isinstance(trainer.reference, CachedReference)
    assert isinstance(trainer.reference.live, FrozenCopy)
    # Three steps less, one look at a sample more.
    assert len(live) - len(cached) == 3 - 1
    assert logged(trainer, "loss") == pytest.approx(logged(expected, "loss"), rel=1e-6)


def test_whole_distributions_are_not_kept(folder, capsys):
    labels = {"data": {"sources": [_labelled(folder, "forget"), _labelled(folder, "retain")]}}
    npo = {"objective": {"name": "npo", "retain": "kl"}}

    run(folder, "run", **merged({"training": ENOUGH}, labels, npo))

    assert said(capsys) == [
        "reference: live (the objective reads whole distributions, which are not kept)"
    ]
    assert entries(folder) == []
    with pytest.raises(ValueError, match=r"reference\.cache: always has no effect: npo compares"):
        run(folder, "other", **merged({"training": ENOUGH}, labels, npo, ALWAYS))


def _labelled(folder, role):
    return {"path": str(write_pairs(folder / f"{role}.jsonl", 6, seed=len(role))), "role": role}


def test_float64_is_not_rounded(folder, capsys):
    float64 = {"model": {"dtype": "float64"}}

    run(folder, "run", training=ENOUGH, **float64)

    assert said(capsys) == ["reference: live (log-probs in float64 would be rounded)"]
    with pytest.raises(UserError, match=r"reference\.cache: always would round"):
        run(folder, "again", training=ENOUGH, **float64, **ALWAYS)
    assert not (folder / "again").exists()


def test_an_objective_without_reference_says_nothing_of_it(folder, capsys):
    run(folder, "run", objective={"name": "nll", "of": "all"}, training=ENOUGH)

    assert said(capsys) == []
    assert not (folder / "cache" / "reference").exists()


def test_lists_from_several_sources_find_their_own_log_probs(folder, capsys):
    for seed in (1, 2):
        write_lists(folder / f"lists-{seed}.jsonl", 7, num_responses=3, seed=seed)
    names = ("lists-1.jsonl", "pairs.jsonl", "lists-2.jsonl")
    common = {
        "data": {"sources": [{"path": str(folder / name)} for name in names]},
        "training": {"max_steps": 8, "tokens_per_micro_batch": 60},
    }
    live = run(folder, "live", **merged(common, OFF))

    cached = run(folder, "cached", **common)

    assert said(capsys)[-1] == "reference: computing log-probs of 26 records once"
    assert len(entries(folder)) == 3
    assert logged(cached, "loss") == pytest.approx(logged(live, "loss"), rel=1e-6)


def test_loader_processes_bring_the_log_probs_too(folder):
    common = {"training": {"max_steps": 6}}
    here = run(folder, "here", **common)

    there = run(folder, "there", **merged(common, {"training": {"dataloader_num_workers": 1}}))

    assert logged(there, "loss") == logged(here, "loss")


@pytest.mark.parametrize("kind", slow_but(["lora"], ["full", "lora"]))
def test_a_resumed_run_computes_with_the_reference_it_started_from(folder, capsys, kind):
    """The cache is gone when the run goes on from weights that have been trained."""
    common = {
        "training": {
            "max_steps": 6,
            "learning_rate": 1e-2,
            "save_strategy": "steps",
            "save_steps": 3,
        }
    }
    straight = run(folder, "run", **merged(common, sections(folder, kind)))
    expected = logged(straight, "loss")
    entry = only_entry(folder)
    for piece in entry.pieces:
        entry.path(piece).unlink()
    (folder / "run" / "checkpoint-6").rename(folder / "gone")
    said(capsys)

    resumed = run(folder, "run", resume="auto", **merged(common, sections(folder, kind)))

    assert said(capsys) == [COMPUTED]
    assert logged(resumed, "loss") == pytest.approx(expected, rel=1e-6)
    assert abs(expected[3] - expected[0]) > 1e-3


@pytest.mark.parametrize("kind", slow_but(["lora"], ["full", "lora"]))
def test_a_run_that_began_live_goes_on_live_though_the_cache_is_there_now(folder, capsys, kind):
    saved = {"training": {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}}
    straight = run(folder, "run", **merged(saved, sections(folder, kind)))
    losses = logged(straight, "loss")
    (folder / "run" / "checkpoint-2").rename(folder / "gone")
    run(folder, "filling", training=ENOUGH)
    said(capsys)

    resumed = run(folder, "run", resume="auto", **merged(saved, sections(folder, kind)))

    assert said(capsys) == ["reference: live (as the run began)"]
    assert logged(resumed, "loss") == losses
