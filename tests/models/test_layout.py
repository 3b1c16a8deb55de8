"""Padded rows, the oracle of every other layout: the texts of the records, scored in order."""

import pytest
import torch
from transformers import LlamaForCausalLM

from prefopt.data.collate import collate
from prefopt.models.head import install_logp_head
from prefopt.models.layout import to_padded_rows, token_logps
from tests.support.batches import random_records
from tests.support.tiny import tiny_config


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(tiny_config()).double()


def test_each_padded_row_is_a_prompt_with_one_of_its_responses():
    records = random_records(7)

    rows = to_padded_rows(collate(records))

    texts = [
        record.prompt_ids.tolist() + response.tolist()
        for record in records
        for response in record.response_ids
    ]
    found = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(rows.input_ids, rows.attention_mask, strict=True)
    ]
    assert found == texts
    # Padding is on the right, and as short as it can be.
    assert (rows.attention_mask.diff(dim=1) <= 0).all()
    assert rows.input_ids.shape[1] == max(map(len, texts))


def test_each_scored_token_is_predicted_by_the_token_before_it():
    records = random_records(7)
    batch = collate(records)

    rows = to_padded_rows(batch)

    texts = [(r.prompt_ids, response) for r in records for response in r.response_ids]
    width = rows.input_ids.shape[1]
    expected = [
        row * width + len(prompt) + position - 1
        for row, (prompt, response) in enumerate(texts)
        for position in range(len(response))
    ]
    assert rows.predictors.tolist() == expected
    # The token after each predictor is the target.
    assert torch.equal(rows.input_ids.flatten()[rows.predictors + 1], batch.targets)


def test_log_probs_are_those_of_each_response_run_alone_through_the_plain_model():
    records = random_records(6)
    plain = tiny_model()
    scored = tiny_model()
    install_logp_head(scored)

    logps = token_logps(scored, collate(records))

    expected = []
    for record in records:
        for response in record.response_ids:
            ids = torch.cat([record.prompt_ids, response]).unsqueeze(0)
            every = torch.log_softmax(plain(input_ids=ids).logits[0], dim=-1)
            first = len(record.prompt_ids) - 1
            expected += [
                every[first + i, token].item() for i, token in enumerate(response.tolist())
            ]
    difference = (logps - torch.tensor(expected, dtype=torch.float64)).abs().max()
    assert difference < 1e-12


def test_gradients_are_those_of_the_plain_model():
    (record,) = random_records(4)[3:]
    plain, scored = tiny_model(), tiny_model()
    install_logp_head(scored)

    token_logps(scored, collate([record])).sum().backward()

    total = torch.zeros((), dtype=torch.float64)
    for response in record.response_ids:
        ids = torch.cat([record.prompt_ids, response]).unsqueeze(0)
        first = len(record.prompt_ids) - 1
        logits = plain(input_ids=ids).logits[0, first : first + len(response)]
        total = total - torch.nn.functional.cross_entropy(logits, response, reduction="sum")
    total.backward()
    for ours, theirs in zip(scored.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("num", [1, 2, 5])
def test_the_company_of_other_groups_changes_nothing(num: int):
    records = random_records(num)
    model = tiny_model()
    install_logp_head(model)

    together = token_logps(model, collate(records))

    alone = torch.cat([token_logps(model, collate([record])) for record in records])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-12)
