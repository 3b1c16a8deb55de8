"""Truth ratios of a model that never saw the forget set, as it or open-unlearning saved them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefopt.errors import UserError
from prefopt.evaluation.unlearning.data import Tofu
from prefopt.evaluation.unlearning.results import EVAL_FILE, OWN, truth_ratios


def read_retain_ratios(path: Path, data: Tofu) -> list[float]:
    """Truth ratios of the forget set in a TOFU_EVAL.json, of as many items as `data` has.

    Args:
        path: the file, or the folder that holds it.
        data: what the other model was asked.

    Raises:
        UserError: if it holds none, or those of another forget split.
    """
    file = path / EVAL_FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--retain-results: no file {file}. Give a {EVAL_FILE}.")
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        ratios = [float(each) for each in truth_ratios(results)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"--retain-results: {file} has no forget_truth_ratio with a score for each item. "
            f"Give a {EVAL_FILE} of prefopt evaluate tofu or open-unlearning."
        ) from None
    _check(file, results.get(OWN) or {}, len(ratios), data)
    return ratios


def _check(file: Path, about: Mapping[str, Any], num: int, data: Tofu) -> None:
    """Refuse the truth ratios of other questions."""
    given = about.get("forget")
    way_out = f"Give results on {data.forget}, with the same --max-items."
    if given is not None and given != data.forget:
        raise UserError(f"--retain-results: {file} is about {given}, not {data.forget}. {way_out}")
    fingerprint = about.get("data", {}).get("forget")
    if fingerprint is not None and fingerprint != data.fingerprints["forget"]:
        raise UserError(
            f"--retain-results: {file} was measured on a {data.forget} with other texts. {way_out}"
        )
    wanted = len(data.items["forget"])
    if num != wanted:
        raise UserError(
            f"--retain-results: {file} has {num} items where {data.forget} has {wanted} here. "
            f"{way_out}"
        )
