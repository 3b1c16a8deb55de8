"""The numbers of TOFU, of losses and texts.

Losses are means over an answer's tokens in nats, so exp(-loss) is the geometric mean of its tokens'
probabilities. Ratios stay logarithms until the end: a model that has collapsed gives all answers
probabilities that underflow, and has a truth ratio nonetheless. open-unlearning adds 1e-10 to each
denominator instead, which counts for answers below about 1e-8 a token and takes their truth ratio
to 0, as if the model knew them.

Source: open-unlearning, src/evals/metrics; Maini et al., TOFU: A Task of Fictitious Unlearning for
LLMs, 2024, arxiv.org/abs/2401.06121.
"""

import math
import warnings
from collections.abc import Sequence
from statistics import fmean, harmonic_mean

import numpy as np
from rouge_score import rouge_scorer
from scipy import stats

_MOST = 700.0
"""exp of more is no float."""
_SCORER = rouge_scorer.RougeScorer(["rouge1", "rougeL"], use_stemmer=True)


def probability(loss: float) -> float:
    """P(answer | question) ^ (1 / number of tokens)."""
    return math.exp(-loss)


def normalised_probability(loss: float, wrong_losses: Sequence[float]) -> float:
    """Probability of the answer among itself and the wrong ones."""
    return 1 / sum(math.exp(min(loss - each, _MOST)) for each in (loss, *wrong_losses))


def log_truth_ratio(correct_loss: float, wrong_losses: Sequence[float]) -> float:
    """Log of the geometric mean of wrong answers' probabilities over that of the correct one.

    The paper writes an arithmetic mean; its code and open-unlearning take the geometric one.
    """
    return correct_loss - fmean(wrong_losses)


def truth_ratio(log_ratio: float) -> float:
    """The ratio itself; 0 where the wrong answers are impossible, 1 where nothing is known."""
    return math.exp(min(log_ratio, _MOST))


def forgotten(log_ratio: float) -> float:
    """min(ratio, 1 / ratio): 1 where true and false are equally likely."""
    return math.exp(-abs(log_ratio))


def kept(log_ratio: float) -> float:
    """max(0, 1 - ratio): 1 where wrong answers are impossible."""
    return max(0.0, -math.expm1(min(log_ratio, 0.0)))


def exact_memorisation(is_predicted: Sequence[bool]) -> float:
    """Share of the answer's tokens, its end left out, that greedy teacher-forced decoding hits."""
    return fmean(map(float, is_predicted[:-1]))


def extraction_strength(is_predicted: Sequence[bool]) -> float:
    """1 - k / n: the rest of the answer follows greedily once its first k of n tokens are given.

    The end of the answer is left out. k is at most n - 1, as in open-unlearning: a model that hits
    not even the last token still has 1 / n, so short answers never get near 0.
    """
    hits = is_predicted[:-1]
    missed = [position for position, hit in enumerate(hits) if not hit]
    smallest = missed[-1] + 1 if missed else 0
    return 1 - min(smallest, len(hits) - 1) / len(hits)


def rouge(answer: str, generated: str) -> dict[str, float]:
    """Recall of words, and recall and F1 of the longest common subsequence, words stemmed."""
    found = _SCORER.score(answer, generated)
    return {
        "rouge1_recall": float(found["rouge1"].recall),
        "rougeL_f1": float(found["rougeL"].fmeasure),
        "rougeL_recall": float(found["rougeL"].recall),
    }


def forget_quality(ratios: Sequence[float], retain_ratios: Sequence[float]) -> float:
    """P-value of the Kolmogorov-Smirnov test that both models' truth ratios are alike.

    High means not told from a model that never saw the forget set; it falls with the number of
    items, so values of different forget splits do not compare.
    """
    with warnings.catch_warnings():
        # Where nothing differs, rounding takes scipy's exact p above 1; it says so and gives 1.
        warnings.filterwarnings("ignore", "ks_2samp: Exact calculation", RuntimeWarning)
        return float(stats.ks_2samp(np.asarray(ratios), np.asarray(retain_ratios)).pvalue)


def model_utility(values: Sequence[float]) -> float:
    """Harmonic mean, 0 if any is 0."""
    return float(harmonic_mean(values))
