"""Comparisons of two answers as arrays, and whether strengths can be told from them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from prefopt.errors import UserError

_KNOWN_SHARE = 1e-3


class NotEstimableError(UserError):
    """Comparisons that no finite strengths explain best; the message says which and why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Battles:
    """Answers that were shown to a judge, one entry per showing."""

    names: tuple[str, ...]
    """What is compared; `first` and `second` are indices into it."""
    first: Int[np.ndarray, " battles"]
    """Whose answer is shown first."""
    second: Int[np.ndarray, " battles"]
    win: Float[np.ndarray, " battles"]
    """Probability in [0, 1] that the first is better, ties counted half."""
    length_difference: Float[np.ndarray, " battles"]
    """Characters of the first less those of the second."""
    prompt: Int[np.ndarray, " battles"]
    """The cluster: 0 to num_prompts - 1."""
    seed: Int[np.ndarray, " battles"]
    """Which training seeds met: 0 to num_seeds - 1, or -1 where neither side has several."""

    def __len__(self) -> int:
        return len(self.win)

    def where(self, mask: Bool[np.ndarray, " battles"]) -> "Battles":
        """Those of the battles for which the mask is True, under the same names."""
        return Battles(
            names=self.names,
            first=self.first[mask],
            second=self.second[mask],
            win=self.win[mask],
            length_difference=self.length_difference[mask],
            prompt=self.prompt[mask],
            seed=self.seed[mask],
        )

    def among(self, names: tuple[str, ...]) -> "Battles":
        """Those between the named ones, with the names in this order."""
        new_index = np.full(len(self.names), -1)
        for index, name in enumerate(names):
            new_index[self.names.index(name)] = index
        kept = self.where((new_index[self.first] >= 0) & (new_index[self.second] >= 0))
        return Battles(
            names=names,
            first=new_index[kept.first],
            second=new_index[kept.second],
            win=kept.win,
            length_difference=kept.length_difference,
            prompt=kept.prompt,
            seed=kept.seed,
        )


def comparable(battles: Battles, baseline: str) -> tuple[str, ...]:
    """The names whose strength can be told from the baseline's, the baseline among them.

    Each has beaten another one of them and has been beaten, in part at least, and wins lead around
    from every one to every other (Ford, 1957). Who always wins or always loses has no finite
    strength.
    """
    won = np.concatenate([battles.first[battles.win > 0], battles.second[battles.win < 1]])
    lost = np.concatenate([battles.second[battles.win > 0], battles.first[battles.win < 1]])
    size = len(battles.names)
    graph = coo_array((np.ones(len(won)), (won, lost)), shape=(size, size))
    _, labels = connected_components(graph, directed=True, connection="strong")
    same = labels == labels[battles.names.index(baseline)]
    return tuple(name for name, is_same in zip(battles.names, same, strict=True) if is_same)


def check_comparable(battles: Battles, baseline: str) -> None:
    """Raise if someone's strength cannot be told from the baseline's.

    Raises:
        NotEstimableError: naming the first such, and whether it wins all, loses all or was never
            compared with the others.
    """
    known = comparable(battles, baseline)
    unknown = next((name for name in battles.names if name not in known), None)
    if unknown is None:
        return
    raise NotEstimableError(
        f"No finite strength for {unknown}: {why_not(battles, unknown)}. Leave it out of the "
        f"Bradley-Terry model, or have it compared with more systems."
    )


def why_not(battles: Battles, name: str) -> str:
    """What keeps the name from having a finite strength."""
    index = battles.names.index(name)
    wins = np.concatenate(
        [battles.win[battles.first == index], 1 - battles.win[battles.second == index]]
    )
    if len(wins) == 0:
        return "it was compared with nothing"
    if (wins == 1).all():
        return "it wins every comparison"
    if (wins == 0).all():
        return "it loses every comparison"
    return "wins do not lead from it to the baseline and back"


def is_told_apart(
    column: Float[np.ndarray, " battles"], others: Float[np.ndarray, "battles _"]
) -> bool:
    """Whether a column has more than a thousandth of its square sum outside the others' span."""
    total = float((column**2).sum())
    if total == 0:
        return False
    if others.shape[1] == 0:
        return True
    fitted = others @ np.linalg.lstsq(others, column, rcond=None)[0]
    return float(((column - fitted) ** 2).sum()) > _KNOWN_SHARE * total
