import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from prefopt.evaluation.generate.sampling import RowSampler, tokens_at, uniforms_of

LOGITS = torch.tensor([[0.0, 2.0, -1.0, 1.0, -torch.inf]])
MANY = 10_000


def shares(logits, **settings):
    """How often each token is taken when uniforms are evenly spaced."""
    uniforms = ((torch.arange(MANY) + 0.5) / MANY)[:, None]
    temperature = settings.pop("temperature", 1.0)
    settings = {"top_k": 0, "top_p": 1.0, **settings}
    sampler = RowSampler(uniforms.double(), [temperature] * MANY, width=3, **settings)
    ids = torch.zeros(MANY, 3, dtype=torch.int64)
    scores = sampler(ids, logits.expand(MANY, -1).contiguous())
    assert (scores.isfinite().sum(1) == 1).all()
    return scores.argmax(1).bincount(minlength=logits.shape[1]) / MANY


def test_tokens_are_as_frequent_as_they_are_probable():
    torch.testing.assert_close(shares(LOGITS), LOGITS.softmax(1)[0], atol=2e-4, rtol=0)


def test_temperature_top_k_and_top_p_are_those_of_transformers():
    cooled = LOGITS / 0.5
    ids = torch.zeros(1, 3, dtype=torch.int64)
    by_k = TopKLogitsWarper(2)(ids, cooled)
    by_both = TopPLogitsWarper(0.7)(ids, TopKLogitsWarper(3)(ids, LOGITS))

    found = shares(LOGITS, temperature=0.5, top_k=2)
    torch.testing.assert_close(found, by_k.softmax(1)[0], atol=2e-4, rtol=0)
    found = shares(LOGITS, top_k=3, top_p=0.7)
    torch.testing.assert_close(found, by_both.softmax(1)[0], atol=2e-4, rtol=0)


def test_rows_at_temperature_0_stay_as_they_are():
    scores = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    sampler = RowSampler(uniforms_of([1, 2], 4), [0.0, 1.0], width=3, top_k=0, top_p=1.0)

    found = sampler(torch.zeros(2, 3, dtype=torch.int64), scores)

    torch.testing.assert_close(found[0], scores[0])
    assert found[1].isfinite().sum() == 1


def test_nothing_improbable_is_drawn_at_the_ends():
    logits = torch.tensor([[-torch.inf, 1.0, 0.0, -torch.inf]])

    assert tokens_at(logits, torch.tensor([0.0], dtype=torch.float64)).item() == 1
    almost = torch.nextafter(torch.ones(1, dtype=torch.float64), torch.zeros(1))
    assert tokens_at(logits, almost).item() == 2
    # Beyond the half-open range, where rounding may lead.
    assert tokens_at(logits, torch.tensor([1.0], dtype=torch.float64)).item() == 2


def test_each_step_has_a_number_of_its_own():
    uniforms = torch.tensor([[0.01, 0.99]], dtype=torch.float64)
    sampler = RowSampler(uniforms, [1.0], width=3, top_k=0, top_p=1.0)
    logits = torch.zeros(1, 10)

    first = sampler(torch.zeros(1, 3, dtype=torch.int64), logits)
    second = sampler(torch.zeros(1, 4, dtype=torch.int64), logits)

    assert (first.argmax().item(), second.argmax().item()) == (0, 9)


def test_seeds_make_numbers_that_are_their_own():
    several = uniforms_of([5, 6], 8)

    torch.testing.assert_close(several[1:], uniforms_of([6], 8))
    assert not torch.equal(several[0], several[1])
    assert several.dtype == torch.float64
    assert pytest.approx(0.5, abs=0.02) == uniforms_of([0], 10_000).mean().item()
