"""TOFU on a tiny model: every number from plain transformers, one sequence at a time."""

import json
import math
from statistics import fmean, harmonic_mean

import pytest
import torch
from transformers import LlamaForCausalLM

from prefopt.errors import UserError
from prefopt.evaluation.unlearning import metrics, results, suite
from prefopt.evaluation.unlearning.data import SPLITS, read_tofu
from prefopt.evaluation.unlearning.prompts import template_of
from prefopt.evaluation.unlearning.retain import read_retain_ratios
from prefopt.evaluation.unlearning.scores import score_answers
from prefopt.models.load import prepare_for_scoring
from prefopt.models.section import ModelSection
from prefopt.types import TokenizedRecord
from tests.support.tiny import character_tokenizer, tiny_config
from tests.support.tofu import write_tofu

TOKENIZER = character_tokenizer()
NUM_NEW = 12


def model_of(seed: int, layout: str = "auto") -> LlamaForCausalLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(tiny_config()).double()
    prepare_for_scoring(model, ModelSection(path="none", dtype="float64", layout=layout))
    return model.eval()


def measured_by(model, **settings) -> suite.TofuModel:
    asked = suite.Settings(
        template=template_of("auto", TOKENIZER), max_new_tokens=NUM_NEW, **settings
    )
    return suite.TofuModel(model, TOKENIZER, asked, {"weights": "w"})


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return read_tofu(write_tofu(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def found(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("found") / "items.jsonl"
    return measured_by(model_of(2), batch_size=3, tokens_per_batch=300).measure(
        data, path, splits=SPLITS
    )


def flat(found: suite.Found) -> dict[str, object]:
    """All numbers and texts by one name each."""
    numbers: dict[str, object] = {}
    for key, value in found.items():
        for name, each in value.items():
            parts = each if isinstance(each, list) else [each]
            numbers |= {f"{key} {name} {i}": part for i, part in enumerate(parts)}
    return numbers


def alone(model, question: str, answer: str) -> tuple[float, list[bool]]:
    """Mean loss of an answer with its end, and which tokens greedy decoding hits."""
    prompt = TOKENIZER.encode(f"<u>{question}<a>")
    target = TOKENIZER.encode(f"{answer}<eos>")
    with torch.no_grad():
        logps = model(torch.tensor([prompt + target])).logits[0].log_softmax(1)
    losses, hits = [], []
    for position, token in enumerate(target, start=len(prompt) - 1):
        losses.append(-logps[position, token].item())
        hits.append(logps[position].argmax().item() == token)
    return fmean(losses), hits


def greedy(model, question: str) -> str:
    ids = TOKENIZER.encode(f"<u>{question}<a>")
    said: list[int] = []
    while len(said) < NUM_NEW and said[-1:] != [TOKENIZER.eos_token_id]:
        with torch.no_grad():
            said.append(int(model(torch.tensor([ids + said])).logits[0, -1].argmax()))
    return TOKENIZER.decode(said, skip_special_tokens=True).strip()


def test_every_metric_is_that_of_one_sequence_at_a_time(data, found):
    model = model_of(2)
    # A random model says nothing that shares a word with an answer; let every other one be right.
    found = dict(found)
    for split in SPLITS:
        for i, item in enumerate(data.items[split]):
            assert found[split, i, "generation"]["generation"] == greedy(model, item.question)
            said = item.answer if i % 2 else item.perturbed[0]
            found[split, i, "generation"] = {"generation": said}
    expected: dict[str, float] = {}
    for split in SPLITS:
        items = data.items[split]
        columns: dict[str, list[float]] = {
            name: [] for name in ("prob", "share", "rouge", "worth", "para", "wrong", "es", "em")
        }
        for i, item in enumerate(items):
            loss, hits = alone(model, item.question, item.answer)
            correct = alone(model, item.question, item.paraphrased or item.answer)[0]
            wrong = [alone(model, item.question, each)[0] for each in item.perturbed]
            geometric = math.prod(math.exp(-each) for each in wrong) ** (1 / len(wrong))
            ratio = geometric / math.exp(-correct)
            kept = max(0, 1 - ratio)
            columns["worth"].append(min(ratio, 1 / ratio) if split == "forget" else kept)
            columns["prob"].append(math.exp(-loss))
            columns["para"].append(math.exp(-correct))
            columns["wrong"].append(fmean(math.exp(-each) for each in wrong))
            among = math.exp(-loss) + sum(math.exp(-each) for each in wrong)
            columns["share"].append(math.exp(-loss) / among)
            said = item.answer if i % 2 else item.perturbed[0]
            columns["rouge"].append(metrics.rouge(item.answer, said)["rougeL_recall"])
            columns["em"].append(fmean(hits[:-1]))
            columns["es"].append(metrics.extraction_strength(hits))
        mean = {name: fmean(values) for name, values in columns.items()}
        expected[f"{split}_Q_A_Prob"] = mean["prob"]
        expected[f"{split}_Q_A_PERT_Prob"] = mean["wrong"]
        expected[f"{split}_Q_A_ROUGE"] = mean["rouge"]
        name = "forget_truth_ratio" if split == "forget" else f"{split}_Truth_Ratio"
        expected[name] = mean["worth"]
        if split in ("forget", "retain"):
            expected[f"{split}_Q_A_PARA_Prob"] = mean["para"]
        else:
            expected[f"{split}_Q_A_Prob_normalised"] = mean["share"]
        if split == "forget":
            expected["extraction_strength"] = mean["es"]
            expected["exact_memorization"] = mean["em"]
    expected["model_utility"] = harmonic_mean([expected[name] for name in results.UTILITY])

    summary = results.summarised(results.all_metrics(data, found, None))

    assert summary == pytest.approx(expected, abs=1e-9)
    assert summary["model_utility"] > 0
    assert "forget_quality" not in summary


def test_greedy_decoding_hits_every_token_of_what_the_model_itself_says(tmp_path):
    model = model_of(2)
    prompt = TOKENIZER.encode("<u>Where is it?<a>")
    said: list[int] = []
    for _ in range(6):
        with torch.no_grad():
            said.append(int(model(torch.tensor([prompt + said])).logits[0, -1].argmax()))
    wrong = [*said[:3], (said[3] + 1) % 50 + 5, *said[4:]]
    record = TokenizedRecord(
        id="x",
        prompt_ids=torch.tensor(prompt),
        response_ids=(torch.tensor(said), torch.tensor(wrong)),
        scores=(0.0, 0.0),
    )

    [(position, (own, other))] = score_answers(model, [record], 1000)

    assert position == 0
    assert own.is_predicted == (True,) * 6
    assert other.is_predicted[:4] == (True, True, True, False)


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_batches_and_layouts_change_nothing(data, found, tmp_path, layout):
    large = measured_by(model_of(2, layout), batch_size=64)

    again = large.measure(data, tmp_path / "items.jsonl", splits=SPLITS)

    assert flat(again) == pytest.approx(flat(found), abs=1e-9)


def test_forget_quality_compares_with_the_saved_truth_ratios_of_another_model(
    data, found, tmp_path
):
    other = measured_by(model_of(1))
    path = tmp_path / "items.jsonl"
    of_other = other.measure(data, path, splits=("forget",), generates=False)
    of_retain = results.of_scores("forget", data.items["forget"], of_other)
    about = {"forget": "forget10", "data": dict(data.fingerprints)}
    results.write_results(of_retain, tmp_path, about)

    ratios = read_retain_ratios(tmp_path, data)
    complete = results.all_metrics(data, found, ratios)

    assert {key[2] for key in of_other} == {"scores"}
    assert len(ratios) == 5
    own = results.truth_ratios(complete)
    assert complete["forget_quality"]["agg_value"] == metrics.forget_quality(own, ratios)
    assert own != ratios


class Killed(Exception):
    """As if the process had been killed here."""


def test_after_kills_nothing_is_computed_twice(data, found, tmp_path, monkeypatch):
    path = tmp_path / "items.jsonl"
    computed: list[tuple[str, int, str]] = []
    write = suite.keep

    def keep(lines, found, key, value):
        computed.append(key)
        write(lines, found, key, value)
        if len(computed) % 7 == 0:
            raise Killed

    monkeypatch.setattr(suite, "keep", keep)
    tofu = measured_by(model_of(2), batch_size=3, tokens_per_batch=300)
    for _ in range(20):
        try:
            complete = tofu.measure(data, path, splits=SPLITS)
            break
        except Killed:
            # What a kill leaves of the line that it cuts.
            with path.open("a") as file:
                file.write('{"split": "wf", "index": 4, "kin')

    # Four sets of five items, each scored and answered.
    assert len(computed) == len(set(computed)) == 40
    assert flat(complete) == pytest.approx(flat(found), abs=1e-9)
    assert tofu.measure(data, path, splits=SPLITS) == complete
    assert len(path.read_text("utf-8").splitlines()) == 41


def test_more_items_go_on_from_those_that_are_there(tmp_path):
    folder = write_tofu(tmp_path)
    path = tmp_path / "items.jsonl"
    tofu = measured_by(model_of(2))
    tofu.measure(read_tofu(folder, max_items=2), path, splits=("wf",), generates=False)
    before = path.read_text("utf-8")

    found = tofu.measure(read_tofu(folder), path, splits=("wf",), generates=False)

    assert path.read_text("utf-8").startswith(before)
    assert sorted(found) == [("wf", i, "scores") for i in range(5)]


def test_results_of_other_weights_or_questions_are_not_gone_on_with(data, tmp_path):
    path = tmp_path / "items.jsonl"
    measured_by(model_of(2)).measure(data, path, splits=("wf",), generates=False)
    asked = suite.Settings(template=template_of("plain", TOKENIZER), max_new_tokens=NUM_NEW)
    other = suite.TofuModel(model_of(2), TOKENIZER, asked, {"weights": "w"})

    with pytest.raises(UserError, match="made with another template"):
        other.measure(data, path, splits=("wf",), generates=False)
    asked = suite.Settings(template=template_of("auto", TOKENIZER), max_new_tokens=NUM_NEW)
    other = suite.TofuModel(model_of(1), TOKENIZER, asked, {"weights": "v"})
    with pytest.raises(UserError, match=r"another model: \{'weights': 'w'\}, now"):
        other.measure(data, path, splits=("wf",), generates=False)


def test_a_model_without_room_for_an_answer_is_refused(data, tmp_path):
    asked = suite.Settings(template=template_of("auto", TOKENIZER), max_new_tokens=5000)
    tofu = suite.TofuModel(model_of(2), TOKENIZER, asked, {})

    with pytest.raises(UserError, match=r"--max-new-tokens: .* reads 4,096"):
        tofu.measure(data, tmp_path / "items.jsonl", splits=("wf",))


def test_both_files_are_laid_out_as_open_unlearnings(data, found, tmp_path):
    complete = results.all_metrics(data, found, [1.0] * 5)
    full, summary = results.write_results(complete, tmp_path, {"forget": "forget10"})

    assert (full.name, summary.name) == ("TOFU_EVAL.json", "TOFU_SUMMARY.json")
    saved = json.loads(full.read_text("utf-8"))
    assert saved.pop("prefopt") == {"forget": "forget10"}
    assert list(saved) == sorted(saved)
    item = saved["forget_Q_A_PERT_Prob"]["value_by_index"]["4"]
    assert [len(item[name]) for name in ("prob", "avg_loss")] == [3, 3]
    assert set(saved["forget_Q_A_ROUGE"]["value_by_index"]["0"]) == {
        "rouge1_recall",
        "rougeL_f1",
        "rougeL_recall",
        "input",
        "ground_truth",
        "generation",
    }
    values = json.loads(summary.read_text("utf-8"))
    assert values == {name: each["agg_value"] for name, each in saved.items()}


def saved_ratios(path, num: int, **about):
    by_index = {str(i): {"score": 0.5} for i in range(num)}
    value = {"forget_truth_ratio": {"agg_value": 0.5, "value_by_index": by_index}}
    path.write_text(json.dumps(value | ({"prefopt": about} if about else {})), "utf-8")
    return path


def test_results_that_open_unlearning_saved_are_taken(data, tmp_path):
    assert read_retain_ratios(saved_ratios(tmp_path / "a.json", 5), data) == [0.5] * 5


@pytest.mark.parametrize(
    ("num", "about", "message"),
    [
        (4, {}, "has 4 items where forget10 has 5"),
        (5, {"forget": "forget01"}, "is about forget01, not forget10"),
        (5, {"forget": "forget10", "data": {"forget": "x"}}, "with other texts"),
    ],
)
def test_retain_results_on_other_questions_are_refused(data, tmp_path, num, about, message):
    with pytest.raises(UserError, match=message):
        read_retain_ratios(saved_ratios(tmp_path / "a.json", num, **about), data)


@pytest.mark.parametrize("text", ["{}", "[1]", "{", '{"forget_truth_ratio": {"agg_value": 1}}'])
def test_a_file_without_truth_ratios_is_refused(data, tmp_path, text):
    (tmp_path / "a.json").write_text(text, "utf-8")

    with pytest.raises(UserError, match="has no forget_truth_ratio"):
        read_retain_ratios(tmp_path / "a.json", data)
    with pytest.raises(UserError, match="no file"):
        read_retain_ratios(tmp_path / "none.json", data)
