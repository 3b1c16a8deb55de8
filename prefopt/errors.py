"""The one error that a user can cause, and the words that help them out of it."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake in a recipe, in data or in a folder: one line that says what, where and the way out.

    The command line prints it without a traceback and exits with code 2.
    """


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`Did you mean 'beta'? Known: beta, tau.`, without the question if nothing known is near."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1)
    question = f"Did you mean '{near[0]}'? " if near else ""
    return f"{question}Known: {', '.join(names)}."
