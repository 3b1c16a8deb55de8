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
    Draw,
    cast,
    draw,
    draw_for,
    gradients_are_exact,
    inputs_of,
    loss_gradient,
    one_by_one,
    pad,
    permute,
    scores_for,
    select,
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


def like(objective: Objective, inputs: ObjectiveInputs, **changes: object) -> Draw:
    """Another draw for the same data."""
    data = {"scores": inputs.scores, "where": inputs.where, "num_tokens": inputs.num_tokens}
    return draw_for(objective, **{**data, **changes})


@EVERY
@pytest.mark.parametrize("absurd", [99.0, -7.0, float("nan"), float("inf"), float("-inf")])
def test_padding_a_group_changes_nothing(objective: Objective, absurd: float):
    drawn = draw(objective)
    inputs, padded = drawn.inputs, pad(drawn.inputs, absurd)

    output, bare = objective(padded), objective(inputs)
    loss = output.losses.sum()
    (gradient,) = torch.autograd.grad(
        loss, padded.policy_logps, retain_graph=True, materialize_grads=True
    )

    torch.testing.assert_close(output.losses, bare.losses, rtol=1e-12, atol=1e-12)
    assert (gradient[~padded.where] == 0).all()
    torch.testing.assert_close(
        loss_gradient(loss, drawn.leaf),
        loss_gradient(bare.losses, drawn.leaf),
        rtol=1e-12,
        atol=1e-12,
    )
    assert (output.rewards[~padded.where] == 0).all()
    torch.testing.assert_close(output.rewards[:, 2:-2], bare.rewards)
    assert torch.equal(output.counted, bare.counted)
    # NaN says that a group does not define the metric, and is where it was without padding.
    torch.testing.assert_close(dict(output.metrics), dict(bare.metrics), equal_nan=True)
    assert not any(torch.isinf(values).any() for values in output.metrics.values())


@EVERY
def test_the_order_of_the_responses_does_not_matter(objective: Objective):
    drawn, order = draw(objective), [2, 0, 3, 1]
    inputs, permuted = drawn.inputs, permute(drawn.inputs, order)

    output, expected = objective(permuted), objective(inputs)

    torch.testing.assert_close(output.losses, expected.losses, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        loss_gradient(output.losses, drawn.leaf),
        loss_gradient(expected.losses, drawn.leaf),
        rtol=1e-12,
        atol=1e-12,
    )
    torch.testing.assert_close(output.rewards, expected.rewards[:, order])


@EVERY
def test_a_group_of_up_to_16_does_not_change_what_another_one_costs(objective: Objective):
    if objective.couples_groups:
        pytest.skip("its groups are meant to")
    for num_slots in range(1, 17):
        # Groups of 1 to K responses, ties among them.
        inputs = draw(objective, num_groups=num_slots + 1, num_slots=num_slots).inputs

        together = objective(inputs).losses

        assert torch.isfinite(together).all()
        for g in (0, num_slots - 1):
            alone = objective(select(inputs, [g])).losses
            torch.testing.assert_close(together[g : g + 1], alone, rtol=1e-12, atol=1e-12)


@EVERY
@PRECISIONS
def test_a_group_that_says_nothing_costs_nothing(objective: Objective, dtype: torch.dtype):
    # Tied; alone; empty. The first two say something to an objective that needs no pairs.
    where = torch.tensor([[True, True], [True, False], [False, False]])
    drawn = draw_for(
        objective,
        scores=torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]),
        where=where,
        num_tokens=torch.tensor([[3, 2], [4, 0], [0, 0]]),
        dtype=dtype,
    )

    output = objective(drawn.inputs)
    policy_logps = drawn.inputs.policy_logps
    gradient = loss_gradient(output.losses, drawn.leaf)

    only_pairs = all(part.needs == "preferred_pairs" for part in parts(objective))
    silent = slice(0, 3) if only_pairs else slice(2, 3)
    assert policy_logps.shape == where.shape
    assert not output.counted[silent].any()
    assert (output.losses[silent] == 0).all()
    assert torch.isfinite(gradient).all()
    if only_pairs or not objective.needs_tokens:
        assert (gradient[silent] == 0).all()
    for term in output.all_terms().values():
        assert (term.weight[silent] == 0).all()
        assert (term.losses[silent] == 0).all()


