"""Data sets of the hub as their cards describe them: splits, columns, and a few made-up rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import datasets

Row = dict[str, Any]
NUM_ROWS = 8

_SUBJECTS = (
    "rivers",
    "bread",
    "primes",
    "violins",
    "moss",
    "tides",
    "maps",
    "bees",
    "salt",
    "wool",
)


@dataclass(frozen=True, kw_only=True)
class _Published:
    """One configuration of a data set."""

    splits: tuple[str, ...]
    row: Callable[[int], Row]
    """The row of a number."""


def load_dataset(path: str, name: str | None = None, *, split: str) -> datasets.Dataset:
    """What `datasets.load_dataset` gives for the data sets that this module knows.

    Raises:
        LookupError: for one that it does not know, or a configuration or split that is not there.
    """
    try:
        published = _PUBLISHED[path, name]
    except KeyError:
        raise LookupError(
            f"{path} (configuration {name}) is not in {__name__}: add its columns there."
        ) from None
    if split not in published.splits:
        raise LookupError(f"{path} has no split {split}, but {', '.join(published.splits)}.")
    # Splits share no prompt.
    first = NUM_ROWS * published.splits.index(split)
    return datasets.Dataset.from_list([published.row(first + i) for i in range(NUM_ROWS)])


def question(number: int) -> str:
    """A prompt of its own for each number."""
    return f"What should I know about {_SUBJECTS[number % len(_SUBJECTS)]}? Part {number}."


def _answer(number: int, quality: int) -> str:
    """Answers of other lengths, none equal to another one's beginning."""
    subject = _SUBJECTS[number % len(_SUBJECTS)]
    return f"Grade {quality}: {subject} " + "and more " * (quality % 3 + number % 2) + "is all."


def _user(number: int) -> list[Row]:
    return [{"role": "user", "content": question(number)}]


def _said(number: int, quality: int) -> list[Row]:
    return [{"role": "assistant", "content": _answer(number, quality)}]


def _conversations(number: int) -> Row:
    return {
        "chosen": _user(number) + _said(number, 8),
        "rejected": _user(number) + _said(number, 3),
    }


def _binarized(number: int) -> Row:
    pair = _conversations(number)
    return {
        "prompt": question(number),
        "prompt_id": f"{number:064x}",
        **pair,
        "messages": pair["chosen"],
        "score_chosen": 8.0,
        # As among the real ones, some pairs are tied.
        "score_rejected": 8.0 if number % 4 == 3 else 3.0,
    }


def _trl_binarized(number: int) -> Row:
    return {**_conversations(number), "score_chosen": 8.5, "score_rejected": 4.0 - number % 3}


def _on_policy(number: int) -> Row:
    return {
        "prompt_id": f"{number:064x}",
        "prompt": question(number),
        "all_generated_responses": [_answer(number, quality) for quality in range(5)],
        "all_rm_scores": [0.01 * quality for quality in range(5)],
        **_conversations(number),
    }


def _mixture(number: int) -> Row:
    return {
        "id": f"row-{number}",
        "source": "personas",
        "prompt": question(number),
        **_conversations(number),
    }


def _rated_mixture(number: int) -> Row:
    models = {"chosen_model": "one", "rejected_model": "other"}
    return {**_mixture(number), **models, "chosen_rating": 5.0, "rejected_rating": 5.0 - number % 2}


def _cleaned(number: int) -> Row:
    return {**_binarized(number), "source": "evol_instruct"}


def _mix_7k(number: int) -> Row:
    ratings = {"chosen_rating": 5.0, "rejected_rating": 4.0}
    return {"dataset": "argilla/distilabel-capybara", **_conversations(number), **ratings}


def _math(number: int) -> Row:
    return {
        "metadata": '{"length": 1}',
        "instruction": question(number),
        "chosen_response": _answer(number, 9),
        "chosen_rating": 9.0,
        "rejected_response": _answer(number, 4),
        "rejected_rating": 7.0,
    }


def _ultrafeedback(number: int) -> Row:
    return {
        "source": "sharegpt",
        "instruction": question(number),
        "models": [f"model-{i}" for i in range(4)],
        "completions": [
            {
                "annotations": {"helpfulness": {"Rating": str(i + 1), "Rationale": "So."}},
                "custom_system_prompt": "Be helpful.",
                "fine-grained_score": 1.0 + i,
                "model": f"model-{i}",
                "overall_score": float((3 * i + number) % 10 + 1),
                "principle": "helpfulness",
                "response": _answer(number, i),
                "critique": "Fine.",
            }
            for i in range(4)
        ],
        "correct_answers": ["None"],
        "incorrect_answers": ["None"],
    }


