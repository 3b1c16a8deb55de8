"""Held-out preference pairs without a judge: the same numbers for every objective, with intervals.

A pair is any two responses of a group of which one scores higher, the chosen one. Numbers are means
over pairs, and intervals draw whole prompts. Shares are in [0, 1], log-probs in nats.

    ranking_accuracy, /per_token         the policy ranks the pair right, by sum and by token mean
    ranking_accuracy/reference, /reference_per_token   the same of the reference: the floor
    implicit_reward_accuracy             log(policy / reference) ranks it right; any beta cancels
    objective_accuracy                   the objective's own rewards rank it right
    margin_auc/policy, /implicit_reward  of telling the order of pairs by one margin for all
    accuracy_by_length/chosen_shorter, /similar, /chosen_longer   terciles of the length gap
    accuracy_by_length/chosen_is_longer, /chosen_is_not_longer   in tokens
    accuracy_by_subset/NAME, /mean       by what the caller says of groups; the mean weighs all
                                         subsets alike, however many pairs they have
    drift/..., length/..., flips/..., calibration/...   as in `prefopt.diagnostics.ranking`

Accuracies by length and subset are those of the implicit reward, or of the policy's log-probs where
no reference is known. In all accuracies a tie is half right: a policy that is still its reference
is at 1/2 in what rewards rank. `prefopt diagnose` and training count ties as right or wrong by
kind, so their numbers differ where there are ties.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefopt.diagnostics.ranking import HeldOut, RankedPairs, pair_values
from prefopt.evaluation.clusters import Clustered, estimates
from prefopt.evaluation.numbers import Estimate

Values = tuple[Float[Tensor, " _"], Int[Tensor, " _"]]
"""A value per pair, and the group of each pair."""

_SHARES = ("ranking_accuracy", "implicit_reward_accuracy", "objective_accuracy", "accuracy_by_")
_MORE_SHARES = ("drift/share", "flips/", "difficulty/share", "margin_auc", "idealised")
_NO_MEAN = ("calibration/error",)
"""Not the mean of its values once these are drawn: its bins fill anew."""


def pair_numbers(
    held_out: HeldOut,
    *,
    subsets: Sequence[str] | None = None,
    clusters: Sequence[str] | None = None,
    beta: float | None = None,
    seed: int = 0,
) -> dict[str, Estimate]:
    """The numbers above, less those that nothing defines; `n` counts pairs.

    `calibration/error` has no interval: drawn with replacement, groups of a calibrated model look
    less calibrated than they are.

    Args:
        held_out: log-probs and rewards of all groups together.
        subsets: which subset each group belongs to, as RewardBench's `subset` column says.
        clusters: the prompt of each group, where several groups have the same one.
        beta: reward per nat of log-ratio, for what only DPO's closed form defines.
        seed: of the bootstrap.
    """
    values = pair_values(held_out, beta=beta, ties_are_half=True)
    if not values:
        return {}
    values |= _margin_auc(held_out) | _by_longer(values)
    if subsets is not None:
        values |= _by_subset(values, subsets)
    num_groups = held_out.where.shape[0]
    names = [str(number) for number in range(num_groups)] if clusters is None else clusters
    numbers, cluster_of_group = np.unique(np.array(names), return_inverse=True)
    found = estimates(
        {
            name: Clustered(values=each.numpy(), cluster=cluster_of_group[group.numpy()])
            for name, (each, group) in values.items()
        },
        num_clusters=len(numbers),
        unit="pairs",
        shares=[name for name in values if name.startswith(_SHARES + _MORE_SHARES)],
        seed=seed,
    )
    for name in _NO_MEAN:
        if name in found:
            found[name] = {**found[name], "low": None, "high": None}
    return found


def _right(values: dict[str, Values]) -> Values:
    return values.get("implicit_reward_accuracy", values["ranking_accuracy"])


def _margin_auc(held_out: HeldOut) -> dict[str, Values]:
    """Area under the curve of a margin that tells pairs from the same pairs turned round.

    It is the chance that a pair's margin exceeds that of another one shown rejected first, so that
    m_i > -m_j, ties half: 1 where all margins are above 0, and 1/2 where they lie evenly around it.
    Unlike accuracy it asks that wrong margins be small. The values are its linear part (Hoeffding,
    1948), 2 h_i - mean(h) with h_i the share of j, whose mean is the area.
    """
    pairs = RankedPairs.of(held_out)
    logps = {"policy": held_out.policy_logps}
    if held_out.reference_logps is not None:
        logps["implicit_reward"] = held_out.policy_logps - held_out.reference_logps
    found = {}
    for name, each in logps.items():
        margins = pairs.margin(each)
        turned = (-margins).sort().values
        below = torch.searchsorted(turned, margins)
        up_to = torch.searchsorted(turned, margins, right=True)
        shares = (below + up_to).double() / (2 * len(margins))
        found[f"margin_auc/{name}"] = 2 * shares - shares.mean(), pairs.group
    return found


def _by_longer(values: dict[str, Values]) -> dict[str, Values]:
    is_right, group = _right(values)
    is_longer = values["length/gap"][0] > 0
    return _nonempty(
        {
            "accuracy_by_length/chosen_is_longer": (is_right[is_longer], group[is_longer]),
            "accuracy_by_length/chosen_is_not_longer": (is_right[~is_longer], group[~is_longer]),
        }
    )


def _by_subset(values: dict[str, Values], subsets: Sequence[str]) -> dict[str, Values]:
    is_right, group = _right(values)
    names = sorted(set(subsets))
    of_group = torch.tensor([names.index(each) for each in subsets])
    of_pair = of_group[group]
    sizes = torch.bincount(of_pair, minlength=len(names)).double()
    means = torch.bincount(of_pair, weights=is_right, minlength=len(names)) / sizes
    found = {
        f"accuracy_by_subset/{name}": (is_right[of_pair == number], group[of_pair == number])
        for number, name in enumerate(names)
    }
    mean = means[sizes > 0].mean()
    # What each pair adds to it, so that a draw of pairs moves it as it moves the subsets' means.
    weights = len(of_pair) / ((sizes > 0).sum() * sizes[of_pair])
    linear = mean + weights * (is_right - means[of_pair])
    return _nonempty(found) | {"accuracy_by_subset/mean": (linear, group)}


def _nonempty(values: dict[str, Values]) -> dict[str, Values]:
    return {name: each for name, each in values.items() if len(each[0]) > 0}