@EVERY
@PRECISIONS
def test_it_has_its_known_value_when_the_policy_is_the_reference(
    objective: Objective, dtype: torch.dtype
):
    data = draw(objective, num_groups=9).inputs
    drawn = like(objective, data, at_reference=True, dtype=dtype)

    output = objective(drawn.inputs)

    expected = module_of(objective.name).value_at_reference(objective, drawn.inputs)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(output.losses, expected, rtol=tolerance, atol=tolerance)
    assert torch.isfinite(loss_gradient(output.losses, drawn.leaf)).all()


@EVERY
@PRECISIONS
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_very_unlikely_responses_stay_finite(
    objective: Objective, dtype: torch.dtype, autocast: bool
):
    data = draw(objective, num_groups=12).inputs
    for scale in (3.0, 300.0):
        for policy, reference in ((scale, 1.0), (1.0, scale), (scale, -scale)):
            drawn = like(
                objective, data, policy_scale=policy, reference_scale=reference, dtype=dtype
            )
            inputs = drawn.inputs

            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                losses = objective(inputs).losses

            assert losses.dtype == dtype
            assert torch.isfinite(losses).all(), (policy, reference)
            gradient = loss_gradient(losses, drawn.leaf)
            assert torch.isfinite(gradient).all(), (policy, reference)


@EVERY
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
def test_a_pair_10000_nats_in_the_wrong_order_is_pushed_the_right_way(
    objective: Objective, autocast: bool
):
    if objective.needs_tokens or any(part.needs == "responses" for part in objective.parts()):
        pytest.skip("its log-probs are not free, or it learns rejected responses too")
    # The first response is the better one, and has become as unlikely as the other has likely.
    inputs = inputs_of(
        [[-1.2e4, -10.0]],
        [[-2e3, -1.0e4]],
        [[1, 0]],
        num_tokens=[[20, 30]],
        dtype=torch.float32,
    )

    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        losses = objective(inputs).losses
    gradient = loss_gradient(losses, inputs.policy_logps)

    assert torch.isfinite(losses).all()
    # A loss that saturates may leave the pair alone.
    assert gradient[0, 0] <= 0
    assert gradient[0, 1] >= 0


@EVERY
def test_gradients_are_those_of_finite_differences(objective: Objective):
    stops_gradient = getattr(module_of(objective.name), "stops_gradient", None)
    if stops_gradient is not None and stops_gradient(objective):
        pytest.skip("parts of it are constants by definition; its own test has the gradient")
    unit = torch.tensor([[0.99, 0.5, 0.0], [0.99, 0.99, 0.0]], dtype=torch.float64)
    drawn = draw_for(
        objective,
        scores=scores_for(objective, unit),
        where=torch.ones(2, 3, dtype=torch.bool),
        num_tokens=torch.tensor([[2, 3, 1], [1, 2, 2]]),
    )

    assert gradients_are_exact(objective, drawn)


@EVERY
def test_losses_carry_a_gradient_and_nothing_else_does(objective: Objective):
    output = objective(draw(objective).inputs)

    assert output.losses.requires_grad
    assert not output.rewards.requires_grad
    assert not any(values.requires_grad for values in output.metrics.values())
    assert all(term.losses.requires_grad for term in output.all_terms().values())
    assert not any(term.weight.requires_grad for term in output.all_terms().values())


@EVERY
def test_weights_and_what_counts_depend_on_the_data_alone(objective: Objective):
    inputs = draw(objective, num_groups=12).inputs
    changed = like(objective, inputs, seed=1).inputs

    output, other = objective(inputs), objective(changed)
    weighed = weigh(
        objective, scores=inputs.scores, where=inputs.where, num_tokens=inputs.num_tokens
    )

    assert output.counted.sum() > 0
    for again in (other, weighed):
        assert torch.equal(output.counted, again.counted)
        assert output.all_terms().keys() == again.all_terms().keys()
        for name, term in output.all_terms().items():
            torch.testing.assert_close(term.weight, again.all_terms()[name].weight, rtol=0, atol=0)
            assert term.coefficient == again.all_terms()[name].coefficient