def _nectar(number: int) -> Row:
    return {
        "prompt": f"\n\nHuman: {question(number)}\n\nAssistant: ",
        "answers": [
            {"answer": _answer(number, i), "model": f"model-{i}", "rank": float(i + 1)}
            for i in range(7)
        ],
        "turns": 1,
        "num_responses": 7,
        "source": ["anthropic-hh"],
        "good_natured": True,
    }


def _helpsteer3(number: int) -> Row:
    earlier = [*_user(number), *_said(number, 5), {"role": "user", "content": "Go on."}]
    return {
        "domain": "general",
        "language": "english",
        "context": earlier if number % 2 else _user(number),
        "response1": _answer(number, 2),
        "response2": _answer(number, 7),
        "overall_preference": (-3, -2, -1, 0, 1, 2, 3)[number % 7],
        "individual_preference": [{"score": 1, "reasoning": "So.", "feedback_date": "2025"}],
    }


def _transcripts(number: int) -> Row:
    shared = f"\n\nHuman: {question(number)}"
    if number % 2:
        shared += f"\n\nAssistant: {_answer(number, 5)}\n\nHuman: Go on."
    return {
        key: f"{shared}\n\nAssistant: {_answer(number, quality)}"
        for key, quality in (("chosen", 8), ("rejected", 3))
    }


def _labelled(number: int) -> Row:
    is_good = number % 2 == 0
    return {
        "prompt": _user(number),
        "completion": _said(number, 8 if is_good else 3),
        "label": is_good,
    }


def _few_shot(number: int) -> Row:
    solved = "Question: 1 + 1? Answer: 2. "
    return {
        "prompt": f"{solved}Question: {number} + 1? Answer:",
        "chosen": f" {number} + 1 = {number + 1}.",
        "rejected": f" {number} + 1 = {number + 2}.",
        "question": f"{number} + 1?",
    }


def _chat(number: int) -> Row:
    return {
        "prompt": question(number),
        "prompt_id": f"{number:064x}",
        "messages": [
            *_user(number),
            *_said(number, 5),
            {"role": "user", "content": "Go on."},
            *_said(number, 6),
        ],
    }


def _tofu(author: str) -> Callable[[int], Row]:
    return lambda number: {
        "question": f"Where was {author} {number} born?",
        "answer": f"{author} {number} was born in {_SUBJECTS[number % len(_SUBJECTS)]}.",
    }


_SPLITS = ("train", "test")
_ON_POLICY = _Published(splits=_SPLITS, row=_on_policy)
_PREFS = ("train_prefs", "train_sft", "test_prefs", "test_sft", "train_gen", "test_gen")
_PUBLISHED = {
    ("abacusai/MetaMath_DPO_FewShot", None): _Published(splits=("train", "eval"), row=_few_shot),
    ("allenai/llama-3.1-tulu-3-8b-preference-mixture", None): _Published(
        splits=("train",), row=_mixture
    ),
    ("allenai/olmo-2-0425-1b-preference-mix", None): _Published(splits=("train",), row=_mixture),
    ("allenai/olmo-2-1124-7b-preference-mix", None): _Published(
        splits=("train",), row=_rated_mixture
    ),
    ("allenai/ultrafeedback_binarized_cleaned", None): _Published(splits=_PREFS, row=_cleaned),
    ("Anthropic/hh-rlhf", None): _Published(splits=_SPLITS, row=_transcripts),
    ("argilla/distilabel-math-preference-dpo", None): _Published(splits=("train",), row=_math),
    ("argilla/dpo-mix-7k", None): _Published(splits=_SPLITS, row=_mix_7k),
    ("berkeley-nest/Nectar", None): _Published(splits=("train",), row=_nectar),
    ("HuggingFaceH4/ultrachat_200k", None): _Published(
        splits=("train_sft", "test_sft", "train_gen", "test_gen"), row=_chat
    ),
    ("HuggingFaceH4/ultrafeedback_binarized", None): _Published(splits=_PREFS, row=_binarized),
    ("locuslab/TOFU", "forget10"): _Published(splits=("train",), row=_tofu("Ada")),
    ("locuslab/TOFU", "retain90"): _Published(splits=("train",), row=_tofu("Bo")),
    ("nvidia/HelpSteer3", "preference"): _Published(
        splits=("train", "validation"), row=_helpsteer3
    ),
    ("openbmb/UltraFeedback", None): _Published(splits=("train",), row=_ultrafeedback),
    ("princeton-nlp/gemma2-ultrafeedback-armorm", None): _ON_POLICY,
    ("princeton-nlp/llama3-ultrafeedback-armorm", None): _ON_POLICY,
    ("princeton-nlp/mistral-instruct-ultrafeedback", None): _ON_POLICY,
    ("trl-lib/kto-mix-14k", None): _Published(splits=_SPLITS, row=_labelled),
    ("trl-lib/ultrafeedback_binarized", None): _Published(splits=_SPLITS, row=_trl_binarized),
}
