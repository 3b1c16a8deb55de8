"""How the command line reads a bare `--resume`, and how it says what ended a command."""

import sys
import time
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from prefopt.errors import UserError
from prefopt.evaluation.extras import missing_package
from prefopt.train.failures import SECONDS_FOR_FIRST, leave, leaves_first, rank
from prefopt.train.signals import Stopped, StopReason

_USER_ERROR_EXIT_CODE = 2
# How long the first process may close its trackers before others of the launch leave.
_SECONDS_TO_TIDY_UP = 20.0


class Prefopt(TyperGroup):
    """The group of all commands, with the error line and the optional value of `--resume`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parsed arguments, after a bare `--resume` got its value."""
        return super().parse_args(ctx, _spell_out_resume(args))

    def invoke(self, ctx: Any) -> Any:
        """What the command returns; a mistake of the user becomes one line and exit code 2."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            _say_error(str(error))
            leave(_USER_ERROR_EXIT_CODE)
            raise typer.Exit(_USER_ERROR_EXIT_CODE) from error
        except ModuleNotFoundError as error:
            problem = missing_package(error)
            if problem is None:
                raise
            _say_error(str(problem))
            raise typer.Exit(_USER_ERROR_EXIT_CODE) from error
        except KeyboardInterrupt as interrupt:
            if rank() == 0:
                typer.secho("Interrupted.", fg=typer.colors.YELLOW, file=sys.stderr)
            raise typer.Exit(StopReason.INTERRUPT.exit_code) from interrupt
        except Stopped as stopped:
            _leave_stopped(stopped)
            raise typer.Exit(stopped.reason.exit_code) from stopped


def _spell_out_resume(arguments: Sequence[str]) -> list[str]:
    """The arguments with `auto` after each `--resume` that no path follows."""
    spelled: list[str] = []
    for argument, following in zip(arguments, [*arguments, ""][1:], strict=True):
        spelled.append(argument)
        if argument == "--resume" and not _is_resume_value(following):
            spelled.append("auto")
    return spelled


def _is_resume_value(argument: str) -> bool:
    is_recipe = argument.endswith((".yaml", ".yml"))
    is_override = "=" in argument
    return bool(argument) and not (argument.startswith("-") or is_recipe or is_override)


def _say_error(message: str) -> None:
    """Print the error line once, although every process of a run may come to the same error.

    A launcher ends all processes when the first one fails. So the others let the first one speak,
    and who is still there after a while has an error of its own.
    """
    if rank() > 0:
        time.sleep(SECONDS_FOR_FIRST)
    # Those that fail because this process leaves then know that it has spoken.
    leaves_first()
    of_process = f" (process {rank()})" if rank() > 0 else ""
    typer.secho(f"error{of_process}: {message}", fg=typer.colors.RED, file=sys.stderr)


def _leave_stopped(stopped: Stopped) -> None:
    """Say once that the command was stopped, and end every process but one that has to tidy up.

    Where all have saved, the first process speaks and closes its trackers on its usual way out,
    and the others give it time: the launcher ends them when the first of them leaves.
    """
    speaks = rank() == 0 if stopped.has_saved else leaves_first()
    if speaks:
        line = f"Stopped {stopped} Exit code {stopped.reason.exit_code}."
        typer.secho(line, fg=typer.colors.YELLOW, file=sys.stderr)
    if not stopped.has_saved:
        leave(stopped.reason.exit_code)
    elif rank() > 0:
        time.sleep(_SECONDS_TO_TIDY_UP)
        leave(stopped.reason.exit_code)
