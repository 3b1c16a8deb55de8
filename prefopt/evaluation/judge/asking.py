"""Several questions in flight; replies are taken one by one, in order of arrival."""

import logging
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice
from types import FrameType

from prefopt.evaluation.judge.base import Judge, JudgeUnusable, one_line
from prefopt.evaluation.types import Question, Reply

# How soon Ctrl-C is noticed.
_SECONDS_TO_LOOK_UP = 0.2
_MOST_FAILED_IN_A_ROW = 64


def ask_all(
    judge: Judge, questions: Sequence[Question], take: Callable[[int, Reply], None]
) -> None:
    """Put questions to a judge, at most `judge.num_in_flight` at the same time.

    The first question is asked alone: what would go wrong with all of them is known after one.
    After Ctrl-C nothing more is asked, and replies to questions in flight are waited for and taken.

    Args:
        judge: whom to ask.
        questions: what.
        take: called in the calling thread with the index of each question and its reply.

    Raises:
        JudgeUnusable: if the very first question could not be answered for a reason that holds
            for all; later such errors become replies of status api_error. Also if so many of
            them come in a row that the rest would fail, too.
        KeyboardInterrupt: after Ctrl-C; a second Ctrl-C does not wait.
    """
    if not questions:
        return
    take = _until_all_fail(take)
    pool = ThreadPoolExecutor(judge.num_in_flight)
    running: dict[Future[Reply], int] = {}
    with _interrupts() as is_interrupted:
        try:
            running[pool.submit(judge.ask, questions[0])] = 0
            while running:
                _take_done(running, take)
            rest = iter(range(1, len(questions)))
            while not is_interrupted():
                for index in islice(rest, judge.num_in_flight - len(running)):
                    running[pool.submit(_ask, judge, questions[index])] = index
                if not running:
                    break
                _take_done(running, take)
            if is_interrupted() and running:
                logging.getLogger(__name__).warning(
                    "Interrupted: waiting for %d replies in flight. Ctrl-C again leaves them.",
                    len(running),
                )
            while running:
                _take_done(running, take)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if is_interrupted():
            raise KeyboardInterrupt


def _until_all_fail(take: Callable[[int, Reply], None]) -> Callable[[int, Reply], None]:
    """`take`, and an end to it where nothing but errors of the API comes."""
    num_failed = 0

    def taken(index: int, reply: Reply) -> None:
        nonlocal num_failed
        take(index, reply)
        num_failed = num_failed + 1 if reply.status == "api_error" else 0
        if num_failed == _MOST_FAILED_IN_A_ROW:
            raise JudgeUnusable(
                f"judge: {num_failed} questions in a row failed, the last one by: {reply.problem}. "
                "What was answered is kept; run again when the server is well."
            )

    return taken


def _take_done(running: dict[Future[Reply], int], take: Callable[[int, Reply], None]) -> None:
    done, _ = wait(running, timeout=_SECONDS_TO_LOOK_UP, return_when=FIRST_COMPLETED)
    for future in done:
        index = running.pop(future)
        take(index, future.result())


def _ask(judge: Judge, question: Question) -> Reply:
    try:
        return judge.ask(question)
    except JudgeUnusable as error:
        return Reply(status="api_error", problem=one_line(str(error)))


@contextmanager
def _interrupts() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed; the second one interrupts at once.

    A line that is being written would else be torn.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, frame: FrameType | None) -> None:
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
