"""Plants bugs that were chosen by hand, one at a time, and lists those that no test catches.

Usage: python scripts/known_bugs.py [WORD ...], from the project's root; words choose bugs by their
file or text. A periodic check of the tests, not part of the gate.
"""

import importlib
import os
import sys

import pytest
from mutants import HEAVY, ROOT, forked, plant, run_tests

_OBJECTIVES = ("tests/objectives",)
_CORE = (
    *("tests/objectives", "tests/ops", "tests/test_types.py"),
    *("tests/models/test_head.py", "tests/models/test_layout.py"),
)
_DATA = ("tests/data/test_plan.py", "tests/data/test_collate.py", "tests/models/test_layout.py")

_TOKENS = (
    *("tests/data/test_token_facts.py", "tests/train/test_scoring.py", "tests/train/test_steps.py"),
    "tests/train/test_needs.py",
)

# File, what stands there, the bug, the tests that should catch it.
BUGS = [
    ("types.py", "per_response.dtype)\n", "torch.float32)\n", _CORE),
    ("types.py", "policy_logps = self.policy_logps.masked_fill(~self.where, 0.0)",
     "policy_logps = self.policy_logps", _OBJECTIVES),
    ("types.py", "slots.masked_scatter(self.where", "slots.masked_scatter(~self.where", _CORE),
    ("ops/pairs.py", "scores.unsqueeze(2) > scores", "scores.unsqueeze(2) >= scores", _CORE),
    ("ops/pairs.py", "both = where.unsqueeze(2) & where.unsqueeze(1)",
     "both = where.unsqueeze(2)", _CORE),
    ("ops/pairs.py", "-torch.inf", "-1.0", _CORE),
    ("ops/pairs.py", "where & torch.where(alone, scores > 0, above_another)",
     "where & above_another", _CORE),
    ("ops/reductions.py", "values.masked_fill(~mask, 0.0)", "(values * mask)", _CORE),
    ("ops/reductions.py", "num_true.clamp(min=1)", "(num_true + 1e-6)", _CORE),
    ("ops/logps.py", "torch.promote_types(logits.dtype, torch.float32)", "logits.dtype", _CORE),
    ("ops/logps.py",
     "checkpoint(function, *tile, use_reentrant=False, preserve_rng_state=False)",
     "function(*tile)", _CORE),
    ("ops/logps.py", "(reference.exp() * (reference - logps))",
     "(logps.exp() * (logps - reference))", _CORE),
    ("ops/logps.py", "logits.logsumexp(dim=1)", "logits.exp().sum(dim=1).log()", _CORE),
    ("objectives/dpo.py", "-(1 - eps) * F.logsigmoid(margins)",
     "-(1 - eps) * (F.sigmoid(margins) + 1e-12).log()", _OBJECTIVES),
    ("objectives/dpo.py", "eps * F.logsigmoid(-margins)", "eps * F.logsigmoid(margins)",
     _OBJECTIVES),
    ("objectives/dpo.py", "rewards=rewards.detach()", "rewards=rewards", _OBJECTIVES),
    ("objectives/dpo.py", "num_tokens.clamp(min=1)", "num_tokens", _OBJECTIVES),
    ("objectives/ipo.py", "1 / (2 * self.tau)", "1 / self.tau", _OBJECTIVES),
    ("objectives/ipo.py", "(self.tau * log_ratios).detach()", "log_ratios.detach()", _OBJECTIVES),
    ("objectives/nll.py", "counted=selected.any(dim=1)", "counted=inputs.where.any(dim=1)",
     _OBJECTIVES),
    ("objectives/nll.py", "weight = masked_sum(inputs.num_tokens.to(losses.dtype), selected)",
     "weight = masked_sum(inputs.num_tokens.to(losses.dtype), inputs.where)", _OBJECTIVES),
    ("objectives/weighted_sum.py", "coefficient=weight * term.coefficient",
     "coefficient=term.coefficient", _OBJECTIVES),
    ("objectives/weighted_sum.py", ".any(dim=0)", ".all(dim=0)", _OBJECTIVES),
    ("objectives/weighted_sum.py", "key=_STRICTEST_FIRST.index", "key=str", _OBJECTIVES),
    ("section.py", 'raise ValueError("should not be true or false")', "pass", _OBJECTIVES),
    ("models/layout.py", "+ prompt.length - 1)", "+ prompt.length)", _CORE),
    ("models/layout.py", "attention_mask=(source >= 0).long()",
     "attention_mask=(source >= -1).long()", _CORE),
    ("models/logits.py", "scale=factor / divisor", "scale=divisor / factor", _CORE),
    ("models/logits.py", "self.softcap * torch.tanh(logits / self.softcap)", "logits", _CORE),
    ("models/head.py", "linear(tile, head.weight, head.bias)", "linear(tile, head.weight)", _CORE),
    ("models/head.py", "if not isinstance(head, nn.Linear) or not installed:", "if head is None:",
     ("tests/models/test_head.py", "tests/models/test_adapters.py")),
    ("data/collate.py", "torch.arange(len(ids)) + record.num_prompt_tokens",
     "torch.arange(len(ids))", _DATA),
    ("data/collate.py", "dtype=torch.float64", "dtype=torch.float32", _DATA),
    ("data/plan.py", "[plan.seed, epoch, *filter", "[plan.seed, *filter", _DATA),
    ("data/plan.py", "step_of_run = epoch * self.steps_per_epoch + step", "step_of_run = step",
     _DATA),
    ("data/token_facts.py", "autojunk=False", "autojunk=True", _TOKENS),
    ("data/token_facts.py", "best: record.response_ids[record.scores.index(worst)]",
     "best: record.response_ids[record.scores.index(best)]", _TOKENS),
    ("data/select.py", '"forget": 0.0, "retain": 1.0', '"forget": 1.0, "retain": 0.0', _TOKENS),
    ("train/steps.py", "[self.plan.seed, *key]", "[self.plan.seed, key[0]]", _TOKENS),
    ("train/steps.py", "following = np.roll(numbers, -1)", "following = numbers", _TOKENS),
    ("train/scoring.py", "torch.tensor(positions, device=device)",
     "torch.arange(len(positions), device=device)", _TOKENS),
    ("train/needs.py", "if weight == 0 or num_counted == 0:", "if num_counted == 0:", _TOKENS),
    ("models/reference.py", "if REFERENCE_ADAPTER not in self.peft_model.peft_config:", "if False:",
     ("tests/models/test_reference.py",)),
    ("data/plan.py", "load.index(min(load))", "i % num_ranks", _DATA),
    ("data/plan.py", "<= budget", "<= 2 * budget", _DATA),
    ("data/plan.py", "[[]] * (num - len(batches))", "[]", _DATA),
    ("train/metrics.py", "> 0).to(rewards.dtype)", ">= 0).to(rewards.dtype)",
     ("tests/train/test_metrics.py",)),
    ("train/metrics.py", "where = where & (not is_filler)", "pass",
     ("tests/train/test_metrics.py",)),
]  # fmt: skip


def main(words: list[str]) -> int:
    """Plant the chosen bugs; 1 if a test misses one."""
    os.chdir(ROOT)
    sys.dont_write_bytecode = True
    for name in HEAVY:
        importlib.import_module(name)
    chosen = [bug for bug in BUGS if not words or any(word in " ".join(bug[:3]) for word in words)]
    everything = sorted({test for *_, tests in chosen for test in tests})
    if forked(lambda: run_tests(everything), None) != 0:
        sys.exit("The tests fail without any bug planted; mend that first.")
    survivors = []
    for name, right, wrong, tests in chosen:
        path = ROOT / "prefopt" / name
        text = path.read_text(encoding="utf-8")
        if right not in text:
            print(f"stale     {name}: {right!r} is not there", flush=True)
            survivors.append(name)
            continue
        source = text.replace(right, wrong).encode()

        def work(source: bytes = source, path=path, tests=tests) -> int:
            plant(path, source)
            return run_tests(tests)

        is_caught = forked(work, None) != pytest.ExitCode.OK
        print(f"{'caught  ' if is_caught else 'SURVIVED'}  {name}: {wrong!r}", flush=True)
        if not is_caught:
            survivors.append(name)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
