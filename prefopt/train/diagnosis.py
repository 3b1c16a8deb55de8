"""What a trained policy's gradients and rankings say, as plain numbers for a report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any

import torch
from accelerate import Accelerator
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from prefopt.diagnostics.entanglement import (
    CLASSES,
    Pairs,
    broken_conditions,
    pairs_of,
    sums_by,
)
from prefopt.diagnostics.gram import GramMeter
from prefopt.diagnostics.parts import PARTS, depth_of, part_of
from prefopt.diagnostics.ranking import ranking_metrics
from prefopt.diagnostics.token_map import token_map
from prefopt.models.reference import Reference
from prefopt.objectives import Objective
from prefopt.train.diagnosed_group import DiagnosedGroup
from prefopt.train.diagnosed_step import changes_of_step
from prefopt.train.fixed_groups import FixedGroups, reward_per_nat
from prefopt.train.influence import InfluenceMeter, why_no_influence
from prefopt.train.share import facts_of
from prefopt.train.steps import StepDataset
from prefopt.train.verification import small_rates, verify
from prefopt.types import TokenizedRecord

MOST_GROUPS, MOST_TOKENS = 12, 16384


class Diagnosis:
    """Measures one policy on the groups of one data set."""

    def __init__(
        self,
        policy: PreTrainedModel | PeftModel,
        objective: Objective,
        reference: Reference | None,
        data: StepDataset,
        num_groups: int,
        accelerator: Accelerator,
        *,
        normalises: bool,
    ) -> None:
        """Measures the Gram of every group.

        Args:
            policy: with a log-prob head, on the device.
            objective: whose gradient is looked at.
            reference: what log-ratios are measured against; None if the objective needs none.
            data: its plan says which groups.
            num_groups: how many.
            accelerator: of the device.
            normalises: whether training makes gradients of a group equally long.
        """
        self._policy, self._objective, self._reference = policy, objective, reference
        self._data, self._accelerator = data, accelerator
        self._meter = GramMeter(policy)
        self._influence = InfluenceMeter(
            objective,
            self._meter,
            reference if objective.needs_reference else None,
            policy,
            normalises=normalises,
        )
        # As in a step of average groups, so that a step of any size only divides by its size.
        numbers = data.plan.groups(0, 0)[:num_groups]
        facts = facts_of(data.store, numbers)
        terms = facts.weigh(objective).all_terms()
        self._denominators = {name: float(term.weight.mean()) for name, term in terms.items()}
        self.groups = [self._measured(number) for number in numbers.tolist()]

    def _measured(self, number: int) -> DiagnosedGroup:
        batch = self._data.group(number).to(self._accelerator.device)
        found = self._influence.measure(batch, self._denominators)
        of_parameter = found.gram.of_parameter
        depths = {n: d for n in of_parameter if (d := depth_of(n)) is not None}
        return DiagnosedGroup(
            number=number,
            batch=batch,
            found=found,
            pairs=pairs_of(found.gram.total, batch.scores[0], batch.where[0]),
            of_part=sums_by(of_parameter, {name: part_of(name) for name in of_parameter}),
            of_depth=sums_by(
                {name: of_parameter[name] for name in depths},
                {name: str(depth) for name, depth in depths.items()},
            ),
        )

    @property
    def num_pairs(self) -> int:
        """Preferred pairs of all groups."""
        return sum(len(group.pairs.index) for group in self.groups)

    @property
    def num_trainable(self) -> int:
        """Parameters that are trained."""
        return sum(p.numel() for p in self._policy.parameters() if p.requires_grad)

    @property
    def num_measured(self) -> int:
        """Those of them that every Gram holds."""
        missing = set(self.groups[0].found.gram.missing)
        named = self._policy.named_parameters()
        return sum(p.numel() for n, p in named if p.requires_grad and n not in missing)

    @property
    def notes(self) -> list[str]:
        """What is left out, and why."""
        notes = []
        reason = why_no_influence(self._objective)
        if reason is not None:
            notes.append(f"Conditions, classes and predictions are left out, since {reason}.")
        if self._objective.couples_groups:
            notes.append("Coefficients are those of each group as if it were the whole step.")
        alone = sum(group.batch.layout.num_slots == 1 for group in self.groups)
        if alone:
            notes.append(f"{alone} of {len(self.groups)} groups have one response and no pair.")
        return notes

    def ranking(self) -> dict[str, dict[str, float]]:
        """How the groups are ranked; drifts are against the reference."""
        fixed = FixedGroups(self._data, len(self.groups))
        if fixed.num_pairs == 0:
            return {}
        held_out = fixed.score(
            self._objective, self._policy, self._reference, self._accelerator, None
        )
        held_out = replace(held_out, start_logps=held_out.reference_logps)
        found = ranking_metrics(held_out, beta=reward_per_nat(held_out))
        return {name: {"value": value, "num": num} for name, (value, num) in found.items()}

    def entanglement(self) -> dict[str, Any] | None:
        """Numbers over all pairs; None if there are none."""
        if self.num_pairs == 0:
            return None
        cosine = torch.cat([group.pairs.cosine for group in self.groups])
        cosine = cosine[~cosine.isnan()]
        quantiles = cosine.quantile(torch.tensor([0.05, 0.5, 0.95]).to(cosine)).tolist()
        known = [group for group in self.groups if group.found.influence is not None]
        broken = [broken_conditions(group.influence, group.pairs) for group in known]
        classes = [kind for group in known for kind in group.classes if kind is not None]
        num = max(len(classes), 1)
        return {
            "num_pairs": self.num_pairs,
            "cosine": {
                "mean": float(cosine.mean()),
                "median": quantiles[1],
                "5 %": quantiles[0],
                "95 %": quantiles[2],
            },
            "gradient_norm": {
                "chosen": _mean([group.pairs.chosen for group in self.groups]),
                "rejected": _mean([group.pairs.rejected for group in self.groups]),
            },
            "share_chosen_condition_broken": _mean([chosen.double() for chosen, _ in broken]),
            "share_rejected_condition_broken": _mean([rejected.double() for _, rejected in broken]),
            "classes": {kind: classes.count(kind) / num for kind in CLASSES} if known else None,
            "by_part": self._by_part(),
            "by_depth": self._by_depth(),
        }

    def _by_part(self) -> list[dict[str, Any]]:
        found = _products([(group, group.of_part) for group in self.groups])
        whole = sum(row["inner_product"] for row in found.values())
        return [
            {"part": part, **found[part], "share": found[part]["inner_product"] / whole}
            for part in PARTS
            if part in found
        ]

    def _by_depth(self) -> list[dict[str, Any]]:
        found = _products([(group, group.of_depth) for group in self.groups])
        return [{"depth": int(depth), **found[depth]} for depth in sorted(found, key=int)]

    def step(self, groups_per_step: int) -> dict[str, Any] | None:
        """What a step on so many groups like these does to their pairs; None if not known."""
        store, device = self._data.store, self._accelerator.device
        return changes_of_step(self.groups, self._meter, store.__getitem__, device, groups_per_step)

    @property
    def can_verify(self) -> bool:
        """Whether trained weights can hold a small step."""
        trained = [p for p in self._policy.parameters() if p.requires_grad]
        return all(p.dtype in (torch.float32, torch.float64) for p in trained)

    def verification(self) -> tuple[dict[str, Any], dict[int, list[float]]] | None:
        """Predictions against steps of gradient descent, and what these did, by record.

        None where nothing is predicted, or weights cannot hold the steps.
        """
        known = [g for g in self.groups if g.found.influence is not None and g.influence.any()]
        if not known or not self.can_verify:
            return None
        measured = [(group.batch, group.found) for group in known]
        rates = small_rates([group.found for group in known])
        found = asdict(verify(self._influence, measured, self._denominators, rates))
        realised = found.pop("realised")
        return found, {g.number: changes for g, changes in zip(known, realised, strict=True)}

    @cached_property
    def worst(self) -> list[DiagnosedGroup]:
        """Groups with a pair, those of the highest severity first."""
        with_pairs = [group for group in self.groups if group.pairs.index]
        with_pairs.sort(key=lambda group: max(group.severities), reverse=True)
        return with_pairs[:MOST_GROUPS]

    def token_maps(
        self, num: int, words: Callable[[Sequence[int]], list[str]]
    ) -> tuple[list[dict[str, Any]], list[str]]:
        """Token by token, of the worst groups whose texts are short enough; and what was left out.

        Args:
            num: how many.
            words: the texts of some tokens.
        """
        maps: list[dict[str, Any]] = []
        skipped = 0
        for group in self.worst:
            if len(maps) == num:
                break
            record = self._data.store[group.number]
            first, second = group.pairs.index[group.worst_pair]
            responses = [record.response_ids[first], record.response_ids[second]]
            if _tokens_of_map(record, responses) > MOST_TOKENS:
                skipped += 1
                continue
            found = token_map(self._meter, record, first, second, self._accelerator.device)
            maps.append(
                {
                    "id": record.id,
                    "chosen": words(responses[0].tolist()),
                    "rejected": words(responses[1].tolist()),
                    "products": found.products.tolist(),
                    "cosines": found.cosines.tolist(),
                }
            )
        notes = [
            f"{skipped} of the worst groups have no token map: it would take over "
            f"{MOST_TOKENS:,} tokens in one pass."
        ] * (skipped > 0)
        return maps, notes


def _tokens_of_map(record: TokenizedRecord, responses: Sequence[Tensor]) -> int:
    """Of all beginnings of two responses, each with its prompt."""
    lengths = [len(ids) for ids in responses]
    return sum(n * record.num_prompt_tokens + n * (n + 1) // 2 for n in lengths)


def _mean(values: Sequence[Tensor]) -> float | None:
    numbers = torch.cat(list(values)) if values else torch.zeros(0)
    return float(numbers.mean()) if len(numbers) else None


def _products(
    grams: Sequence[tuple[DiagnosedGroup, Mapping[str, Float[Tensor, "K K"]]]],
) -> dict[str, dict[str, float]]:
    """Mean inner product and cosine over all pairs, by the name of a Gram."""
    found: dict[str, list[Pairs]] = {}
    for group, by_name in grams:
        for name, gram in by_name.items():
            pairs = pairs_of(gram, group.batch.scores[0], group.batch.where[0])
            found.setdefault(name, []).append(pairs)
    return {
        name: {
            "inner_product": float(torch.cat([each.inner_product for each in pairs]).mean()),
            "cosine": float(torch.cat([each.cosine for each in pairs]).nanmean()),
        }
        for name, pairs in found.items()
    }
