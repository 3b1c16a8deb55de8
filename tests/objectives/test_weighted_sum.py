"""weighted_sum: its terms keep their own weights, denominators and traits."""

import math
from importlib import import_module

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.objectives.weighted_sum import WeightedSum
from prefopt.train.metrics import StepSums, group_metrics, means_of
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import (
    inputs_of,
    losses_and_gradient,
    one_by_one,
    step_loss,
)

IRPO = {
    "name": "weighted_sum",
    "terms": [{"name": "dpo", "beta": 0.5}, {"name": "nll", "of": "best", "weight": 0.2}],
}
CASES = [
    IRPO,
    {
        "name": "weighted_sum",
        "terms": [{"name": "dpo"}, {"name": "ipo", "weight": 3, "length_normalized": False}],
    },
    {"name": "weighted_sum", "terms": [{"name": "nll", "reduction": "token_mean", "weight": 0.5}]},
    {
        "name": "weighted_sum",
        "terms": [
            {"name": "weighted_sum", "terms": [{"name": "dpo"}, {"name": "nll"}], "weight": 2},
            {"name": "nll", "of": "all", "reduction": "token_mean"},
        ],
    },
]


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The weighted sum of what the terms' own tests say."""
    assert isinstance(objective, WeightedSum)
    total = torch.zeros_like(inputs.policy_logps[:, 0])
    for section, term in zip(objective.terms, objective.objectives, strict=True):
        module = import_module(f"tests.objectives.test_{term.name}")
        total = total + section.get("weight", 1) * module.value_at_reference(term, inputs)
    return total.detach()


def test_a_group_costs_the_weighted_sum_of_its_terms():
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]], num_tokens=[[4, 10]])

    losses, gradient = losses_and_gradient(build(IRPO), inputs)

    dpo, dpo_gradient = losses_and_gradient(build({"name": "dpo", "beta": 0.5}), inputs)
    # NLL of the best response: 10 / 4 = 2.5, slope -1 / 4; its weight is 0.2
    assert losses.item() == pytest.approx(dpo.item() + 0.2 * 2.5, rel=1e-12)
    expected = [dpo_gradient[0, 0].item() - 0.2 / 4, dpo_gradient[0, 1].item()]
    assert gradient.tolist()[0] == pytest.approx(expected, rel=1e-12)


def test_a_group_that_one_term_ignores_does_not_dilute_that_term():
    inputs = inputs_of(
        [[-10.0, -30.0], [-6.0, -6.0]], [[-12.0, -29.0], [-6.0, -6.0]], [[1, 0], [1, 1]]
    )

    loss = step_loss(build(IRPO), [inputs])
    split = step_loss(build(IRPO), one_by_one(inputs))

    # DPO counts the first group alone; NLL of the best counts both: 10, and (6 + 6) / 2 = 6.
    pair = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])
    dpo = build({"name": "dpo", "beta": 0.5})(pair).losses.item()
    assert loss.item() == pytest.approx(dpo / 1 + 0.2 * (10 + 6) / 2, rel=1e-12)
    assert split.item() == pytest.approx(loss.item(), rel=1e-12)


def test_a_term_logs_its_loss_over_the_groups_that_it_counts():
    # One pair, policy = reference: DPO is log 2. One tie, which says nothing to DPO.
    inputs = inputs_of(
        [[-10.0, -30.0], [-6.0, -6.0]], [[-10.0, -30.0], [-6.0, -6.0]], [[1, 0], [1, 1]]
    )
    output = build(IRPO)(inputs)

    sums = StepSums()
    sums.add_groups(group_metrics(inputs, output))
    means = means_of(sums.read(sums.pack().tolist()))

    assert output.counted.tolist() == [True, True]
    assert output.metrics["dpo/loss"].isnan().tolist() == [False, True]
    assert means["dpo/loss"] == pytest.approx(math.log(2), rel=1e-12)
    assert means["nll/loss"] == pytest.approx((10 + 6) / 2, rel=1e-12)


