"""What the processes of a launch must agree on."""

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from prefopt.errors import UserError

Answer = TypeVar("Answer")


def on_first_process(action: Callable[[], Answer]) -> Answer:
    """What the action returns or refuses on the first process, on all of them."""
    state = PartialState()
    answer: list[Any] = [None, None]
    if state.is_main_process:
        try:
            answer[0] = action()
        except UserError as error:
            answer[1] = str(error)
    if state.num_processes > 1:
        broadcast_object_list(answer)
    if answer[1] is not None:
        raise UserError(answer[1])
    result: Answer = answer[0]
    return result


def on_first_of_each_node(action: Callable[[], Answer]) -> list[Answer]:
    """What the action returns on the first process of every node, on all processes.

    Raises:
        UserError: on all of them, if it is refused on any.
    """
    answers: list[tuple[Answer | None, str | None]] = []
    if PartialState().is_local_main_process:
        try:
            answers.append((action(), None))
        except UserError as error:
            answers.append((None, str(error)))
    answers = gather_object(answers)
    for _, refusal in answers:
        if refusal is not None:
            raise UserError(refusal)
    # None is then an answer like any other.
    results: list[Any] = [answer for answer, _ in answers]
    return results
