"""What a step does to a group: arithmetic on small Grams, and models that take the step."""

import copy

import pytest
import torch
import transformers as t

from prefopt.diagnostics.entanglement import (
    broken_conditions,
    class_of,
    influence_of,
    pairs_of,
    predicted_changes,
)
from prefopt.diagnostics.parts import PARTS, depth_of, part_of
from tests.models.test_architectures import FLAT

PAIR = torch.tensor([1.0, 0.0])
BOTH = torch.tensor([True, True])


def found_of(gram, coefficients):
    """Broken conditions and class of a pair."""
    gram = torch.tensor(gram, dtype=torch.float64)
    influence = influence_of(gram, torch.tensor(coefficients, dtype=torch.float64))
    pairs = pairs_of(gram, PAIR, BOTH)
    chosen, rejected = broken_conditions(influence, pairs)
    return chosen.item(), rejected.item(), class_of(*predicted_changes(influence).tolist())


@pytest.mark.parametrize(
    ("gram", "coefficients", "expected"),
    [
        # <g_w, g_l> = 1 is below both squared norms, 4 and 9: both conditions hold.
        ([[4.0, 1.0], [1.0, 9.0]], [-1.0, 1.0], (False, False, "ideal")),
        # 4 <= 5 <= 9: chosen changes by 4 - 5 = -1, rejected by 5 - 9 = -4.
        ([[4.0, 5.0], [5.0, 9.0]], [-1.0, 1.0], (True, False, "both_fall")),
        # Chosen changes by 9 - 5 = 4, rejected by 5 - 4 = 1.
        ([[9.0, 5.0], [5.0, 4.0]], [-1.0, 1.0], (False, True, "both_rise")),
        # A negative product never breaks anything while both coefficients pull as they should.
        ([[4.0, -1.0], [-1.0, 1.0]], [-1.0, 1.0], (False, False, "ideal")),
        # d_w / d_l = 2 loosens the first: chosen changes by 2 * 4 - 5 = 3, rejected by 2 * 5 - 9.
        ([[4.0, 5.0], [5.0, 9.0]], [-2.0, 1.0], (False, True, "both_rise")),
        # A loss that pushes the chosen response down, as NCA beyond r_w = ln 2 does.
        ([[4.0, 0.0], [0.0, 9.0]], [1.0, -1.0], (True, True, "reversed")),
    ],
)
def test_conditions_are_those_of_the_paper(gram, coefficients, expected):
    assert found_of(gram, coefficients) == expected


def test_dpo_never_breaks_both_conditions_at_once():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(1000, 2, 3, generator=generator, dtype=torch.float64)

    for each in gradients:
        chosen, rejected, _ = found_of((each @ each.T).tolist(), [-0.3, 0.3])

        # Cauchy-Schwarz: the product cannot exceed both squared norms.
        assert not (chosen and rejected)


def test_a_response_that_stays_where_it_is_has_no_class():
    assert class_of(0.0, -1.0) is None
    assert class_of(1.0, 0.0) is None


def test_pairs_of_a_list_are_all_that_scores_tell_apart():
    gram = torch.arange(16.0).reshape(4, 4)
    gram = gram @ gram.T
    scores, where = torch.tensor([2.0, 1.0, 2.0, 9.0]), torch.tensor([True, True, True, False])

    pairs = pairs_of(gram, scores, where)

    assert pairs.index == ((0, 1), (2, 1))
    assert pairs.inner_product.tolist() == [gram[0, 1].item(), gram[2, 1].item()]
    cosine = gram[0, 1] / (gram[0, 0] * gram[1, 1]).sqrt()
    torch.testing.assert_close(pairs.cosine[0], cosine)


@pytest.mark.parametrize("name", FLAT)
def test_every_parameter_of_every_architecture_belongs_to_a_part(name):
    with torch.device("meta"):
        model = t.AutoModelForCausalLM.from_config(copy.deepcopy(FLAT[name]))

    found = {parameter: part_of(parameter) for parameter, _ in model.named_parameters()}

    assert set(found.values()) >= {"embedding", "attention", "mlp"}
    assert "other" not in found.values()
    assert set(found.values()) <= set(PARTS)
    depths = {depth_of(parameter) for parameter in found} - {None}
    assert depths == set(range(model.config.num_hidden_layers))


def test_an_adapter_belongs_to_what_it_adapts():
    name = "base_model.model.model.layers.3.self_attn.q_proj.lora_A.default.weight"

    assert (part_of(name), depth_of(name)) == ("attention", 3)
