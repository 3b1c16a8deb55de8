"""A report such as a comparison of nine methods with three seeds and two judges gives."""

import itertools
import math
from typing import Any

import numpy as np

from prefopt.evaluation.numbers import SCHEMA, Estimate, Report

NUM_PROMPTS, SEEDS = 200, [0, 1, 2]
# Quality on the logit scale, length ratio, KL, ranking accuracy.
CANDIDATES = {
    "dpo": (0.62, 1.42, 9.1, 0.71),
    "ipo": (0.55, 1.18, 6.2, 0.68),
    "simpo": (0.71, 1.61, 14.8, 0.74),
    "orpo": (0.24, 1.05, 2.9, 0.69),
    "kto": (0.31, 1.22, 4.4, 0.64),
    "cpo": (0.09, 1.31, 7.7, 0.76),
    "dpop": (0.58, 1.12, 5.0, 0.70),
    "slic_hf": (-0.35, 0.83, 5.6, 0.58),
}
METHODS = {"sft": (0.0, 1.0, 0.0, 0.55), **CANDIDATES}
SANITY = {"constant answer": (-1.8, 0.35), "longest answer": (0.15, 1.9)}
ALL = {**{name: each[:2] for name, each in METHODS.items()}, **SANITY}


def sample_report() -> Report:
    """The same each time."""
    random = np.random.default_rng(0)
    judges = [_judge(random, "gold", 0.0, 0.0), _judge(random, "biased", 0.9, 0.55)]
    return {
        "schema": SCHEMA,
        "title": "Eight objectives on the embedded task",
        "protocol": "own prompts with judges gold and biased",
        "made_at": "2026-11-26T01:20:00+00:00",
        "command": "prefopt compare --demo --output /runs/compare",
        "versions": {"prefopt": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
        "num_prompts": NUM_PROMPTS,
        "num_seeds": len(SEEDS),
        "baseline": "sft",
        "quality_name": "gold score",
        "verdict": [],
        "notes": [
            "Entanglement was measured on seed 0 only: 64 groups take four minutes per policy.",
            "The biased judge is the gold judge with a slot bias, a length bias and noise.",
        ],
        "methods": [_method(random, name) for name in ALL],
        "judges": judges,
        **_policies(random),
        "saved": {
            "num_runs": 24,
            "num_reference_groups": 1200,
            "num_reference_groups_alone": 28800,
            "sentence": "24 runs shared one cache of reference log-probs: 1,200 groups were "
            "computed instead of 28,800.",
        },
        "examples": [_example(i) for i in range(4)],
    }


def _policies(random: np.random.Generator) -> dict[str, Any]:
    frontier, sweep = [], []
    for name, (quality, _, kl, _) in CANDIDATES.items():
        for beta, factor in ((0.05, 1.7), (0.1, 1.0), (0.3, 0.45)):
            at = {"beta": beta, "learning_rate": 5e-4}
            score = _score(quality, factor)
            sweep.append(
                {
                    "method": name,
                    "settings": at,
                    "validation": _around(random, score, 0.018, 120, "prompts"),
                    "is_selected": factor == 1.0,
                }
            )
            frontier += [
                {
                    "method": name,
                    "seed": seed,
                    "settings": at,
                    "is_selected": factor == 1.0,
                    "kl": _around(random, kl * factor, 0.05 * kl * factor, 800, "samples"),
                    "quality": _around(random, score, 0.012, NUM_PROMPTS, "prompts"),
                }
                for seed in SEEDS
            ]
    return {
        "frontier": frontier,
        "matched_kl_at": 5.0,
        "matched_kl": [
            {
                "method": name,
                "quality": None
                if name == "orpo"
                else _around(random, _score(each[0], 1.0), 0.014, 3, "seeds"),
                "why_not": "its KL ends at 4.93 nats" if name == "orpo" else None,
            }
            for name, each in CANDIDATES.items()
        ],
        "sweep": sweep,
        "ranking": {
            name: {
                "ranking_accuracy": _around(random, each[3], 0.02, 400, "pairs"),
                "ranking_accuracy/per_token": _around(random, each[3] + 0.03, 0.02, 400, "pairs"),
                "implicit_reward_accuracy": _around(random, each[3] + 0.1, 0.018, 400, "pairs"),
                "flips/gained": _around(random, 0.18, 0.02, 400, "pairs"),
                "flips/lost": _around(random, 0.04, 0.01, 400, "pairs"),
            }
            for name, each in METHODS.items()
        },
        "displacement": [
            {
                "method": name,
                "chosen": _around(random, 2.0 - 0.9 * each[2], 0.8, 400, "pairs"),
                "rejected": _around(random, -1.0 - 1.6 * each[2], 0.9, 400, "pairs"),
                "share_both_fall": _around(random, 0.08 * each[2] / 1.5, 0.02, 400, "pairs"),
            }
            for name, each in CANDIDATES.items()
        ],
        "entanglement": {
            name: {
                "cosine/mean": _around(random, 0.62, 0.02, 64, "groups"),
                "share_chosen_condition_broken": _around(random, 0.31, 0.05, 64, "groups"),
                "share_rejected_condition_broken": _around(random, 0.07, 0.03, 64, "groups"),
            }
            for name in CANDIDATES
        },
    }


def _score(quality: float, factor: float) -> float:
    return 0.55 + 0.2 * math.tanh(quality) * (1.15 - (math.log(factor) - 0.1) ** 2 / 2)


def _judge(random: np.random.Generator, name: str, bias: float, noise: float) -> Any:
    logits = {
        method: (1 - noise) * quality + bias * math.tanh(ratio - 1)
        for method, (quality, ratio) in ALL.items()
    }
    pairs = [(a, b, _win(random, logits[a] - logits[b])) for a, b in itertools.combinations(ALL, 2)]
    against = [(method, _win(random, logits[method])) for method in ALL if method != "sft"]
    ranked = sorted(METHODS, key=lambda method: -METHODS[method][0])
    return {
        "name": name,
        "identity": {
            "backend": "rule",
            "entry_point": f"prefopt.demo.judge:{name}",
            "noise": noise,
        },
        "note": "Knows the gold reward, so it says nothing about real models."
        if not bias
        else None,
        "coverage": {
            "num_asked": 22000,
            "num_ok": 22000 if not bias else 21730,
            "share": 1.0 if not bias else 0.98773,
            "by_status": {"ok": 22000 if not bias else 21730, "refusal": 0 if not bias else 270},
        },
        "order": {
            "first_slot_rate": _around(random, 0.5 + bias / 8, 0.004, 22000, "questions"),
            "consistent_share": _around(random, 0.97 - bias / 3, 0.01, NUM_PROMPTS, "prompts"),
            "label_mass": None if not bias else _around(random, 0.97, 0.01, NUM_PROMPTS, "prompts"),
        },
        "win_matrix": [
            {"a": a, "b": b, "win": win, "p": _p(win), "p_holm": min(1.0, 55 * _p(win))}
            for a, b, win in pairs
        ],
        "against_baseline": [
            {
                "method": method,
                "win": win,
                "length_controlled": _win(random, (1 - noise) * ALL[method][0]),
                "p": _p(win),
                "p_holm": min(1.0, 8 * _p(win)),
                "outcome": _outcome(win, min(1.0, 8 * _p(win))),
            }
            for method, win in against
        ],
        "strengths": [
            {
                "method": method,
                "logit": {
                    **_around(
                        random, (1 - noise) * METHODS[method][0], 0.08, NUM_PROMPTS, "prompts"
                    ),
                    **({"value": 0.0, "low": 0.0, "high": 0.0} if method == "sft" else {}),
                },
                "win_against_baseline": _win(random, (1 - noise) * METHODS[method][0]),
                "rank": rank,
                "rank_low": max(1, rank - 1),
                "rank_high": min(len(ranked), rank + 2),
            }
            for rank, method in enumerate(ranked, start=1)
        ],
        "length_effect": _around(random, bias, 0.06, NUM_PROMPTS, "prompts"),
        "slot_effect": _around(random, 0.7 * bias, 0.04, NUM_PROMPTS, "prompts"),
        "scores": None
        if bias
        else [
            {
                "method": method,
                "mean": _around(random, 5 + quality, 0.12, NUM_PROMPTS, "prompts"),
                "risk_averse": _around(random, 4.4 + quality, 0.13, NUM_PROMPTS, "prompts"),
                "by_category": {
                    "copy": _around(random, 5.4 + quality, 0.2, 80, "prompts"),
                    "order": _around(random, 4.6 + quality, 0.2, 120, "prompts"),
                },
                "by_turn": {},
            }
            for method, (quality, *_) in METHODS.items()
        ],
        "intransitive_share": _around(random, 0.02 + bias / 20, 0.003, NUM_PROMPTS, "prompts"),
        "conflict_share": None if bias else _around(random, 0.04, 0.006, NUM_PROMPTS, "prompts"),
        "detectable": {
            "standard_error": 0.018,
            "one_test": 0.0504,
            "num_tests": 8,
            "all_tests": 0.0644,
        },
    }


def _method(random: np.random.Generator, name: str) -> Any:
    _, ratio = ALL[name]
    kind = "baseline" if name == "sft" else "sanity" if name in SANITY else "candidate"
    return {
        "name": name,
        "kind": kind,
        "settings": {"beta": 0.1, "learning_rate": 5e-4} if kind == "candidate" else {},
        "seeds": SEEDS if kind == "candidate" else [],
        "length": _around(random, 640 * ratio, 22, NUM_PROMPTS, "prompts"),
        "length_ratio": None
        if kind == "baseline"
        else _around(random, ratio, 0.05, NUM_PROMPTS, "prompts"),
        "share_cut": _around(random, 0.09 if ratio > 1.5 else 0.01, 0.005, 600, "answers"),
        "share_empty": _around(random, 0.0, 0.0, 600, "answers"),
    }


def _example(i: int) -> Any:
    turns = [f"Write the words river, stone and lamp in this order, {i + 2} times."]
    if i == 1:
        turns.append("Now the other way round,\nand <b>loud</b>.")
    return {
        "prompt_id": f"{i:016x}",
        "category": ["copy", "order"][i % 2],
        "turns": turns,
        "answers": [
            {
                "method": name,
                "turns": [
                    " ".join(["river stone lamp"] * (i + 2 + (j % 3)))
                    + ("\n\n    indented & <i>marked</i> up\n" if j == 2 else "")
                    for _ in turns
                ],
                "score": None if name == "sft" else round(0.5 + 0.05 * (j - 3), 2),
            }
            for j, name in enumerate(METHODS)
        ],
    }


def _around(random: np.random.Generator, value: float, error: float, n: int, unit: str) -> Estimate:
    value = float(value + error * random.standard_normal())
    return {
        "value": value,
        "low": value - 2 * error,
        "high": value + 2 * error,
        "n": n,
        "unit": unit,
    }


def _win(random: np.random.Generator, logit: float) -> Estimate:
    return _around(random, 1 / (1 + math.exp(-logit)), 0.018, NUM_PROMPTS, "prompts")


def _p(win: Estimate) -> float:
    return math.erfc(abs(win["value"] - 0.5) / 0.018 / math.sqrt(2))


def _outcome(win: Estimate, p: float) -> str:
    if p > 0.05:
        return "no difference seen"
    return "better" if win["value"] > 0.5 else "worse"