def test_metrics_of_a_sum_inside_a_sum_keep_their_groups():
    inputs = inputs_of(
        [[-10.0, -30.0], [-6.0, -6.0]], [[-10.0, -30.0], [-6.0, -6.0]], [[1, 0], [1, 1]]
    )

    metrics = build({"name": "weighted_sum", "terms": [IRPO]})(inputs).metrics

    assert {name: values.isnan().tolist() for name, values in metrics.items()} == {
        "weighted_sum/dpo/loss": [False, True],
        "weighted_sum/nll/loss": [False, False],
        "weighted_sum/loss": [False, False],
    }


def test_a_term_keeps_its_denominator_of_tokens():
    section = {
        "name": "weighted_sum",
        "terms": [{"name": "nll", "of": "all", "reduction": "token_mean", "weight": 3}],
    }
    inputs = inputs_of([[-10.0], [-2.0]], None, [[1], [1]], num_tokens=[[4], [2]])

    # 3 * (10 + 2) / (4 + 2)
    assert step_loss(build(section), [inputs]).item() == pytest.approx(6.0, rel=1e-12)


def test_a_group_counts_if_any_term_counts_it():
    inputs = inputs_of([[-6.0, -6.0]], [[-6.0, -6.0]], [[1, 1]])

    assert build(IRPO)(inputs).counted.tolist() == [True]
    only_pairs = {"name": "weighted_sum", "terms": [{"name": "dpo"}, {"name": "ipo"}]}
    assert build(only_pairs)(inputs).counted.tolist() == [False]


def test_rewards_are_those_of_the_first_term():
    inputs = inputs_of([[-10.0, -30.0]], [[-12.0, -29.0]], [[1, 0]])
    terms = IRPO["terms"]

    first_dpo = build(IRPO)(inputs).rewards
    first_nll = build({"name": "weighted_sum", "terms": terms[::-1]})(inputs).rewards

    assert first_dpo.tolist() == [[1.0, -0.5]]
    assert first_nll.tolist() == [[-10.0, -30.0]]


def test_it_asks_for_what_its_terms_ask_for():
    of_responses = {"name": "weighted_sum", "terms": [{"name": "nll"}]}

    assert build(IRPO).needs_reference
    assert build(IRPO).needs == "preferred_pairs"
    assert not build(of_responses).needs_reference
    assert build(of_responses).needs == "responses"


def test_terms_of_one_name_keep_metrics_of_their_own():
    section = {
        "name": "weighted_sum",
        "terms": [{"name": "nll", "of": "best"}, {"name": "nll", "of": "all"}, {"name": "dpo"}],
    }
    inputs = inputs_of([[-10.0, -30.0]], [[-10.0, -30.0]], [[1, 0]])

    metrics = build(section)(inputs).metrics

    # 10, and (10 + 30) / 2
    assert {name: metrics[name].tolist() for name in metrics if "nll" in name} == {
        "0.nll/loss": [10.0],
        "1.nll/loss": [20.0],
    }
    assert "dpo/loss" in metrics


@pytest.mark.parametrize("weight", [0, -1, True, "1", None, float("nan"), float("inf")])
def test_a_weight_is_a_finite_number_above_0(weight: object):
    section = {"name": "weighted_sum", "terms": [{"name": "dpo", "weight": weight}]}

    with pytest.raises(UserError, match=r"^objective\.terms\.0\.weight must be a .*number above 0"):
        build(section)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ([], r"^objective\.terms List should have at least 1 item"),
        (
            [{"name": "dpo"}, {"name": "nlll"}],
            r"^objective\.terms\.1\.name: no objective 'nlll'\. ",
        ),
        ([{"beta": 0.1}], r"^objective\.terms\.0\.name is missing"),
        ([{"name": "dpo", "bta": 1}], r"^objective\.terms\.0\.bta: unknown key\. .* 'beta'"),
        ([{"name": "dpo", "beta": -1}], r"^objective\.terms\.0\.beta should be greater than 0"),
        (["dpo"], r"^objective\.terms\.0 should be a valid dictionary, got 'dpo'"),
    ],
)
def test_an_error_in_a_term_names_its_place(terms: list[object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "weighted_sum", "terms": terms})


