"""Where the pieces of a flat row lie, counted by hand."""

from prefopt.ops.segments import Piece, Segments
from prefopt.types import Layout

# Prompts of 3 and 2 tokens. The first has responses of 4 and 5 tokens in slots 0 and 2 of three,
# the second one of 6 in slot 1, which is slot 3 + 1.
LAYOUT = Layout(
    prompt_lengths=(3, 2), response_lengths=(4, 5, 6), response_slots=(0, 2, 4), num_slots=3
)


def test_a_packed_row_has_each_response_behind_a_copy_of_its_prompt():
    packed = Segments.packed(LAYOUT)

    assert packed.prompt_lengths == (3 + 4, 3 + 5, 2 + 6)
    assert packed.num_tokens == 23
    assert packed.longest == 8
    bounds = [(0, 7), (7, 15), (15, 23)]
    assert list(packed.groups()) == [(Piece(*ends), []) for ends in bounds]


def test_a_shared_row_has_each_prompt_once_and_then_all_responses():
    shared = Segments.shared(LAYOUT)

    assert shared.response_lengths == ((4, 5), (6,))
    assert (shared.num_prompt_tokens, shared.num_tokens, shared.longest) == (5, 20, 8)
    first, second = Piece(0, 3), Piece(3, 5)
    responses = [(first, Piece(5, 9)), (first, Piece(9, 14)), (second, Piece(14, 20))]
    assert list(shared.continuations()) == responses
    nothing = [(Piece(0, 0), first), (Piece(3, 3), second)]
    assert list(shared.pieces()) == [*nothing, *responses]
