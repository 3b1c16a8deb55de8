"""What holds for every objective. A new one needs nothing here: its test module brings `CASES`,

sections to build, and `value_at_reference(objective, inputs)`, the losses if policy = reference.
"""

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from types import ModuleType

import pytest
import torch

from prefopt.errors import UserError
from prefopt.objectives import Objective, build, registered, weigh
from prefopt.types import ObjectiveInputs
from tests.objectives.helpers import (
    cast,
    gradients_are_exact,
    inputs_of,
    losses_and_gradient,
    one_by_one,
    random_inputs,
    step_loss,
)


def module_of(name: str) -> ModuleType:
    """The objective's own tests; an objective without them stops the whole run."""
    module = import_module(f"tests.objectives.test_{name}")
    assert callable(module.value_at_reference)
    assert all(section["name"] == name for section in module.CASES)
    return module


def configurations() -> Iterator[object]:
    for name in registered():
        for i, section in enumerate(module_of(name).CASES):
            yield pytest.param(build(section), id=f"{name}-{i}")


EVERY = pytest.mark.parametrize("objective", list(configurations()))
PRECISIONS = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def parts(objective: Objective) -> list[Objective]:
    """The objectives that read the data themselves."""
    terms = getattr(objective, "objectives", None)
    return [objective] if terms is None else [part for term in terms for part in parts(term)]


@EVERY
@pytest.mark.parametrize("absurd", [99.0, -7.0, float("nan"), float("inf"), float("-inf")])
def test_padding_a_group_changes_nothing(objective: Objective, absurd: float):
    inputs = random_inputs(objective.needs)
    num_groups, num_slots = inputs.where.shape
    unused = torch.full((num_groups, 2), absurd, dtype=torch.float64)
    garbage = torch.cat([unused, inputs.policy_logps.detach(), unused], dim=1)
    where = torch.cat([unused.bool() & False, inputs.where, unused.bool() & False], dim=1)
    padded = ObjectiveInputs(
        policy_logps=torch.where(where, garbage, absurd).requires_grad_(),
        reference_logps=torch.cat([-unused, inputs.reference_logps, unused], dim=1),
        num_tokens=torch.nn.functional.pad(inputs.num_tokens, (2, 2), value=-7),
        scores=torch.nn.functional.pad(inputs.scores, (2, 2), value=50.0),
        where=where,
    )

    losses, gradient = losses_and_gradient(objective, padded)
    output, bare = objective(padded), objective(inputs)

    bare_losses, bare_gradient = losses_and_gradient(objective, inputs)
    torch.testing.assert_close(losses, bare_losses, rtol=1e-12, atol=1e-12)
    middle = slice(2, 2 + num_slots)
    torch.testing.assert_close(gradient[:, middle], bare_gradient, rtol=1e-12, atol=1e-12)
    assert (gradient[~where] == 0).all()
    assert (output.rewards[~where] == 0).all()
    torch.testing.assert_close(output.rewards[:, middle], bare.rewards)
    assert torch.equal(output.counted, bare.counted)
    # NaN says that a group does not define the metric, and is where it was without padding.
    torch.testing.assert_close(dict(output.metrics), dict(bare.metrics), equal_nan=True)
    assert not any(torch.isinf(values).any() for values in output.metrics.values())


