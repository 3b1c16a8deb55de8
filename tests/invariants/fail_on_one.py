"""`prefopt train` with a fault in one process; test_stop.py looks at how the others take it.

Usage: fail_on_one.py KIND RECIPE, below accelerate launch. In the second step process 1 raises an
exception or a UserError, or is killed, with KIND `exception`, `mistake` or `killed`.
"""

import os
import signal
import sys
from unittest.mock import patch

from prefopt.cli import main
from prefopt.errors import UserError
from prefopt.train.step_losses import StepLosses


def fail(kind: str) -> None:
    """What KIND says."""
    if kind == "exception":
        raise ZeroDivisionError("the fault of this test")
    if kind == "mistake":
        raise UserError("the mistake of this test.")
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    loss_of, calls = StepLosses.loss_of, []

    def loss_with_fault(self: StepLosses, number: int) -> object:
        calls.append(number)
        if os.environ["RANK"] == "1" and calls.count(0) == 2:
            fail(sys.argv[1])
        return loss_of(self, number)

    with patch.object(StepLosses, "loss_of", loss_with_fault):
        main(["train", sys.argv[2]])
