"""Variance between training seeds, pooled over comparisons of the same kind.

Three seeds tell little about their own spread: 2 degrees of freedom. Each comparison of a family of
equals tells a little more about how much training noise there is, so its variance between seeds is
taken to be the mean over the family, or its own where that is larger: a method that is less stable
than the others pays for it. Comparisons that share a method are correlated, and count for less:

    df = (seeds - 1) * M^2 / sum over i, j of rho_ij^2

with rho the share of methods that two of the M comparisons have in common. In simulation (4 or 7
methods of 3 seeds and a baseline of 3, 80 prompts, all equal, one of them up to 4 times less
stable) Holm's family-wise error then is 2 to 5 %. With each one's own seeds it reaches 14 %, since
what is taken off for the rest makes small variances too small for the levels that Holm asks for.
"""

from collections.abc import Sequence

import numpy as np

from prefopt.evaluation.statistics.crossed import Part, Spread


def pooled_spreads(own: Sequence[Spread], sides: Sequence[frozenset[str]]) -> list[Spread]:
    """Spreads of comparisons with their variance between seeds pooled.

    Args:
        own: of each comparison alone.
        sides: the methods of each comparison that have several seeds. Only comparisons with as many
            are pooled, as one side with seeds varies less than two.
    """
    pooled = list(own)
    for num_sides in {len(each) for each in sides if each}:
        members = [index for index, each in enumerate(sides) if len(each) == num_sides]
        shared = np.array([[len(sides[i] & sides[j]) for i in members] for j in members])
        df = own[members[0]].parts[1].df * len(members) ** 2 / ((shared / num_sides) ** 2).sum()
        variances = [sum(part.variance for part in own[i].parts[1:]) for i in members]
        mean = float(np.mean(variances))
        for index, variance in zip(members, variances, strict=True):
            part = Part(max(variance, mean), float(df))
            pooled[index] = Spread((own[index].parts[0], part))
    return pooled
