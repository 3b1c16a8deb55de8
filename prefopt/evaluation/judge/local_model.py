"""Where a judge that runs in this process computes."""

import sys

import torch
from transformers.utils import logging

from prefopt.errors import UserError
from prefopt.models.tokenizer import first_line


def device_of(name: str | None) -> torch.device:
    """The named device; without a name the GPU if there is one.

    Raises:
        UserError: if there is no such device.
    """
    if name is None:
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"judge.device: cannot use '{name}': {first_line(error)}") from None


def hush_loading() -> None:
    """Draw no bars of loading weights where no terminal is."""
    if not sys.stderr.isatty():
        logging.disable_progress_bar()
