"""The cost of every objective as a share of a training step, after a check of its gradient."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from prefopt.data.collate import collate
from prefopt.models.head import install_logp_head
from prefopt.models.layout import token_logps
from prefopt.objectives import Objective, build, registered
from prefopt.types import GroupBatch, ObjectiveInputs, TokenInputs, TokenizedRecord

NUM_GROUPS, NUM_RESPONSES, PROMPT_TOKENS, RESPONSE_TOKENS = 4, 8, 64, 64
VOCABULARY = 8192
# What has no default.
REQUIRED: dict[str, dict[str, Any]] = {
    "aft": {"beta": 0.1},
    # Scores here lie in [0, 1], where its own gap of 3 would leave nothing to do.
    "clha": {"score_gap": 0.1},
    "cringe": {"k": 5},
    "infonca": {"alpha": 0.5},
    "npo": {"retain": "kl"},
    "weighted_sum": {"terms": [{"name": "dpo"}, {"name": "nll", "weight": 0.2}]},
}
BAR = 0.03


def objectives(rounds: int) -> dict[str, Any]:
    """Milliseconds of a step and of every objective, and their ratios."""
    batch = collate([_record(g) for g in range(NUM_GROUPS)])
    policy, reference = _model(), _model()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6)
    dpo = build({"name": "dpo"})

    def step() -> None:
        with torch.no_grad():
            reference_logps = batch.sum_over_tokens(token_logps(reference, batch))
        logps = batch.sum_over_tokens(token_logps(policy, batch))
        dpo(_inputs(batch, logps, reference_logps)).losses.mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    all_of_them = {name: build({"name": name, **REQUIRED.get(name, {})}) for name in registered()}
    for name, objective in all_of_them.items():
        _check(name, objective, batch)
    times: dict[str, list[float]] = {"step": [], **{name: [] for name in all_of_them}}
    for _ in range(rounds):
        times["step"].append(_seconds(step, repeats=1))
        for name, objective in all_of_them.items():
            call = _call(objective, batch, torch.float32)
            times[name].append(_seconds(call, repeats=20))
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    in_step = medians.pop("step")
    return {
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, CPU",
        "torch": torch.__version__,
        "model": "Qwen3, hidden 256, 6 layers, vocabulary 8192",
        "groups": NUM_GROUPS,
        "responses": NUM_RESPONSES,
        "step_ms": round(in_step, 2),
        "objective_ms": {name: round(value, 3) for name, value in medians.items()},
        "share_of_step": {name: round(value / in_step, 5) for name, value in medians.items()},
    }


def print_table(result: dict[str, Any]) -> None:
    """The numbers, dearest first, and whether the bar is met."""
    print(f"one training step with dpo: {result['step_ms']:.1f} ms ({result['machine']})")
    shares = result["share_of_step"]
    for name in sorted(shares, key=shares.__getitem__, reverse=True):
        print(f"{name:18} {result['objective_ms'][name]:8.3f} ms  {100 * shares[name]:6.3f} %")
    worst = max(shares.values())
    print(f"dearest: {100 * worst:.2f} % of a step; the bar is {100 * BAR:g} %")


def _check(name: str, objective: Objective, batch: GroupBatch) -> None:
    """The gate: float32 agrees with float64 in the gradient that is about to be timed."""
    exact, rounded = (_call(objective, batch, dtype)() for dtype in (torch.float64, torch.float32))
    error = (rounded.double() - exact).norm() / exact.norm()
    assert exact.norm() > 0, f"{name}: no gradient"
    assert error < 1e-4, f"{name}: float32 differs from float64 by {error:.1e}"


def _call(objective: Objective, batch: GroupBatch, dtype: torch.dtype) -> Callable[[], Tensor]:
    """One call: losses and their gradient with respect to the policy's log-probs."""
    generator = torch.Generator().manual_seed(1)
    num = batch.targets.shape[0]

    def drawn(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).to(dtype)

    per_token, reference = -3 * drawn(num), -3 * drawn(num)
    top_logps = -3 * drawn(num, max(objective.num_top_logits, 1))
    reference_kl, noise, weights = drawn(num), drawn(num), drawn(num)

    scores = batch.scores
    if objective.needs == "labels":
        scores = (scores > 1 / 2).to(scores.dtype)

    def call() -> Tensor:
        leaf = per_token.detach().requires_grad_()
        inputs = _inputs(batch, batch.sum_over_tokens(leaf), batch.sum_over_tokens(reference))
        inputs = replace(inputs, scores=scores)
        if objective.needs_tokens:
            tokens = TokenInputs(
                policy_logps=leaf,
                reference_logps=reference,
                response=batch.response_of_token,
                labels=batch.targets,
                weights=weights,
                top_logps=top_logps,
                top_ids=batch.targets.unsqueeze(1).expand(-1, top_logps.shape[1]) + 1,
                # Through the leaf, so that the gradient has somewhere to go.
                reference_kl=reference_kl * leaf.square(),
                noise=noise,
                differs=noise < 1 / 2,
            )
            inputs = replace(inputs, tokens=tokens)
        (gradient,) = torch.autograd.grad(objective(inputs).losses.sum(), leaf)
        return gradient

    return call


def _inputs(batch: GroupBatch, policy_logps: Tensor, reference_logps: Tensor) -> ObjectiveInputs:
    return ObjectiveInputs(
        policy_logps=policy_logps,
        reference_logps=reference_logps,
        num_tokens=batch.num_tokens,
        scores=batch.scores,
        where=batch.where,
    )


def _record(number: int) -> TokenizedRecord:
    generator = torch.Generator().manual_seed(number)
    prompt, *responses = (
        torch.randint(VOCABULARY, (length,), generator=generator)
        for length in (PROMPT_TOKENS, *[RESPONSE_TOKENS] * NUM_RESPONSES)
    )
    scores = torch.rand(NUM_RESPONSES, generator=generator).tolist()
    return TokenizedRecord(
        id=str(number),
        prompt_ids=prompt,
        response_ids=tuple(responses),
        scores=tuple(scores),
    )


def _model() -> Qwen3ForCausalLM:
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=256,
            intermediate_size=768,
            num_hidden_layers=6,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=512,
        )
    )
    install_logp_head(model)
    return model


def _seconds(action: Callable[[], object], *, repeats: int) -> float:
    """Of one action, as the mean over some."""
    start = time.perf_counter()
    for _ in range(repeats):
        action()
    return (time.perf_counter() - start) / repeats
