"""What a loss will do to each response, against what a step of gradient descent does to it."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import transformers as t

from prefopt.data.collate import collate
from prefopt.data.token_facts import differing_tokens
from prefopt.diagnostics.entanglement import (
    broken_conditions,
    class_of,
    influence_of,
    pairs_of,
    predicted_changes,
)
from prefopt.diagnostics.gram import GramMeter
from prefopt.diagnostics.token_map import token_map
from prefopt.models.head import install_logp_head
from prefopt.models.layout import token_logps
from prefopt.models.reference import FrozenCopy
from prefopt.objectives import build, weigh
from prefopt.train.diagnosed_group import DiagnosedGroup
from prefopt.train.diagnosed_step import changes_of_step
from prefopt.train.influence import InfluenceMeter, why_no_influence
from prefopt.train.verification import small_rates, verify
from prefopt.types import TokenizedRecord
from tests.models.test_architectures import FLAT

OBJECTIVES = [
    ({"name": "dpo", "beta": 0.5}, 2),
    # Tokens that only one of the two has count more than others.
    ({"name": "bmc"}, 2),
    ({"name": "lipo"}, 4),
    *(
        pytest.param(section, num_responses, marks=pytest.mark.slow)
        for section, num_responses in (
            ({"name": "weighted_sum", "terms": [{"name": "dpo"}, {"name": "nll"}]}, 2),
            ({"name": "simpo"}, 4),
            ({"name": "nca"}, 4),
            ({"name": "infonca", "alpha": 0.5}, 4),
        )
    ),
]

SHARED = torch.tensor([7, 8])
"""What all responses end with."""


def model_of(seed):
    """Its norms compute in float64 too, as those of most others do not."""
    torch.manual_seed(seed)
    model = t.AutoModelForCausalLM.from_config(FLAT["gpt2"]).double()
    install_logp_head(model, "shared")
    return model


def records_of(num_responses, num=10):
    generator = torch.Generator().manual_seed(num_responses)

    def tokens(low, high):
        length = int(torch.randint(low, high, (1,), generator=generator))
        return torch.randint(3, 100, (length,), generator=generator)

    return [
        TokenizedRecord(
            id=f"r{i}",
            prompt_ids=tokens(1, 6),
            response_ids=tuple(torch.cat([tokens(1, 8), SHARED]) for _ in range(num_responses)),
            scores=tuple(float(k) for k in range(num_responses)),
        )
        for i in range(num)
    ]


def batch_of(record, objective):
    batch = collate([record])
    if objective.needs_diff:
        batch = replace(batch, differs=torch.cat(list(differing_tokens(record))))
    return batch


def denominators_of(batch, objective):
    """As if the group were the whole step."""
    output = weigh(objective, scores=batch.scores, where=batch.where, num_tokens=batch.num_tokens)
    return {name: float(term.weight.sum()) for name, term in output.all_terms().items()}


def measured_of(section, num_responses, *, num=10, **options):
    objective = build(section)
    policy = model_of(0)
    reference = FrozenCopy(model_of(1)) if objective.needs_reference else None
    meter = InfluenceMeter(objective, GramMeter(policy), reference, policy, **options)
    batches = [batch_of(record, objective) for record in records_of(num_responses, num)]
    denominators = denominators_of(batches[0], objective)
    return meter, [(batch, meter.measure(batch, denominators)) for batch in batches], denominators


@pytest.mark.parametrize(("section", "num_responses"), OBJECTIVES)
def test_predictions_come_true_the_better_the_smaller_the_step(section, num_responses):
    meter, measured, denominators = measured_of(section, num_responses)
    before = [p.detach().clone() for p in meter.parameters]

    rates = small_rates([found for _, found in measured], (1e-2, 1e-3, 1e-4))
    found = verify(meter, measured, denominators, rates)

    # The second-order term of a Taylor series: a tenth of the step, a tenth of the relative error.
    for larger, smaller in pairwise(found.relative_errors):
        assert 8 < larger / smaller < 12
    assert found.relative_errors[-1] < 0.05
    assert found.sign_agreement[-1] >= 0.99
    assert found.num_responses >= 0.9 * 10 * num_responses
    assert all(torch.equal(a, b) for a, b in zip(before, meter.parameters, strict=True))


def test_with_gradients_of_one_length_no_pair_breaks_a_condition():
    meter, measured, denominators = measured_of(
        {"name": "dpo", "beta": 0.5}, 2, num=4, normalises=True
    )

    for batch, found in measured:
        pairs = pairs_of(found.gram.total, *_scores(batch))
        assert not torch.cat(broken_conditions(found.influence, pairs)).any()
    rates = small_rates([found for _, found in measured], (1e-3, 1e-4))
    verified = verify(meter, measured, denominators, rates)
    assert verified.relative_errors[1] < 0.2 * verified.relative_errors[0] < 0.02


def _scores(batch):
    return batch.scores[0], batch.where[0]


def test_an_objective_that_weighs_tokens_has_no_coefficients_of_responses():
    (_, of_tokens), *_ = measured_of({"name": "bmc"}, 2, num=1)[1]
    (_, of_responses), *_ = measured_of({"name": "dpo"}, 2, num=1)[1]

    assert of_tokens.coefficients is None
    chosen, rejected = 1, 0
    assert of_responses.coefficients[chosen] == -of_responses.coefficients[rejected] < 0


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"name": "cringe"}, "cringe also learns from whole distributions"),
        ({"name": "npo", "retain": "kl"}, "npo also learns from whole distributions"),
        (
            {"name": "dr_dpo", "coupling": "micro_batch"},
            "what dr_dpo does to a group depends on its micro-batch",
        ),
    ],
)
def test_what_cannot_be_predicted_has_a_reason(section, reason):
    assert why_no_influence(build(section)).startswith(reason)


def constant_model():
    """Whose last hidden state is the same everywhere, and only whose head is trained.

    The probabilities of tokens 20 and 21 are 0.3 and 0.1 at every position, all others' the same.
    """
    policy = model_of(0)
    size = policy.config.n_embd
    hidden = torch.linspace(-1.0, 2.0, size, dtype=torch.float64)
    logps = torch.full((100, 1), 0.6 / 98, dtype=torch.float64)
    logps[20], logps[21] = 0.3, 0.1
    policy.requires_grad_(False)
    policy.lm_head.weight = torch.nn.Parameter(logps.log() * hidden / hidden.square().sum())
    policy.transformer.ln_f.weight.zero_()
    policy.transformer.ln_f.bias.copy_(hidden)
    return policy, hidden.square().sum()


def pair_of(suffix):
    return collate(
        [
            TokenizedRecord(
                id="r",
                prompt_ids=torch.tensor([5, 9]),
                response_ids=tuple(torch.tensor([first, *suffix]) for first in (20, 21)),
                scores=(1.0, 0.0),
            )
        ]
    )


def test_pairs_that_differ_in_one_token_have_a_negative_product():
    """Theorem 1 of 2410.13828: what makes one token likelier makes the other one less likely."""
    policy, size = constant_model()

    gram = GramMeter(policy).measure(pair_of([])).total

    # |h|^2 <e_w - p, e_l - p> = |h|^2 (-p_w - p_l + |p|^2), with 98 other tokens in |p|^2.
    expected = -0.3 - 0.1 + 0.3**2 + 0.1**2 + 98 * (0.6 / 98) ** 2
    assert expected < 0
    torch.testing.assert_close(gram[0, 1], size * expected)


@pytest.mark.parametrize("num_shared", [0, 3, 5, 20])
def test_a_shared_suffix_pulls_the_chosen_response_down_and_a_long_one_lowers_both(num_shared):
    """Theorem 3 of 2410.13828, where the suffix finds the chosen token likelier than the other."""
    policy, size = constant_model()
    gram = GramMeter(policy).measure(pair_of(range(40, 40 + num_shared))).total

    changes = predicted_changes(influence_of(gram, torch.tensor([-1.0, 1.0]).double()))

    # Along e_w - e_l: 1 - p_w + p_l of the token itself, p_l - p_w of each one after it.
    chosen = 1 - 0.3 + 0.1 - num_shared * (0.3 - 0.1)
    rejected = -1 - 0.3 + 0.1 - num_shared * (0.3 - 0.1)
    torch.testing.assert_close(changes, size * torch.tensor([chosen, rejected]).double())
    assert class_of(*changes.tolist()) == ("ideal" if num_shared < 4 else "both_fall")


def test_a_whole_step_is_the_sum_over_its_groups():
    """With as many groups as are measured together nothing is estimated."""
    meter, measured, denominators = measured_of({"name": "dpo", "beta": 0.5}, 2, num=3)
    records, policy = records_of(2, 3), meter.model
    groups = [
        DiagnosedGroup(
            number=number,
            batch=batch,
            found=found,
            pairs=pairs_of(found.gram.total, *_scores(batch)),
            of_part={},
            of_depth={},
        )
        for number, (batch, found) in enumerate(measured)
    ]

    found = changes_of_step(groups, GramMeter(policy), records.__getitem__, torch.device("cpu"), 3)

    # By hand: the gradient of the mean loss, and of each log-prob.
    parameters = list(policy.parameters())
    total = sum(
        torch.cat([g.flatten() for g in meter.gradients(g_.batch, denominators).values()]) / 3
        for g_ in groups
    )
    changes = []
    for group in groups:
        logps = group.batch.sum_over_tokens(token_logps(policy, group.batch))[0]
        chosen, rejected = logps[1], logps[0]
        for logp in (chosen, rejected):
            each = torch.autograd.grad(logp, parameters, retain_graph=True)
            changes.append(-(torch.cat([g.flatten() for g in each]) @ total))
    expected = torch.stack(changes).reshape(3, 2)
    assert found["whole"]["chosen"] == pytest.approx(expected[:, 0].mean().item(), rel=1e-8)
    assert found["whole"]["rejected"] == pytest.approx(expected[:, 1].mean().item(), rel=1e-8)
    assert found["share_chosen_falls"] == (expected[:, 0] < 0).double().mean().item()
    assert found["num_pairs"] == 3
    own = [predicted_changes(group.influence)[1].item() / 3 for group in groups]
    assert found["own"]["chosen"] == pytest.approx(sum(own) / 3, rel=1e-8)


@pytest.mark.parametrize(("normalises", "expected"), [(False, "both_fall"), (True, "ideal")])
def test_normalising_keeps_a_long_suffix_from_lowering_the_chosen_response(normalises, expected):
    policy, _ = constant_model()
    objective, batch = build({"name": "dpo"}), pair_of(range(40, 60))
    twin = FrozenCopy(constant_model()[0])
    meter = InfluenceMeter(objective, GramMeter(policy), twin, policy, normalises=normalises)

    denominators = denominators_of(batch, objective)
    found = meter.measure(batch, denominators)

    assert class_of(*predicted_changes(found.influence).tolist()) == expected
    rates = small_rates([found], (1e-2, 1e-3))
    verified = verify(meter, [(batch, found)], denominators, rates)
    assert verified.sign_agreement == [1.0, 1.0]


def test_a_token_map_adds_up_to_the_product_of_two_responses():
    policy, record = model_of(0), records_of(3)[0]
    gram = GramMeter(policy).measure(collate([record])).total

    found = token_map(GramMeter(policy), record, 2, 0, torch.device("cpu"))

    assert found.products.shape == (len(record.response_ids[2]), len(record.response_ids[0]))
    torch.testing.assert_close(found.products.sum(), gram[2, 0])
    assert found.cosines.abs().max() <= 1 + 1e-9
    # One entry by explicit gradients: the last token of one response, the first of the other.
    logps = token_logps(policy, collate([record]))
    lengths = [len(ids) for ids in record.response_ids]
    flat = [
        torch.cat(
            [
                g.flatten()
                for g in torch.autograd.grad(x, list(policy.parameters()), retain_graph=True)
            ]
        )
        for x in (logps[sum(lengths) - 1], logps[0])
    ]
    torch.testing.assert_close(found.products[-1, 0], flat[0] @ flat[1])
