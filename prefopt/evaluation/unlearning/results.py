"""Results in open-unlearning's layout: a metric with its value, and with one for each item."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from prefopt.evaluation.files import write_json
from prefopt.evaluation.unlearning import metrics
from prefopt.evaluation.unlearning.data import Item, Tofu
from prefopt.evaluation.unlearning.suite import Found

EVAL_FILE, SUMMARY_FILE = "TOFU_EVAL.json", "TOFU_SUMMARY.json"
OWN = "prefopt"
"""Key of what we say beside the metrics."""

Metric = dict[str, Any]
"""agg_value, and value_by_index: item's number as text -> its values."""

_TRUTH_RATIO = {"forget": "forget_truth_ratio"}
UTILITY = (
    "retain_Q_A_Prob",
    "retain_Q_A_ROUGE",
    "retain_Truth_Ratio",
    "ra_Q_A_Prob_normalised",
    "ra_Q_A_ROUGE",
    "ra_Truth_Ratio",
    "wf_Q_A_Prob_normalised",
    "wf_Q_A_ROUGE",
    "wf_Truth_Ratio",
)
"""What model utility is the harmonic mean of."""


def all_metrics(
    data: Tofu, found: Found, retain_ratios: Sequence[float] | None
) -> dict[str, Metric]:
    """Every metric of a model that was measured on all four sets.

    Args:
        data: what was asked.
        found: scores and generations of all its items.
        retain_ratios: truth ratios of the forget set under a model that never saw it.
    """
    results: dict[str, Metric] = {}
    for split in data.items:
        results |= of_scores(split, data.items[split], found)
        results[f"{split}_Q_A_ROUGE"] = _rouge(split, data.items[split], found)
    utility = [results[name]["agg_value"] for name in UTILITY]
    results["model_utility"] = {"agg_value": metrics.model_utility(utility)}
    quality = None
    if retain_ratios is not None:
        quality = metrics.forget_quality(truth_ratios(results), retain_ratios)
    results["forget_quality"] = {"agg_value": quality}
    return dict(sorted(results.items()))


def of_scores(split: str, items: Sequence[Item], found: Found) -> dict[str, Metric]:
    """What follows from log-probs of given answers alone."""
    losses = [found[split, i, "scores"]["avg_loss"] for i in range(len(items))]
    num_right = [len(item.answers) - len(item.perturbed) for item in items]
    right = [each[0] for each in losses]
    # The paraphrased answer where there is one, as it shares its words with the wrong ones.
    correct = [each[num - 1] for each, num in zip(losses, num_right, strict=True)]
    wrong = [each[num:] for each, num in zip(losses, num_right, strict=True)]
    results = {f"{split}_Q_A_Prob": _probability(right), f"{split}_Q_A_PERT_Prob": _several(wrong)}
    if items[0].paraphrased is not None:
        results[f"{split}_Q_A_PARA_Prob"] = _probability(correct)
    else:
        normalised = [
            metrics.normalised_probability(*each) for each in zip(right, wrong, strict=True)
        ]
        results[f"{split}_Q_A_Prob_normalised"] = _metric("prob", normalised, fmean(normalised))
    ratios = [metrics.log_truth_ratio(*each) for each in zip(correct, wrong, strict=True)]
    worth: Callable[[float], float] = metrics.forgotten if split == "forget" else metrics.kept
    results[_TRUTH_RATIO.get(split, f"{split}_Truth_Ratio")] = _metric(
        "score", [metrics.truth_ratio(each) for each in ratios], fmean(map(worth, ratios))
    )
    if split == "forget":
        for name in ("extraction_strength", "exact_memorization"):
            values = [found[split, i, "scores"][name] for i in range(len(items))]
            results[name] = _metric("score", values, fmean(values))
    return results


def truth_ratios(results: Mapping[str, Metric]) -> list[float]:
    """Of the forget set, in the order of its items."""
    by_index = results[_TRUTH_RATIO["forget"]]["value_by_index"]
    return [each["score"] for each in by_index.values()]


def write_results(
    results: Mapping[str, Metric], folder: Path, about: Mapping[str, Any]
) -> tuple[Path, Path]:
    """Write both files; `about` says what was measured and how."""
    full, summary = folder / EVAL_FILE, folder / SUMMARY_FILE
    write_json(full, {**results, OWN: dict(about)})
    write_json(summary, summarised(results))
    return full, summary


def summarised(results: Mapping[str, Metric]) -> dict[str, float]:
    """The value of each metric that has one."""
    values = {name: each["agg_value"] for name, each in results.items()}
    return {name: value for name, value in values.items() if value is not None}


def _metric(name: str, values: Sequence[float], mean: float) -> Metric:
    return {
        "agg_value": mean,
        "value_by_index": {str(i): {name: value} for i, value in enumerate(values)},
    }


def _probability(losses: Sequence[float]) -> Metric:
    values = [{"prob": metrics.probability(loss), "avg_loss": loss} for loss in losses]
    return {
        "agg_value": fmean(each["prob"] for each in values),
        "value_by_index": {str(i): each for i, each in enumerate(values)},
    }


def _several(losses: Sequence[Sequence[float]]) -> Metric:
    values = [
        {"prob": [metrics.probability(loss) for loss in some], "avg_loss": list(some)}
        for some in losses
    ]
    return {
        "agg_value": fmean(fmean(each["prob"]) for each in values),
        "value_by_index": {str(i): each for i, each in enumerate(values)},
    }


def _rouge(split: str, items: Sequence[Item], found: Found) -> Metric:
    values = []
    for i, item in enumerate(items):
        said = found[split, i, "generation"]["generation"]
        texts = {"input": item.question, "ground_truth": item.answer, "generation": said}
        values.append({**metrics.rouge(item.answer, said), **texts})
    return {
        "agg_value": fmean(each["rougeL_recall"] for each in values),
        "value_by_index": {str(i): each for i, each in enumerate(values)},
    }
