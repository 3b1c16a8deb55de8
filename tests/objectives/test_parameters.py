"""What each parameter is where a recipe does not say, and how far it may go.

Papers and documentation name these numbers, and whoever measured with them counts on them.
"""

from typing import Any

import pytest

from prefopt.errors import UserError
from prefopt.objectives import build, registered

DEFAULTS: dict[str, dict[str, Any]] = {
    "apo_down": {"beta": 0.1},
    "apo_zero": {"beta": 0.1},
    "asft": {"beta": 1.0, "odds_weight": 1.0, "nll_weight": 1.0},
    "bco": {"beta": 0.01},
    "bcpg_nsa": {"tau": 0.001, "beta": 0.5},
    "bmc": {"beta": 0.1, "delta": 2.0, "reference_weight": "policy"},
    "cal_dpo": {"beta": 0.0003},
    "clha": {"nll_weight": 0.05, "margin": 3.0, "score_gap": 3.0},
    "cpo": {"beta": 0.1, "nll_weight": 1.0},
    "cringe": {"alpha": 1.0, "k": 1},
    "d2o": {"beta": 0.1, "alpha": 0.1},
    "dpo": {"beta": 0.1, "label_smoothing": 0.0, "length_normalized": False},
    "dpop": {"beta": 0.1, "penalty": 50.0},
    "dr_dpo": {"beta": 0.1, "beta_prime": 1.0, "coupling": "step"},
    "exo": {"beta": 0.1, "label_smoothing": 0.001},
    "grad_ascent": {"reduction": "token_mean"},
    "grad_diff": {"retain_weight": 1.0, "reduction": "token_mean"},
    "hinge": {"beta": 0.05},
    "infonca": {"beta": 0.01},
    "ipo": {"tau": 0.1, "length_normalized": True},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "lipo": {"beta": 0.05, "ranking": "lambda"},
    "mmpo": {"beta": 0.01, "gamma": 2.2},
    "nca": {"beta": 0.01, "alpha": None},
    "nll": {"of": "preferred", "reduction": "sequence_mean"},
    "npo": {"beta": 0.1, "retain": "nll", "retain_weight": 1.0},
    "orpo": {"beta": 1.0, "odds_weight": 0.1, "nll_weight": 1.0},
    "pair_regression": {"scale": 1.0, "target": "scores", "clip": None},
    "pairwise_cringe": {
        **{"alpha": 1.0, "k": 1, "margin": 0.0, "temperature": 10.0},
        **{"detach_gate": True, "length_normalized": False},
        **{"ce_reduction": "sequence_mean", "cringe_reduction": "sequence_mean"},
    },
    "ranking_gamma": {"beta": 0.1, "gamma": 1.0},
    "robust_dpo": {"beta": 0.1, "label_smoothing": 0.1},
    "simnpo": {"beta": 4.5, "gamma": 0.0, "retain": "nll", "retain_weight": 1.0},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "slic": {"margin": 1.0, "nll_weight": 0.1},
    "sppo": {"beta": 0.001, "win_prob": "hard"},
}
# Parameters without a default, and what else a section must say.
NEEDED: dict[str, dict[str, Any]] = {"aft": {"beta": 1.0}, "infonca": {"alpha": 1.0}}

# Of numbers that are not simply above 0: some at the ends that are taken, then some just beyond,
# which are not.
HALF = 0.4999999
RANGES: dict[tuple[str, str], tuple[list[float], list[float]]] = {
    ("bcpg_nsa", "beta"): ([-1, 1], [-1.001, 1.001]),
    ("clha", "score_gap"): ([0], [-0.001]),
    ("cringe", "k"): ([1], [0]),
    ("dpo", "label_smoothing"): ([0, HALF], [-0.001, 0.5]),
    ("exo", "label_smoothing"): ([1e-9, HALF], [0.5]),
    ("pairwise_cringe", "k"): ([1], [0]),
    ("pairwise_cringe", "margin"): ([-5, 5], []),
    ("ranking_gamma", "gamma"): ([0, 2], [-0.001, 2.001]),
    ("robust_dpo", "label_smoothing"): ([0, HALF], [-0.001, 0.5]),
    ("simnpo", "gamma"): ([0], [-0.001]),
    ("simpo", "gamma"): ([0], [-0.001]),
}


def numbers() -> list[tuple[str, str]]:
    """Every parameter that is a number."""
    known = {name: DEFAULTS.get(name, {}) | NEEDED.get(name, {}) for name in registered()}
    return [
        (name, key)
        for name, values in known.items()
        for key, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    ]


@pytest.mark.parametrize("name", sorted(set(registered()) - {"weighted_sum"}))
def test_what_a_recipe_leaves_out_is_the_documented_number(name: str):
    needed = NEEDED.get(name, {})
    objective = build({"name": name, **needed})

    assert objective.model_dump() == {"name": name, **DEFAULTS.get(name, {}), **needed}


@pytest.mark.parametrize(("name", "key"), numbers())
def test_a_parameter_goes_exactly_as_far_as_it_has_a_meaning(name: str, key: str):
    taken, refused = RANGES.get((name, key), ([1e-9, 1e3], [0, -1e-9]))
    section = {"name": name, **NEEDED.get(name, {})}

    for value in taken:
        assert getattr(build({**section, key: value}), key) == value
    for value in refused:
        with pytest.raises(UserError, match=key):
            build({**section, key: value})


@pytest.mark.parametrize(
    ("section", "traits"),
    [
        ({"name": "nca"}, {"needs": "responses"}),
        ({"name": "nca", "alpha": 0.5}, {"needs": "graded"}),
        ({"name": "dr_dpo"}, {"couples_groups": True, "couples_micro_batch": False}),
        (
            {"name": "dr_dpo", "coupling": "micro_batch"},
            {"couples_groups": False, "couples_micro_batch": True},
        ),
        ({"name": "bmc"}, {"needs_tokens": True, "needs_diff": True}),
    ],
)
def test_what_an_objective_asks_of_data_and_step(section: dict[str, Any], traits: dict[str, Any]):
    objective = build(section)

    assert {name: getattr(objective, name) for name in traits} == traits
