"""How held-out pairs are ranked: by the policy, its reference and the objective, and what ideal is.

A pair is any two responses of a group of which one scores higher, the chosen one. Every number is a
mean over all pairs of all groups alike, so a group counts as often as it has pairs. Log-probs
and margins are in nats per response, or per token where a name says so; margins are chosen minus
rejected. Shares are in [0, 1].

    ranking_accuracy, /per_token         the policy ranks the pair right: its margin is >= 0
    ranking_accuracy/reference, /reference_per_token   the same of the reference: the floor
    implicit_reward_accuracy             margin of log(policy / reference) > 0
    objective_accuracy                   margin of the objective's own rewards > 0
    idealised_ranking_accuracy           margin of a policy that solves DPO exactly > 0
    ranking_gap                          that one minus ranking_accuracy
    flips/gained, /lost                  only the policy is right; only the reference is right
    flips/share_of_wrong_gained          the policy is right, where the reference is wrong
    difficulty/mean, /share_hard         -beta * margin of the reference; share where it is > 0
    drift/chosen, /rejected              log-prob now minus log-prob when the run began
    drift/chosen_per_token, /rejected_per_token
    drift/share_both_fall, /share_both_rise, /share_ideal   ideal: chosen rises, rejected falls
    length/chosen, /rejected, /gap       in tokens; gap: chosen minus rejected
    accuracy_by_length/chosen_shorter, /similar, /chosen_longer   right, by terciles of that gap
    calibration/brier, /nll, /error      of sigmoid(reward margin) as a probability of preference

A tie counts as right in what the policy or reference ranks, as in the paper, and as wrong in what
rewards rank, as in `rewards/accuracies`: a policy that is still its reference has learned nothing.

Paper: Chen et al., Preference Learning Algorithms Do Not Learn Preference Rankings, 2024,
arxiv.org/abs/2405.19534, theorems 3.1 and 4.1. There a ranking of more than two responses is right
or wrong as a whole; here each pair of it counts.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prefopt.ops.pairs import preferred_pairs

_NUM_BINS = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """What models say of G held-out groups with up to K responses, in float64.

    Unused slots may hold anything.
    """

    policy_logps: Float[Tensor, "G K"]
    """Summed log-prob of each response, in nats; so are those of the start and the reference."""
    start_logps: Float[Tensor, "G K"] | None
    """Of the policy when the run began; None if not known."""
    reference_logps: Float[Tensor, "G K"] | None
    num_tokens: Int[Tensor, "G K"]
    """Scored tokens of each response, at least 1."""
    scores: Float[Tensor, "G K"]
    where: Bool[Tensor, "G K"]
    """True where a slot holds a response."""
    rewards: Float[Tensor, "G K"] | None
    """What the objective itself ranks by: its implicit reward."""


def ranking_metrics(
    held_out: HeldOut, *, beta: float | None = None, agreement: float = 0.999
) -> dict[str, tuple[float, int]]:
    """The numbers above: name -> (mean, pairs that it is over), less those that nothing defines.

    Args:
        held_out: Log-probs and rewards of all groups together.
        beta: Reward per nat of log-ratio; None leaves out what only DPO's closed form defines.
        agreement: Alpha, the share of annotators who prefer the chosen response. The paper takes
            0.999 for 1, where no finite policy is optimal.

    Raises:
        ValueError: if beta or agreement is out of range.
    """
    if beta is not None and not beta > 0:
        raise ValueError(f"beta is {beta}; give a number above 0, or None to leave it out.")
    if not 0 < agreement < 1:
        raise ValueError(f"agreement is {agreement}; give a share in (0, 1), such as 0.999 for 1.")
    found = pair_values(held_out, beta=beta, agreement=agreement)
    return {name: (values.mean().item(), len(values)) for name, (values, _) in found.items()}


def pair_values(
    held_out: HeldOut,
    *,
    beta: float | None = None,
    agreement: float = 0.999,
    ties_are_half: bool = False,
) -> dict[str, tuple[Float[Tensor, " _"], Int[Tensor, " _"]]]:
    """What each of the numbers above is the mean of: name -> (a value per pair, its group).

    Pairs come in the order of their groups, less those that a number is not over. Arguments are
    those of `ranking_metrics`; with `ties_are_half`, a tie is half right in all accuracies.
    """
    pairs = RankedPairs.of(held_out)
    of_pairs: dict[str, Tensor | tuple[Tensor, Tensor]] = {}
    of_pairs |= _accuracies(held_out, pairs, ties_are_half) | _drifts(held_out, pairs)
    of_pairs |= _lengths(held_out, pairs, ties_are_half)
    if held_out.rewards is not None:
        of_pairs |= _calibration(pairs.margin(held_out.rewards))
    if held_out.reference_logps is not None:
        margin = pairs.margin(held_out.policy_logps)
        reference_margin = pairs.margin(held_out.reference_logps)
        of_pairs |= _flips(margin, reference_margin)
        if beta is not None:
            of_pairs |= _of_dpo(margin, reference_margin, beta, agreement)
    found = {}
    for name, each in of_pairs.items():
        values, where = each if isinstance(each, tuple) else (each, torch.ones_like(pairs.group))
        is_counted = where.bool()
        if is_counted.any():
            found[name] = values[is_counted].double(), pairs.group[is_counted]
    return found


def loss_to_flip(reference_margin: Float[Tensor, "*shape"], beta: float) -> Float[Tensor, "*shape"]:
    """The DPO loss at or below which a policy ranks a pair right, in nats (theorem 4.1).

    `reference_margin` is log ref(chosen) - log ref(rejected). At 0 the loss is ln 2; the more
    surely the reference ranks a pair wrong, the closer to 0 its loss has to be.
    """
    return -F.logsigmoid(-beta * reference_margin)


def kl_of_samples(
    policy_logps: Float[Tensor, " S"], reference_logps: Float[Tensor, " S"]
) -> tuple[float, float]:
    """KL(policy || reference) per response, in nats, and its standard error.

    Of S responses sampled from the policy itself at temperature 1, with summed log-probs. The mean
    log-ratio is the unbiased estimate; it can fall below 0, which the KL cannot.

    Raises:
        ValueError: if there are fewer than 2 samples.
    """
    log_ratios = policy_logps.double() - reference_logps.double()
    if len(log_ratios) < 2:
        raise ValueError(
            f"{len(log_ratios)} samples have no standard error; give the log-probs of at least 2."
        )
    return log_ratios.mean().item(), log_ratios.std().item() / math.sqrt(len(log_ratios))


@dataclass(frozen=True, slots=True)
class RankedPairs:
    """Where the pairs are, in the order of their groups.

    Reading by index never touches an unused slot, so nothing is masked.
    """

    group: Int[Tensor, " pairs"]
    winner: Int[Tensor, " pairs"]
    loser: Int[Tensor, " pairs"]

    @classmethod
    def of(cls, held_out: HeldOut) -> "RankedPairs":
        """Any two responses of a group of which one scores higher."""
        return cls(*preferred_pairs(held_out.scores, held_out.where).nonzero(as_tuple=True))

    def chosen(self, values: Tensor) -> Float[Tensor, " pairs"]:
        """Values [G, K] of the higher one."""
        return values[self.group, self.winner].double()

    def rejected(self, values: Tensor) -> Float[Tensor, " pairs"]:
        """Values [G, K] of the other one."""
        return values[self.group, self.loser].double()

    def margin(self, values: Tensor) -> Float[Tensor, " pairs"]:
        """The one minus the other."""
        return self.chosen(values) - self.rejected(values)


def _accuracies(held_out: HeldOut, pairs: RankedPairs, ties_are_half: bool) -> dict[str, Tensor]:
    policy, reference = held_out.policy_logps, held_out.reference_logps

    def right(values: Tensor, *, if_tied: float) -> Tensor:
        margin = pairs.margin(values)
        return torch.heaviside(margin, margin.new_tensor(0.5 if ties_are_half else if_tied))

    accuracies = {
        "ranking_accuracy": right(policy, if_tied=1.0),
        "ranking_accuracy/per_token": right(policy / held_out.num_tokens, if_tied=1.0),
    }
    if reference is not None:
        per_token = right(reference / held_out.num_tokens, if_tied=1.0)
        accuracies |= {
            "ranking_accuracy/reference": right(reference, if_tied=1.0),
            "ranking_accuracy/reference_per_token": per_token,
            "implicit_reward_accuracy": right(policy - reference, if_tied=0.0),
        }
    if held_out.rewards is not None:
        accuracies["objective_accuracy"] = right(held_out.rewards, if_tied=0.0)
    return accuracies


def _flips(margin: Tensor, reference_margin: Tensor) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
    is_right, was_right = margin >= 0, reference_margin >= 0
    return {
        "flips/gained": is_right & ~was_right,
        "flips/lost": was_right & ~is_right,
        "flips/share_of_wrong_gained": (is_right, ~was_right),
        "difficulty/share_hard": reference_margin < 0,
    }


def _of_dpo(
    margin: Tensor, reference_margin: Tensor, beta: float, agreement: float
) -> dict[str, Tensor]:
    """What a closed form of DPO says (theorems 3.1 and 4.1), of each pair on its own.

    The ideal is no bound: a policy that ranks better than DPO's optimum has a gap below 0.
    """
    ideal_margin = reference_margin + math.log(agreement / (1 - agreement)) / beta
    is_ideally_right = (ideal_margin > 0).double()
    return {
        "idealised_ranking_accuracy": is_ideally_right,
        "ranking_gap": is_ideally_right - (margin >= 0).double(),
        "difficulty/mean": -beta * reference_margin,
    }


def _drifts(held_out: HeldOut, pairs: RankedPairs) -> dict[str, Tensor]:
    if held_out.start_logps is None:
        return {}
    drift = held_out.policy_logps - held_out.start_logps
    per_token = drift / held_out.num_tokens
    chosen, rejected = pairs.chosen(drift), pairs.rejected(drift)
    return {
        "drift/chosen": chosen,
        "drift/rejected": rejected,
        "drift/chosen_per_token": pairs.chosen(per_token),
        "drift/rejected_per_token": pairs.rejected(per_token),
        "drift/share_both_fall": (chosen < 0) & (rejected < 0),
        "drift/share_both_rise": (chosen > 0) & (rejected > 0),
        "drift/share_ideal": (chosen > 0) & (rejected < 0),
    }


def _lengths(
    held_out: HeldOut, pairs: RankedPairs, ties_are_half: bool
) -> dict[str, Tensor | tuple[Tensor, Tensor]]:
    gap = pairs.margin(held_out.num_tokens)
    lengths: dict[str, Tensor | tuple[Tensor, Tensor]] = {
        "length/chosen": pairs.chosen(held_out.num_tokens),
        "length/rejected": pairs.rejected(held_out.num_tokens),
        "length/gap": gap,
    }
    if len(gap) < 3:
        return lengths
    accuracies = _accuracies(held_out, pairs, ties_are_half)
    is_right = accuracies.get("implicit_reward_accuracy", accuracies["ranking_accuracy"])
    return lengths | _by_terciles(is_right, gap)


def _by_terciles(
    is_right: Float[Tensor, " pairs"], gap: Float[Tensor, " pairs"]
) -> dict[str, tuple[Tensor, Tensor]]:
    """By the implicit reward if the reference is known, else by the policy's own log-probs.

    Terciles are relative: "chosen_shorter" has the third of the pairs with the least length margin,
    be that above 0. Pairs at a bound all belong to the tercile below it, so another may be empty.
    There are none where all margins are the same.
    """
    if (gap == gap[0]).all():
        return {}
    in_order, count = gap.sort().values, len(gap)
    lower, upper = in_order[(count + 2) // 3 - 1], in_order[(2 * count + 2) // 3 - 1]
    return {
        "accuracy_by_length/chosen_shorter": (is_right, gap <= lower),
        "accuracy_by_length/similar": (is_right, (gap > lower) & (gap <= upper)),
        "accuracy_by_length/chosen_longer": (is_right, gap > upper),
    }


def _calibration(margin: Float[Tensor, " pairs"]) -> dict[str, Tensor]:
    """Of p = sigmoid(reward margin), the model's probability that the chosen response is preferred.

    Since the chosen one has won every time, p against the outcome is never calibrated below 1. For
    the expected calibration error each pair is turned so that its predicted winner comes first: the
    confidence max(p, 1 - p) is set against whether that one was chosen, over 10 equal bins of
    [0.5, 1]. A pair without a predicted winner, at p = 0.5, is half right: a model that says it
    does not know is calibrated.
    """
    confidence = torch.sigmoid(margin.abs())
    is_right = (margin.sign() + 1) / 2
    bins = ((confidence - 0.5) * 2 * _NUM_BINS).long().clamp(0, _NUM_BINS - 1)
    excess = torch.bincount(bins, weights=confidence - is_right, minlength=_NUM_BINS)
    sizes = torch.bincount(bins, minlength=_NUM_BINS).clamp(min=1)
    return {
        "calibration/brier": torch.sigmoid(-margin).square(),
        "calibration/nll": -F.logsigmoid(margin),
        # Each pair's share of the error is the gap of its bin, so that their mean is the error.
        "calibration/error": (excess / sizes).abs()[bins],
    }
