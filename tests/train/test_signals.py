"""What a signal does before training, during it, and twice."""

import os
import signal
import subprocess
import sys
import textwrap

import pytest

from prefopt.train.signals import SIGNALS, Stopped, StopReason

ASKING = [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT]


def in_a_process(script: str) -> subprocess.CompletedProcess[str]:
    header = "import os, signal, time\nfrom prefopt.train.signals import SIGNALS, Stopped\n"
    return subprocess.run(
        [sys.executable, "-c", header + textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("number", ASKING)
def test_before_the_first_step_a_signal_ends_the_command(number: signal.Signals):
    with SIGNALS.heard(), pytest.raises(Stopped) as stopped:
        os.kill(os.getpid(), number)

    # Not even what catches every error may hold it up.
    assert not isinstance(stopped.value, Exception)

    assert not stopped.value.has_saved
    assert number.name in str(stopped.value)
    assert stopped.value.reason.exit_code == (130 if number == signal.SIGINT else 75)


@pytest.mark.parametrize("number", ASKING)
def test_during_training_a_signal_is_kept(number: signal.Signals):
    with SIGNALS.heard():
        SIGNALS.keep()
        assert SIGNALS.asked is None
        os.kill(os.getpid(), number)
        reason = StopReason.INTERRUPT if number == signal.SIGINT else StopReason.SIGNAL
        assert SIGNALS.asked is reason
        # The same key press, by way of a terminal and of a launcher.
        os.kill(os.getpid(), number)
        assert SIGNALS.asked is reason


def raise_another_error() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    except BaseException as error:
        raise ImportError("no such module") from error


def test_an_error_that_a_library_makes_of_it_is_no_error():
    with pytest.raises(Stopped), SIGNALS.heard():
        raise_another_error()


@pytest.mark.parametrize(("first", "code"), [("SIGTERM", 75), ("SIGINT", 130)])
def test_a_second_signal_ends_the_process_at_once(first: str, code: int):
    done = in_a_process(f"""
        with SIGNALS.heard():
            SIGNALS.keep()
            os.kill(os.getpid(), signal.{first})
            time.sleep(1.1)
            print("still here", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            print("not here", flush=True)
    """)

    assert (done.returncode, done.stdout, done.stderr) == (code, "still here\n", "")


def test_a_forked_worker_goes_without_a_word():
    done = in_a_process("""
        with SIGNALS.heard():
            read, write = os.pipe()
            child = os.fork()
            if child == 0:
                os.write(write, b"ready")
                time.sleep(20)
                os._exit(1)
            os.read(read, 5)
            os.kill(child, signal.SIGTERM)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            print(SIGNALS.asked)
    """)

    assert (done.returncode, done.stdout, done.stderr) == (0, "75\nNone\n", "")


def test_afterwards_signals_do_what_they_did_before():
    before = [signal.getsignal(number) for number in ASKING]

    with SIGNALS.heard():
        assert [signal.getsignal(number) for number in ASKING] != before

    assert [signal.getsignal(number) for number in ASKING] == before