@EVERY
def test_a_group_counts_exactly_if_it_adds_to_a_denominator(objective: Objective):
    output = objective(draw(objective, num_groups=12).inputs)

    weights = [term.weight for term in output.all_terms().values()]
    assert torch.equal(output.counted, torch.stack(weights).sum(dim=0) > 0)
    assert (output.losses[~output.counted] == 0).all()


@EVERY
def test_a_metric_is_a_number_for_some_group_that_counts(objective: Objective):
    output = objective(draw(objective, num_groups=12).inputs)

    assert not any(torch.isinf(values).any() for values in output.metrics.values())
    assert all(values[output.counted].isfinite().any() for values in output.metrics.values())


@EVERY
def test_the_split_into_micro_batches_does_not_change_the_update(objective: Objective):
    drawn = draw(objective, num_groups=8)
    inputs = drawn.inputs
    # Prompts with the responses of the next group, where a step takes statistics of such.
    mismatched = draw(objective, seed=7, num_groups=8).inputs

    whole = step_loss(objective, [inputs], [mismatched])
    each = step_loss(objective, one_by_one(inputs), one_by_one(mismatched))
    some = step_loss(
        objective,
        [select(inputs, [6, 0, 3]), select(inputs, [1, 2, 4, 5, 7])],
        [select(mismatched, [2, 1]), select(mismatched, [0, 3, 4, 5, 6, 7])],
    )

    gradient = loss_gradient(whole, drawn.leaf)
    assert gradient.norm() > 0
    for split in (each, some):
        torch.testing.assert_close(split, whole, rtol=1e-12, atol=1e-13)
        off = loss_gradient(split, drawn.leaf) - gradient
        assert off.norm() <= 1e-12 * gradient.norm()


@EVERY
def test_terms_add_up_to_the_losses(objective: Objective):
    output = objective(draw(objective).inputs)

    terms = output.all_terms().values()
    total = torch.stack([term.coefficient * term.losses for term in terms]).sum(dim=0)
    torch.testing.assert_close(output.losses, total, rtol=1e-12, atol=1e-12)


@EVERY
def test_it_asks_for_a_reference_exactly_if_it_needs_one(objective: Objective):
    inputs = draw(objective).inputs
    tokens = inputs.tokens and replace(inputs.tokens, reference_logps=None)
    without = replace(inputs, reference_logps=None, tokens=tokens)

    if objective.needs_reference:
        with pytest.raises(ValueError, match="needs reference log-probs"):
            objective(without)
    else:
        assert torch.equal(objective(without).losses, objective(inputs).losses)


@EVERY
def test_it_asks_for_tokens_exactly_if_it_needs_them(objective: Objective):
    inputs = draw(objective).inputs

    if objective.needs_tokens:
        with pytest.raises(ValueError, match="reads single tokens"):
            objective(replace(inputs, tokens=None))
    else:
        assert inputs.tokens is None


@EVERY
def test_it_couples_groups_exactly_if_it_says_so(objective: Objective):
    inputs = draw(objective).inputs

    if objective.couples_groups:
        assert objective.statistic(inputs).shape[0] == inputs.where.shape[0]
        assert not objective.statistic(inputs).requires_grad
    else:
        assert not objective.mismatches_responses
        with pytest.raises(NotImplementedError):
            objective.statistic(inputs)


@EVERY
@PRECISIONS
def test_results_come_in_the_dtype_of_the_policy(objective: Objective, dtype: torch.dtype):
    data = draw(objective).inputs
    other = torch.float32 if dtype == torch.float64 else torch.float64
    inputs = like(objective, data, dtype=dtype).inputs
    inputs = replace(cast(inputs, other), policy_logps=inputs.policy_logps, tokens=inputs.tokens)

    output = objective(inputs)

    terms = output.all_terms().values()
    results = [output.losses, output.rewards, *output.metrics.values()]
    results += [values for term in terms for values in (term.losses, term.weight)]
    assert {values.dtype for values in results} == {dtype}


@EVERY
def test_inputs_stay_as_they_are(objective: Objective):
    inputs = draw(objective).inputs

    objective(inputs).losses.sum().backward()

    fresh = draw(objective).inputs
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
        ({"name": "simppo"}, r"no objective 'simppo'\. Did you mean 'simpo'\? Known: "),
        ({"name": 3}, r"^objective\.name: no objective '3'\. Known: "),
        ({"beta": 0.1}, r"^objective\.name is missing\. Known: "),
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
