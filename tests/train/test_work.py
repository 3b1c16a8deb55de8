"""Floating-point operations, counted product by product."""

from itertools import product

import pytest

from prefopt.train.work import Tokens, Work

GROUPS = [(2, (1, 3)), (5, (4,)), (1, (2, 2, 3))]


def visible_pairs(prompt: int, responses: tuple[int, ...]) -> int:
    """Counted token by token: (segment, position) sees what is before it in its own or the prompt's
    segment, and itself."""
    lengths = (prompt, *responses)
    tokens = [(s, position) for s, length in enumerate(lengths) for position in range(length)]
    return sum(
        (key[0] == 0 and query[0] > 0) or (key[0] == query[0] and key[1] <= query[1])
        for query, key in product(tokens, tokens)
    )


@pytest.mark.parametrize(("prompt", "responses"), GROUPS)
def test_tokens_of_a_group_count_its_prompt_once_and_pairs_as_a_mask_has_them(prompt, responses):
    tokens = Tokens.of(prompt, responses)

    assert tokens.unique == prompt + sum(responses)
    assert tokens.scored == sum(responses)
    assert tokens.visible == visible_pairs(prompt, responses)


def test_tokens_of_groups_add_up():
    total = Tokens.of(2, (1, 3)) + Tokens.of(5, (4,))

    assert (total.unique, total.scored) == (6 + 9, 4 + 4)
    assert total.times(3).visible == 3 * (visible_pairs(2, (1, 3)) + visible_pairs(5, (4,)))


def operations_of_products(layers: list[tuple[int, int]], num_tokens: int) -> int:
    """A multiplication and an addition for every weight and token, one at a time."""
    return sum(2 for outputs, inputs in layers for _ in range(outputs * inputs * num_tokens))


def test_a_forward_pass_is_all_products_of_all_its_tokens():
    layers, head, heads, size = [(4, 3), (3, 4)], (7, 3), 2, 5
    work = Work(num_body_weights=24, num_head_weights=21, attention_width=2 * heads * size)

    # Two layers of attention: a product of sizes for each score, and one for each value.
    attention = sum(2 * 2 * size for _ in range(2 * heads * visible_pairs(2, (1, 3))))
    expected = operations_of_products(layers, 6) + operations_of_products([head], 4) + attention
    assert work.forward(Tokens.of(2, (1, 3))) == expected


def test_training_is_three_forward_passes():
    work = Work(num_body_weights=10, num_head_weights=6, attention_width=4)

    # 6 unique and 4 scored tokens, 3 + 1 + 6 + 2 * 4 = 18 visible pairs.
    forward = 2 * 10 * 6 + 2 * 6 * 4 + 4 * 4 * 18
    assert work.forward(Tokens.of(2, (1, 3))) == forward
    assert work.training(Tokens.of(2, (1, 3))) == 3 * forward == 1368


def test_an_adapter_saves_the_gradient_of_frozen_weights():
    work = Work(num_body_weights=10, num_head_weights=6, attention_width=4, num_adapter_weights=5)

    products, attention, adapter = 2 * 10 * 6 + 2 * 6 * 4, 4 * 4 * 18, 5 * 6
    expected = 2 * products + 3 * attention + 6 * adapter
    assert work.training(Tokens.of(2, (1, 3))) == expected == 1380


def test_recomputation_runs_the_layers_again_and_not_the_head():
    work = Work(num_body_weights=10, num_head_weights=6, attention_width=4)

    assert work.recomputation(Tokens.of(2, (1, 3))) == 2 * 10 * 6 + 4 * 4 * 18