def test_a_weight_multiplies_the_coefficients_of_a_terms_own_terms():
    section = {
        "name": "weighted_sum",
        "terms": [
            {"name": "npo", "beta": 0.1, "retain_weight": 3, "weight": 2},
            {"name": "nll", "of": "all", "weight": 0.5},
        ],
    }
    # One response to forget and one to retain; policy and reference agree.
    inputs = inputs_of([[-10.0, -30.0]], [[-10.0, -30.0]], [[0, 1]], num_tokens=[[2, 5]])

    terms = build(section)(inputs).all_terms()

    coefficients = {name: term.coefficient for name, term in terms.items()}
    assert coefficients == {"0.npo.forget": 2, "0.npo.retain": 2 * 3, "1.nll.loss": 0.5}
    # Forget: -(2 / 0.1) log(1 / 2). Retain: 30 nats over 5 tokens. NLL: (10 / 2 + 30 / 5) / 2.
    expected = 2 * (20 * math.log(2) + 3 * 30 / 5) + 0.5 * (10 / 2 + 30 / 5) / 2
    assert step_loss(build(section), [inputs]).item() == pytest.approx(expected, rel=1e-12)


def test_weights_of_nested_sums_multiply():
    inner = {
        "name": "weighted_sum",
        "terms": [{"name": "npo", "retain_weight": 3, "weight": 5}],
        "weight": 2,
    }
    inputs = inputs_of([[-10.0, -30.0]], [[-10.0, -30.0]], [[0, 1]])

    terms = build({"name": "weighted_sum", "terms": [inner]})(inputs).all_terms()

    assert [term.coefficient for term in terms.values()] == [2 * 5, 2 * 5 * 3]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("terms", "expected"),
    [
        ([{"name": "cringe"}], [[True, False, False]]),
        ([{"name": "npo", "retain": "kl"}], [[False, True, False]]),
        ([{"name": "cringe"}, {"name": "npo", "retain": "kl"}], [[True, True, False]]),
        # The NLL needs no statistic, so that it asks for none of any response.
        ([{"name": "cringe"}, {"name": "nll"}], [[True, False, False]]),
        ([{"name": "dpo"}, {"name": "nll"}], [[False, False, False]]),
    ],
)
def test_statistics_are_asked_for_where_any_term_asks_for_them(terms, expected, reverse: bool):
    objective = build({"name": "weighted_sum", "terms": terms[::-1] if reverse else terms})
    scores = torch.tensor([[0.0, 1.0, 0.0]])
    where = torch.tensor([[True, True, False]])

    assert objective.responses_with_statistics(scores, where).tolist() == expected


def test_labels_are_asked_for_before_grades():
    terms = [{"name": "mmpo"}, {"name": "kto"}, {"name": "dpo"}]

    assert build({"name": "weighted_sum", "terms": terms}).needs == "labels"
    assert build({"name": "weighted_sum", "terms": terms[::2]}).needs == "graded"


def test_scores_must_suit_every_term(monkeypatch: pytest.MonkeyPatch):
    narrow = {"name": "pair_regression", "target": "win_prob", "clip": 0.1}
    monkeypatch.setattr(type(build({"name": "lipo"})), "score_range", (0.5, 2.0))

    # From 0.5 to 2 for the one and from 0 to 1 for the other, in either order; dpo takes all.
    for names in ([{"name": "lipo"}, narrow], [narrow, {"name": "dpo"}, {"name": "lipo"}]):
        assert build({"name": "weighted_sum", "terms": names}).score_range == (0.5, 1.0)
    assert build({"name": "weighted_sum", "terms": [{"name": "dpo"}]}).score_range is None
