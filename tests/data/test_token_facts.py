"""Facts about single tokens: which ones differ, and numbers drawn for them."""

import torch

from prefopt.data.token_facts import differing_tokens, token_noise
from prefopt.types import TokenizedRecord


def record(*responses: list[int], scores: tuple[float, ...], id: str = "r") -> TokenizedRecord:
    return TokenizedRecord(
        id=id,
        prompt_ids=torch.tensor([1]),
        response_ids=tuple(torch.tensor(ids) for ids in responses),
        scores=scores,
    )


def differs(*responses: list[int], scores: tuple[float, ...]) -> list[list[bool]]:
    return [each.tolist() for each in differing_tokens(record(*responses, scores=scores))]


def test_tokens_that_the_other_response_lacks_differ():
    # 5 6 [7] 8 9 against 5 6 [3 4] 8 9
    found = differs([5, 6, 7, 8, 9], [5, 6, 3, 4, 8, 9], scores=(1.0, 0.0))

    assert found == [
        [False, False, True, False, False],
        [False, False, True, True, False, False],
    ]


def test_a_token_that_moved_differs_on_both_sides():
    assert differs([5, 6, 7], [7, 5, 6], scores=(0.0, 1.0)) == [
        [False, False, True],
        [True, False, False],
    ]


def test_nothing_differs_between_best_and_worst_or_without_an_order():
    assert differs([5, 6], [7], [8], scores=(2.0, 1.0, 0.0)) == [[True, True], [False], [True]]
    assert differs([5, 6], [7, 8], scores=(1.0, 1.0)) == [[False, False], [False, False]]
    assert differs([5, 6], scores=(1.0,)) == [[False, False]]


def test_a_token_that_is_everywhere_is_not_taken_for_noise():
    # difflib's own rule would ignore it in sequences of 200 and more.
    same = [3] * 150 + [4] * 150

    found = differs([9, *same], [8, *same], scores=(1.0, 0.0))

    assert found == [[True, *[False] * 300]] * 2


def test_noise_is_uniform_and_the_same_for_the_same_key():
    long = record(list(range(20000)), scores=(1.0,))

    (noise,), (again,) = token_noise(long, [0, 3, 5]), token_noise(long, [0, 3, 5])

    assert torch.equal(noise, again)
    assert ((noise >= 0) & (noise < 1)).all()
    # Mean 1/2 and variance 1/12 of 20000 draws: 6 standard errors are 0.012 and 0.0023.
    assert abs(noise.mean() - 1 / 2) < 0.012
    assert abs(noise.var() - 1 / 12) < 0.004


def test_seed_epoch_step_record_and_response_each_change_the_draw():
    pair = record([1, 2, 3], [1, 2, 3], scores=(1.0, 0.0))
    keys = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]

    draws = [tuple(noise.tolist()) for key in keys for noise in token_noise(pair, key)]
    other = record([1, 2, 3], scores=(1.0,), id="s")
    draws += [tuple(noise.tolist()) for noise in token_noise(other, [0, 0, 0])]

    assert len(set(draws)) == len(draws) == 9


def test_a_draw_depends_on_the_position_and_not_on_what_follows():
    short, long = record([1, 2], scores=(1.0,)), record([8, 9, 7, 6], scores=(1.0,))

    (of_short,), (of_long,) = token_noise(short, [4, 0, 0]), token_noise(long, [4, 0, 0])

    assert torch.equal(of_short, of_long[:2])
