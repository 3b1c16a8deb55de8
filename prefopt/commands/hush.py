"""No progress bars of transformers where nobody watches: in a log file every step is a line."""

import sys

from transformers.utils import logging


def hush() -> None:
    """Leave them out unless standard error is a terminal."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