@EVERY
def test_the_order_of_the_responses_does_not_matter(objective: Objective):
    inputs = random_inputs(objective.needs)
    order = torch.tensor([2, 0, 3, 1])
    permuted = ObjectiveInputs(
        policy_logps=inputs.policy_logps[:, order],
        reference_logps=inputs.reference_logps[:, order],
        num_tokens=inputs.num_tokens[:, order],
        scores=inputs.scores[:, order],
        where=inputs.where[:, order],
    )

    losses, gradient = losses_and_gradient(objective, permuted)

    expected_losses, expected_gradient = losses_and_gradient(objective, inputs)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient[:, order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(objective(permuted).rewards, objective(inputs).rewards[:, order])


@EVERY
@PRECISIONS
def test_a_group_that_says_nothing_costs_nothing(objective: Objective, dtype: torch.dtype):
    # Tied; alone; empty. The first two say something to an objective that needs no pairs.
    logps = [[-5.0, -9.0], [-5.0, -9.0], [-5.0, -9.0]]
    where = [[True, True], [True, False], [False, False]]
    scores = [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    inputs = inputs_of(logps, [[-6.0, -7.0]] * 3, scores, where=where, dtype=dtype)

    losses, gradient = losses_and_gradient(objective, inputs)
    output = objective(inputs)

    only_pairs = all(part.needs == "preferred_pairs" for part in parts(objective))
    silent = slice(0, 3) if only_pairs else slice(2, 3)
    assert not output.counted[silent].any()
    assert (losses[silent] == 0).all()
    assert (gradient[silent] == 0).all()
    assert torch.isfinite(gradient).all()
    for term in output.all_terms().values():
        assert (term.weight[silent] == 0).all()
        assert (term.losses[silent] == 0).all()


@EVERY
@PRECISIONS
def test_it_has_its_known_value_when_the_policy_is_the_reference(
    objective: Objective, dtype: torch.dtype
):
    inputs = cast(random_inputs(objective.needs, num_groups=9), dtype)
    inputs = replace(inputs, reference_logps=inputs.policy_logps.detach())

    losses, gradient = losses_and_gradient(objective, inputs)

    expected = module_of(objective.name).value_at_reference(objective, inputs)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(losses, expected, rtol=tolerance, atol=tolerance)
    assert torch.isfinite(gradient).all()


@EVERY
@PRECISIONS
@pytest.mark.parametrize("scale", [-1e2, -1e4])
@pytest.mark.parametrize("side", ["policy", "reference", "both"])
def test_very_unlikely_responses_stay_finite(
    objective: Objective, dtype: torch.dtype, scale: float, side: str
):
    inputs = random_inputs(objective.needs)
    unit = inputs.policy_logps.detach() / 60
    changes = {
        "policy": {"policy_logps": unit.abs() * scale},
        "reference": {"reference_logps": unit.abs() * scale},
        "both": {"policy_logps": unit.abs() * scale, "reference_logps": unit.flip(1) * -scale},
    }
    inputs = cast(replace(inputs, **changes[side]), dtype)

    losses, gradient = losses_and_gradient(objective, inputs)

    assert torch.isfinite(losses).all()
    assert torch.isfinite(gradient).all()
    assert gradient.abs().max() > 0


@EVERY
def test_gradients_are_those_of_finite_differences(objective: Objective):
    inputs = inputs_of(
        [[-1.0, -3.5, -2.0], [-3.0, -2.0, -2.5]],
        [[-2.0, -3.0, -1.0], [-4.0, -1.0, -2.0]],
        [[2, 1, 0], [1, 1, 0]],
        num_tokens=[[3, 5, 2], [1, 4, 6]],
    )

    assert gradients_are_exact(objective, inputs)


@EVERY
def test_losses_carry_a_gradient_and_nothing_else_does(objective: Objective):
    output = objective(random_inputs(objective.needs))

    assert output.losses.requires_grad
    assert not output.rewards.requires_grad
    assert not any(values.requires_grad for values in output.metrics.values())
    assert all(term.losses.requires_grad for term in output.all_terms().values())
    assert not any(term.weight.requires_grad for term in output.all_terms().values())


@EVERY
def test_weights_and_what_counts_depend_on_the_data_alone(objective: Objective):
    inputs = random_inputs(objective.needs, num_groups=12)
    # Other log-probs on the same data.
    drawn = random_inputs(objective.needs, seed=1, num_groups=12)
    changed = replace(
        inputs, policy_logps=drawn.policy_logps, reference_logps=drawn.reference_logps
    )

    output, other = objective(inputs), objective(changed)
    weighed = weigh(
        objective, scores=inputs.scores, where=inputs.where, num_tokens=inputs.num_tokens
    )

    assert output.counted.sum() > 0
    for again in (other, weighed):
        assert torch.equal(output.counted, again.counted)
        assert output.all_terms().keys() == again.all_terms().keys()
        for name, term in output.all_terms().items():
            assert torch.equal(term.weight, again.all_terms()[name].weight)
            assert term.coefficient == again.all_terms()[name].coefficient


@EVERY
def test_a_group_counts_exactly_if_it_adds_to_a_denominator(objective: Objective):
    output = objective(random_inputs(objective.needs, num_groups=12))

    weights = [term.weight for term in output.all_terms().values()]
    assert torch.equal(output.counted, torch.stack(weights).sum(dim=0) > 0)
    assert (output.losses[~output.counted] == 0).all()


@EVERY
def test_a_metric_is_a_number_where_every_part_counts_the_group(objective: Objective):
    inputs = random_inputs(objective.needs, num_groups=12)
    counted = torch.stack([part(inputs).counted for part in parts(objective)])

    metrics = objective(inputs).metrics

    assert all(torch.isfinite(values[counted.all(dim=0)]).all() for values in metrics.values())
    assert all(values[counted.any(dim=0)].isfinite().any() for values in metrics.values())


@EVERY
def test_the_split_into_micro_batches_does_not_change_the_update(objective: Objective):
    inputs = random_inputs(objective.needs, num_groups=8)

    whole = step_loss(objective, [inputs])
    split = step_loss(objective, one_by_one(inputs))

    torch.testing.assert_close(split, whole, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(whole, inputs.policy_logps)
    (split_gradient,) = torch.autograd.grad(split, inputs.policy_logps)
    torch.testing.assert_close(split_gradient, gradient, rtol=1e-12, atol=1e-15)


@EVERY
def test_terms_add_up_to_the_losses(objective: Objective):
    output = objective(random_inputs(objective.needs))

    terms = output.all_terms().values()
    total = torch.stack([term.coefficient * term.losses for term in terms]).sum(dim=0)
    torch.testing.assert_close(output.losses, total, rtol=1e-12, atol=1e-12)


@EVERY
def test_it_asks_for_a_reference_exactly_if_it_needs_one(objective: Objective):
    inputs = random_inputs(objective.needs)
    without = replace(inputs, reference_logps=None)

    if objective.needs_reference:
        with pytest.raises(ValueError, match="needs reference log-probs"):
            objective(without)
    else:
        assert torch.equal(objective(without).losses, objective(inputs).losses)


@EVERY
@PRECISIONS
def test_results_come_in_the_dtype_of_the_policy(objective: Objective, dtype: torch.dtype):
    inputs = random_inputs(objective.needs)
    other = torch.float32 if dtype == torch.float64 else torch.float64
    inputs = replace(
        cast(inputs, other), policy_logps=inputs.policy_logps.detach().to(dtype).requires_grad_()
    )

    output = objective(inputs)

    terms = output.all_terms().values()
    results = [output.losses, output.rewards, *output.metrics.values()]
    results += [values for term in terms for values in (term.losses, term.weight)]
    assert {values.dtype for values in results} == {dtype}


@EVERY
def test_inputs_stay_as_they_are(objective: Objective):
    inputs = random_inputs(objective.needs)

    objective(inputs).losses.sum().backward()

    fresh = random_inputs(objective.needs)
    for name in ("policy_logps", "reference_logps", "num_tokens", "scores", "where"):
        assert torch.equal(getattr(inputs, name), getattr(fresh, name))


@EVERY
def test_its_dump_builds_it_again(objective: Objective):
    section = objective.model_dump(mode="json")

    assert section["name"] == objective.name
    assert build(section) == objective
    assert build(objective.model_dump()) == objective


@EVERY
def test_it_cannot_be_changed(objective: Objective):
    for name in type(objective).model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(objective, name, getattr(objective, name))


@pytest.mark.parametrize("name", registered())
def test_an_unknown_parameter_gets_the_nearest_names(name: str):
    section = module_of(name).CASES[0]
    known = next(iter(registered()[name].model_fields))

    with pytest.raises(
        UserError,
        match=rf"^objective\.{known}x: unknown key\. Did you mean '{known}'\? Known: .*{known}",
    ):
        build({**section, f"{known}x": 1})


@pytest.mark.parametrize("name", registered())
def test_numbers_are_not_taken_from_truth_values_words_or_nothing(name: str):
    fields = registered()[name].model_fields
    numbers = [key for key, field in fields.items() if field.annotation in (int, float)]
    switches = [key for key, field in fields.items() if field.annotation is bool]
    wrong = [(key, value) for key in numbers for value in (True, False, "abc", None, [1.0])]
    wrong += [(key, value) for key in numbers for value in (float("nan"), float("inf"))]
    wrong += [(key, value) for key in switches for value in (1, 0, "yes", None)]

    for key, value in wrong:
        with pytest.raises(UserError, match=rf"^objective\.{key} .*, got "):
            build({**module_of(name).CASES[0], key: value})


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "dop"}, r"no objective 'dop'\. Did you mean 'dpo'\? Known: dpo, "),
        ({"name": 3}, r"^objective\.name: no objective '3'\. Known: "),
        ({"beta": 0.1}, r"^objective\.name is missing\. Known: dpo, "),
        ({"name": "dpo", "beta": 0}, r"^objective\.beta should be greater than 0, got 0\.$"),
        ({"name": "dpo", "label_smoothing": 0.5}, r"^objective\.label_smoothing should be less th"),
        ({"name": "dpo", "label_smoothing": -0.1}, r"^objective\.label_smoothing should be great"),
        ({"name": "ipo", "tau": -1.0}, r"^objective\.tau should be greater than 0, got -1\.0\.$"),
        ({"name": "nll", "of": "chosen"}, r"^objective\.of should be 'preferred', 'best' or 'all'"),
    ],
)
def test_a_wrong_section_says_which_key_and_why(section: dict[str, object], message: str):
    with pytest.raises(UserError, match=message):
        build(section)


def test_a_number_that_yaml_reads_as_text_is_a_number():
    # YAML 1.1 takes 1e-1 for a string, since it has no dot.
    assert build({"name": "dpo", "beta": "1e-1"}) == build({"name": "dpo", "beta": 0.1})
