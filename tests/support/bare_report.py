"""Reports with nothing but what a test puts into them."""

from typing import Any, cast

from prefopt.evaluation.numbers import SCHEMA, Estimate, JudgeNumbers, Report


def estimate(
    value: float, low: float | None, high: float | None, n: int = 100, unit: str = "prompts"
) -> Estimate:
    return {"value": value, "low": low, "high": high, "n": n, "unit": unit}


def method(name: str, kind: str = "candidate", **changes: Any) -> dict[str, Any]:
    return {
        "name": name,
        "kind": kind,
        "settings": {},
        "seeds": [0, 1, 2],
        "length": estimate(500, 480, 520),
        "length_ratio": None,
        "share_cut": estimate(0.0, 0.0, 0.01),
        "share_empty": estimate(0.0, 0.0, 0.01),
    } | changes


def against(name: str, win: Estimate, p_holm: float, outcome: str, **changes: Any) -> Any:
    return {
        "method": name,
        "win": win,
        "length_controlled": None,
        "p": p_holm / 2,
        "p_holm": p_holm,
        "outcome": outcome,
    } | changes


def pair(a: str, b: str, win: Estimate, p_holm: float) -> Any:
    return {"a": a, "b": b, "win": win, "p": p_holm / 3, "p_holm": p_holm}


def judge(name: str = "gold", **changes: Any) -> JudgeNumbers:
    return cast(
        JudgeNumbers,
        {
            "name": name,
            "identity": {"backend": "rule"},
            "note": None,
            "coverage": {"num_asked": 400, "num_ok": 400, "share": 1.0, "by_status": {"ok": 400}},
            "order": None,
            "win_matrix": [],
            "against_baseline": [],
            "strengths": None,
            "length_effect": None,
            "slot_effect": None,
            "scores": None,
            "intransitive_share": None,
            "conflict_share": None,
            "detectable": None,
        }
        | changes,
    )


def report(methods: list[dict[str, Any]] | None = None, **changes: Any) -> Report:
    return cast(
        Report,
        {
            "schema": SCHEMA,
            "title": "A comparison",
            "protocol": "own prompts with judge gold",
            "made_at": "2026-11-26T01:20:00+00:00",
            "command": "prefopt compare a.yaml b.yaml",
            "versions": {"prefopt": "0.1.0"},
            "num_prompts": 100,
            "num_seeds": 3,
            "baseline": "sft",
            "quality_name": "gold score",
            "verdict": [],
            "notes": [],
            "methods": methods or [],
            "judges": [],
            "frontier": [],
            "matched_kl_at": None,
            "matched_kl": [],
            "sweep": [],
            "ranking": {},
            "displacement": [],
            "entanglement": {},
            "saved": None,
            "examples": [],
        }
        | changes,
    )
