"""What all processes of a launch must have in common before any of them loads weights."""

import json
import socket
from collections.abc import Mapping
from typing import Any

import xxhash
from accelerate import PartialState
from accelerate.utils import gather_object

from prefopt.errors import UserError

_NUM_NAMED = 4
# Where one process works, or with how many workers, says nothing of what it computes.
_MAY_DIFFER = ("data.cache_dir", "data.num_workers", "training.dataloader_num_workers")


def check_agreement(facts: Mapping[str, Any], way_out: str) -> None:
    """Refuse to start where facts differ between processes; every process must call this.

    Hashes are compared, and the facts themselves travel only where those differ.

    Args:
        facts: values by the name that an error gives them, such as a recipe's key.
        way_out: what to do about a difference, as a sentence.

    Raises:
        UserError: on all processes, naming what differs, and one process and host of each value.
    """
    mine = {name: _text(value) for name, value in facts.items() if name not in _MAY_DIFFER}
    digest = xxhash.xxh3_128_hexdigest(json.dumps(mine, sort_keys=True).encode())
    if len(set(gather_object([digest]))) == 1:
        return
    holder = f"process {PartialState().process_index} on {socket.gethostname()}"
    everywhere: list[tuple[str, dict[str, str]]] = gather_object([(holder, mine)])
    names = dict.fromkeys(name for _, theirs in everywhere for name in theirs)
    different = [line for name in names if (line := _difference(name, everywhere))]
    more = f"; and {len(different) - _NUM_NAMED} more" if len(different) > _NUM_NAMED else ""
    raise UserError(f"{'; '.join(different[:_NUM_NAMED])}{more}. {way_out}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _difference(name: str, everywhere: list[tuple[str, dict[str, str]]]) -> str | None:
    """`name differs: 1 (process 0 on here), 2 (process 1 on there and 6 others)`."""
    holders: dict[str, list[str]] = {}
    for holder, theirs in everywhere:
        holders.setdefault(theirs.get(name, "unset"), []).append(holder)
    if len(holders) == 1:
        return None
    values = [
        f"{value} ({first}{f' and {len(others)} more' if others else ''})"
        for value, (first, *others) in holders.items()
    ]
    return f"{name} differs between processes: {', '.join(values)}"
