"""KL(policy || reference) of answers, on answers that the policy itself draws at temperature 1.

What is measured is the divergence of whole answers of up to so many tokens, in nats: the sum over
positions of log(policy / reference), end-of-sequence included where an answer has one. Tokens are
scored as they were drawn: text that is decoded and encoded again may have others, and an answer
that was cut has no end.

Two estimates of the same number. The *plain* one averages the log-ratio of the drawn tokens; it can
fall below 0. The default replaces each position's log-ratio by its expectation, the exact KL of the
two next-token distributions after the drawn prefix: the same mean by the chain rule, less noise,
and never below 0 (Amini et al., Better Estimation of the KL Divergence Between Language Models,
2025, arxiv.org/abs/2504.10637).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefopt.data.collate import collate
from prefopt.errors import UserError
from prefopt.evaluation.clusters import Clustered, estimates
from prefopt.evaluation.continuations import continuations
from prefopt.evaluation.generate.batch import end_ids
from prefopt.evaluation.numbers import Estimate
from prefopt.models.head import ReferenceDistribution, Statistics, base_of
from prefopt.models.layout import score_tokens
from prefopt.models.logits import logit_transform
from prefopt.types import TokenizedRecord

Model = PreTrainedModel | PeftModel


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleKl:
    """One drawn answer, and what both models say of its tokens, in nats."""

    prompt_id: str
    sample: int
    num_tokens: int
    policy_logp: float
    """Summed over its tokens, and so is the reference's."""
    reference_logp: float
    divergence: float
    """Sum over its positions of the exact KL of the two next-token distributions there."""
    is_cut: bool
    """Whether it reached the limit of tokens without an end."""


def sample_and_score(
    policy: Model,
    reference: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[tuple[str, Sequence[int]]],
    *,
    num_samples: int,
    max_new_tokens: int,
    seed: int = 0,
    batch_size: int = 16,
    on_done: Callable[[int, int], None] = lambda done, total: None,
) -> list[SampleKl]:
    """Draw answers from the policy, and score their very tokens under both models.

    Args:
        policy: with a log-prob head, on its device.
        reference: the same, of the same vocabulary.
        tokenizer: that of the policy, for the token that ends an answer.
        prompts: names, each once, and token ids as the model reads them.
        num_samples: answers to each prompt.
        max_new_tokens: longest answer.
        seed: of the draws, which do not depend on the batch size.
        batch_size: answers at once.
        on_done: told how many answers are scored, of how many.

    Raises:
        UserError: if the two models have different vocabularies.
    """
    _check_vocabularies(policy, reference)
    ends = end_ids(policy, tokenizer)
    wanted = [(i, k) for i in range(len(prompts)) for k in range(num_samples)]
    # Neighbours of like length waste the least on padding.
    wanted.sort(key=lambda each: len(prompts[each[0]][1]))
    found: dict[tuple[int, int], SampleKl] = {}
    for first in range(0, len(wanted), batch_size):
        some = wanted[first : first + batch_size]
        asked = [prompts[i][1] for i, _ in some]
        answers = continuations(
            policy,
            tokenizer,
            asked,
            ends=ends,
            max_new_tokens=max_new_tokens,
            seeds=[_seed_of(seed, *each) for each in some],
        )
        scored = score_both(policy, reference, asked, answers)
        for (i, k), answer, numbers in zip(some, answers, scored, strict=True):
            found[i, k] = SampleKl(
                prompt_id=prompts[i][0],
                sample=k,
                num_tokens=len(answer),
                policy_logp=numbers[0],
                reference_logp=numbers[1],
                divergence=numbers[2],
                is_cut=answer[-1] not in ends,
            )
        on_done(len(found), len(wanted))
    return [found[each] for each in sorted(found)]


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def score_both(
    policy: Model,
    reference: Model,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
) -> list[tuple[float, float, float]]:
    """Of each answer: log-prob under policy and reference, and the sum of its positions' KL."""
    records = [
        TokenizedRecord(
            id=str(number),
            prompt_ids=torch.tensor(prompt),
            response_ids=(torch.tensor(answer),),
            scores=(0.0,),
        )
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
    ]
    batch = collate(records)
    everything = torch.arange(len(batch.targets))
    batch = replace(batch, statistic_tokens=everything, plain_tokens=everything[:0])
    batch = batch.to(policy.device)
    assert batch.statistic_tokens is not None
    assert batch.plain_tokens is not None
    with torch.no_grad():
        own = score_tokens(
            policy, batch, return_hidden_of=batch.statistic_tokens, return_projection=True
        )
        statistics = Statistics(
            tokens=batch.statistic_tokens,
            others=batch.plain_tokens,
            num_top=0,
            # The head gives KL(its "reference" || itself), so the policy takes that place.
            reference=ReferenceDistribution(
                hidden=own["hidden"],
                weight=own["weight"],
                bias=own.get("bias"),
                transform=logit_transform(policy),
            ),
        )
        other = score_tokens(reference, batch, statistics=statistics)
    columns = [own["logps"], other["logps"], other["reference_kl"]]
    sums = torch.stack([batch.sum_over_tokens(each.double())[:, 0] for each in columns], dim=1)
    return [(row[0], row[1], row[2]) for row in sums.tolist()]


def kl_numbers(rows: Sequence[SampleKl], *, seed: int = 0) -> dict[str, Estimate]:
    """Means over all answers, with intervals over prompts.

    `kl` is per answer and `kl_per_token` that over the mean number of tokens; `/plain` marks the
    estimates from drawn tokens alone. `num_tokens` is an answer's length, `share_cut` the share of
    answers that reached the limit.
    """
    assert rows, "no samples"
    numbers = {name: number for number, name in enumerate(dict.fromkeys(r.prompt_id for r in rows))}
    cluster = np.array([numbers[row.prompt_id] for row in rows])
    num_tokens = np.array([row.num_tokens for row in rows], dtype=np.float64)
    divergence = np.array([row.divergence for row in rows])
    ratio = np.array([row.policy_logp - row.reference_logp for row in rows])
    cut = np.array([row.is_cut for row in rows], dtype=np.float64)
    columns: dict[str, tuple[Any, Any]] = {
        "kl": (divergence, None),
        "kl_per_token": (divergence, num_tokens),
        "kl/plain": (ratio, None),
        "kl_per_token/plain": (ratio, num_tokens),
        "num_tokens": (num_tokens, None),
        "share_cut": (cut, None),
    }
    return estimates(
        {
            name: Clustered(values=values, weights=weights, cluster=cluster)
            for name, (values, weights) in columns.items()
        },
        num_clusters=len(numbers),
        unit="samples",
        shares=("share_cut",),
        seed=seed,
    )


def _check_vocabularies(policy: Model, reference: Model) -> None:
    sizes = [base_of(each).get_output_embeddings().weight.shape[0] for each in (policy, reference)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"--reference: has {sizes[1]:,} tokens where the policy has {sizes[0]:,}, so no answer "
            "has a log-ratio. Give a model with the policy's tokenizer."
        )
