"""Held-out records: by prompt, so that none is on both sides."""

import numpy as np
from jaxtyping import Int, UInt

from prefopt.data.store import TokenStore
from prefopt.errors import UserError

_MIX_1, _MIX_2, _STEP = (
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
    np.uint64(0x9E3779B97F4A7C15),
)
"""Constants of splitmix64 (Steele, Lea and Flood, 2014): a bijection that scatters its input."""


def hold_out(
    store: TokenStore, *, fraction: float | None, num_groups: int | None, seed: int
) -> tuple[TokenStore, TokenStore]:
    """Training and held-out records.

    Prompts are drawn by a seeded hash of their text until the wanted number of records is reached,
    so that a prompt's place in the draw does not depend on the rest of the data.

    Args:
        store: all records.
        fraction: share of the records to hold out, at least one record.
        num_groups: or their number.
        seed: another one draws other prompts.

    Raises:
        UserError: if nothing would be left to train on.
    """
    wanted = num_groups if fraction is None else max(1, round(fraction * len(store)))
    assert wanted is not None
    order, sizes, prompt_of_record = _drawn(store.prompt_hashes, seed)
    num_prompts = int(np.searchsorted(np.cumsum(sizes[order]), wanted)) + 1
    if num_prompts >= len(order):
        raise UserError(
            f"data.evaluation: holding out {wanted} of {len(store)} records with {len(order)} "
            "different prompts leaves nothing to train on. Hold out fewer."
        )
    is_held_out = np.zeros(len(order), dtype=bool)
    is_held_out[order[:num_prompts]] = True
    held_out = is_held_out[prompt_of_record]
    train, evaluation = np.flatnonzero(~held_out), np.flatnonzero(held_out)
    return store.subset(train), store.subset(evaluation)


def num_shared_prompts(one: TokenStore, other: TokenStore) -> int:
    """Different prompts that both have."""
    return len(np.intersect1d(one.prompt_hashes, other.prompt_hashes))


def _drawn(
    hashes: UInt[np.ndarray, " n"], seed: int
) -> tuple[Int[np.ndarray, " p"], Int[np.ndarray, " p"], Int[np.ndarray, " n"]]:
    """Order in which prompts are drawn, records per prompt, and the prompt of each record."""
    prompts, prompt_of_record, sizes = np.unique(hashes, return_inverse=True, return_counts=True)
    keys = _scattered(prompts ^ _scattered(np.array([seed], dtype=np.uint64)))
    return np.argsort(keys, kind="stable"), sizes, prompt_of_record


def _scattered(values: UInt[np.ndarray, " n"]) -> UInt[np.ndarray, " n"]:
    """The output function of splitmix64."""
    values = values + _STEP
    values = (values ^ (values >> np.uint64(30))) * _MIX_1
    values = (values ^ (values >> np.uint64(27))) * _MIX_2
    return np.asarray(values ^ (values >> np.uint64(31)))
