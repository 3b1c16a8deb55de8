"""BMC against the paper's equations 5 and 6, worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from prefopt.errors import UserError
from prefopt.objectives import Objective, build
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import draw, inputs_of, loss_gradient
from tests.objectives.tokens import (
    softplus,
    token_inputs_of,
    tokens_of,
    with_token_fields,
)

CASES = [
    {"name": "bmc"},
    {"name": "bmc", "beta": 0.4, "delta": 0.8},
    {"name": "bmc", "beta": 0.3, "delta": 1.0, "reference_weight": "own"},
    {"name": "bmc", "delta": 3.0, "reference_weight": "own"},
]
POLICY = [[[math.log(0.8), math.log(0.1)], [math.log(0.5), math.log(0.9)]]]
REFERENCE = [[[math.log(0.4), math.log(0.2)], [math.log(0.25), math.log(0.6)]]]
DIFFERS = [True, True, True, False]


def stops_gradient(objective: Objective) -> bool:
    """Weights above 1 + 1 depend on the policy, as constants."""
    return bool(objective.model_dump()["delta"] > 1)


def value_at_reference(objective: Objective, inputs: ObjectiveInputs) -> Tensor:
    """The same weights on the same log-probs: all margins are 0."""
    values = [
        math.log(2) if len(set(scores[where].tolist())) > 1 else 0.0
        for scores, where in zip(inputs.scores, inputs.where, strict=True)
    ]
    return torch.tensor(values, dtype=inputs.policy_logps.dtype)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def a_pair(scores: list[list[float]]) -> tuple[Tensor, ObjectiveInputs]:
    leaf, inputs = token_inputs_of(POLICY, scores, reference=REFERENCE)
    return leaf, with_token_fields(inputs, differs=DIFFERS)


def test_differing_tokens_weigh_by_how_unlikely_they_are_to_the_policy():
    leaf, inputs = a_pair([[1, 0]])

    output = build({"name": "bmc", "beta": 0.5, "delta": 2.5})(inputs)

    # 1 / 0.8 = 1.25; 1 / 0.1 is cut to 2.5; 1 / 0.5 = 2; the last token is in both responses
    weights = [2.25, 3.5, 3.0, 1.0]
    best = 2.25 * math.log(2) + 3.5 * math.log(0.5)
    worst = 3.0 * math.log(2) + math.log(1.5)
    assert output.rewards.tolist()[0] == pytest.approx([0.5 * best, 0.5 * worst], rel=1e-12)
    margin = 0.5 * (best - worst)
    assert output.losses.tolist() == pytest.approx([softplus(-margin)], rel=1e-12)
    # The weights are constants: -beta sigmoid(-m) w_t on the best, the opposite on the worst
    slope = 0.5 * sigmoid(-margin)
    expected = [sign * slope * w for sign, w in zip((-1, -1, 1, 1), weights, strict=True)]
    assert loss_gradient(output.losses, leaf).tolist() == pytest.approx(expected, rel=1e-12)


def test_the_references_own_weights_multiply_its_log_probs_as_in_the_authors_code():
    leaf, inputs = a_pair([[1, 0]])

    losses = build({"name": "bmc", "beta": 0.5, "delta": 2.5, "reference_weight": "own"})(
        inputs
    ).losses

    # Policy as above. Reference: 1 / 0.4 = 2.5, 1 / 0.2 and 1 / 0.25 are cut to 2.5.
    policy = [2.25 * math.log(0.8) + 3.5 * math.log(0.1), 3 * math.log(0.5) + math.log(0.9)]
    reference = [3.5 * math.log(0.4) + 3.5 * math.log(0.2), 3.5 * math.log(0.25) + math.log(0.6)]
    margin = 0.5 * ((policy[0] - reference[0]) - (policy[1] - reference[1]))
    assert losses.tolist() == pytest.approx([softplus(-margin)], rel=1e-12)
    slope = 0.5 * sigmoid(-margin)
    expected = [-slope * 2.25, -slope * 3.5, slope * 3.0, slope]
    assert loss_gradient(losses, leaf).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("reference_weight", ["policy", "own"])
@pytest.mark.parametrize("delta", [0.25, 1.0])
def test_a_delta_up_to_1_is_the_weight_of_every_differing_token(
    delta: float, reference_weight: str
):
    _, inputs = a_pair([[1, 0]])

    output = build({"name": "bmc", "delta": delta, "reference_weight": reference_weight})(inputs)

    expected = [0.0, 0.1 * ((1 + delta) * math.log(2) + math.log(1.5))]
    assert output.rewards.tolist()[0] == pytest.approx(expected, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("section", [{"delta": 1e-12}, {"delta": 2.0, "beta": 0.7}], ids=str)
def test_without_weight_on_differences_it_is_dpo(section: dict[str, float]):
    _, inputs = a_pair([[1, 0]])
    if section["delta"] > 1:
        inputs = with_token_fields(inputs, differs=[False] * 4)
    beta = section.get("beta", 0.1)
    # h = 0 and log 3: the sums of the log-ratios
    plain = inputs_of([[0.0, math.log(3.0)]], [[0.0, 0.0]], [[1, 0]])

    losses = build({"name": "bmc", **section})(inputs).losses

    dpo = build({"name": "dpo", "beta": beta})(plain).losses
    torch.testing.assert_close(losses, dpo, rtol=1e-11, atol=0)


def test_on_a_list_the_best_meets_the_worst():
    _, inputs = token_inputs_of(
        [[[-1.0], [-2.0], [-3.0], [-4.0]]], [[1, 3, 0, 2]], reference=[[[-2.0]] * 4]
    )
    inputs = with_token_fields(inputs, differs=[False] * 4)

    losses = build({"name": "bmc", "beta": 1.0})(inputs).losses

    # h = (1, 0, -1, -2): slot 1 against slot 2
    assert losses.tolist() == pytest.approx([softplus(-1.0)], rel=1e-12)


def test_ties_for_best_or_worst_give_the_mean_over_their_pairs():
    _, inputs = token_inputs_of(
        [[[-1.0], [-2.0], [-3.0], [-4.0]]], [[3, 3, 0, 1]], reference=[[[-2.0]] * 4]
    )
    inputs = with_token_fields(inputs, differs=[False] * 4)

    losses = build({"name": "bmc", "beta": 1.0})(inputs).losses

    # h = (1, 0, -1, -2): slots 0 and 1 against slot 2
    assert losses.tolist() == pytest.approx([(softplus(-2.0) + softplus(-1.0)) / 2], rel=1e-12)


@pytest.mark.parametrize("reference_weight", ["policy", "own"])
@pytest.mark.parametrize("num_slots", range(1, 17))
def test_random_lists_cost_what_loops_say(num_slots: int, reference_weight: str):
    objective = build({"name": "bmc", "delta": 2.5, "reference_weight": reference_weight})
    inputs = draw(objective, seed=num_slots, num_groups=num_slots + 1, num_slots=num_slots).inputs
    tokens = inputs.token_inputs()

    losses = objective(inputs).losses.tolist()

    def weight(logps: Tensor, t: int) -> float:
        return 1 + (min(math.exp(-logps[t].item()), 2.5) if tokens.differs[t] else 0.0)

    for g, loss in enumerate(losses):
        rewards, scores = {}, {}
        for k in range(num_slots):
            if inputs.where[g, k]:
                scores[k], rewards[k] = inputs.scores[g, k].item(), 0.0
                for t in tokens_of(inputs, g, k):
                    policy, reference = tokens.policy_logps, tokens.reference_logps
                    own = policy if reference_weight == "policy" else reference
                    rewards[k] += 0.1 * weight(policy, t) * policy[t].item()
                    rewards[k] -= 0.1 * weight(own, t) * reference[t].item()
        best = [k for k in scores if scores[k] == max(scores.values())]
        worst = [k for k in scores if scores[k] == min(scores.values())]
        costs = [softplus(rewards[j] - rewards[i]) for i in best for j in worst if i not in worst]
        assert loss == pytest.approx(sum(costs) / max(1, len(costs)), rel=1e-12)


def test_a_token_10000_nats_away_weighs_1_plus_delta():
    leaf, inputs = token_inputs_of(
        [[[-1e4], [-1.0]]], [[1, 0]], reference=[[[-1.0], [-1.0]]], dtype=torch.float32
    )
    inputs = with_token_fields(inputs, differs=[True, False])

    losses = build({"name": "bmc", "beta": 0.1, "delta": 2.0})(inputs).losses

    # 1 / pi overflows; the margin is 0.1 * 3 * -9999
    assert losses.item() == pytest.approx(0.3 * 9999, rel=1e-6)
    assert loss_gradient(losses, leaf).tolist() == pytest.approx([-0.3, 0.1], rel=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
        ({"delta": 0}, r"^objective\.delta should be greater than 0, got 0\.$"),
        ({"reference_weight": "none"}, r"^objective\.reference_weight should be 'policy' or 'own'"),
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build({"name": "bmc", **wrong})
