"""An arm at work, in a process of its own: it does what it is told, and waits.

Loop, optimiser and data path are those that users of either trainer have; only a callback is added.
"""

import os
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from benchmark_arms import LORA_RANK, Evidence, Job, divisor_up_to
from benchmark_callbacks import Turns, Watch, hung_in, timed
from benchmark_workloads import MAX_LENGTH, as_pairs
from transformers import TrainerCallback

SEED = 42
NUM_STEPS_OF_CHECK, LEARNING_RATE_OF_CHECK = 6, 2e-4
# A run never ends by itself: it is told when.
NUM_STEPS_WITHOUT_END = 10**6
MICRO_BATCHES = {"cpu": (1, 2, 4, 8), "cuda": (2, 4, 8, 16)}
"""Pairs that are tried for a tuned arm."""


def work(connection: Connection, log: Path, num_threads: int) -> None:
    """The process: takes (command, job) until it gets None; answers each with one object."""
    _quietly(log, num_threads)
    commands = {"check": check, "tune": tune}
    while (order := connection.recv()) is not None:
        command, job = order
        if command == "run":
            _train(job, Turns(connection, job.device))
            return
        connection.send(commands[command](job))


def _quietly(log: Path, num_threads: int) -> None:
    """What libraries print goes to a file."""
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(target, 1)
    os.dup2(target, 2)
    torch.set_num_threads(num_threads)


def check(job: Job) -> Evidence:
    """Train a few steps on small groups, at a rate that moves the loss."""
    watch = Watch()
    # All arms do so beside each other, and threads that wait for each other would be in the way.
    torch.set_num_threads(1)
    _train(
        replace(job, rows=job.rows_of_check, groups_per_step=job.groups_per_step_of_check),
        watch,
        num_steps=NUM_STEPS_OF_CHECK,
        learning_rate=LEARNING_RATE_OF_CHECK,
        logging_steps=1,
    )
    torch.set_num_threads(job.num_threads)
    return Evidence(
        logps=watch.logps,
        gradient=watch.gradient,
        losses=watch.losses,
        grad_norms=watch.grad_norms,
        tokens_per_step=watch.num_tokens,
    )


def tune(job: Job) -> int:
    """The pairs per micro-batch with which some pairs of middling length go fastest."""
    pairs = _sorted_by_length(as_pairs(job.rows))
    limits = MICRO_BATCHES[job.device]
    begin = max(0, (len(pairs) - limits[-1]) // 2)
    pairs = pairs[begin : begin + limits[-1]]
    seconds_per_pair = {}
    sizes = {divisor_up_to(min(limit, len(pairs)), job.pairs_per_step) for limit in limits}
    for size in sorted(sizes):
        num_pairs = len(pairs) // size * size
        clock = Turns(None, job.device)
        arm = replace(job.arm, pairs_per_micro_batch=size)
        _train_trl(replace(job, arm=arm), clock, pairs[:num_pairs], num_pairs, num_steps=3)
        seconds_per_pair[size] = min(clock.seconds[1:]) / num_pairs
    return min(seconds_per_pair, key=seconds_per_pair.__getitem__)


def _train(job: Job, callback: TrainerCallback, **settings: Any) -> None:
    if job.arm.trainer == "prefopt":
        _train_prefopt(job, callback, **settings)
        return
    pairs = as_pairs(job.rows)
    if job.arm.is_tuned:
        # `group_by_length` sorts within parts of at most a quarter of the data, so that a long data
        # set is nearly sorted and one as short as this is hardly so: sorting favours trl.
        pairs = _sorted_by_length(pairs)
    _train_trl(job, callback, pairs, job.pairs_per_step, **settings)


def _sorted_by_length(pairs: list[dict[str, str]]) -> list[dict[str, str]]:
    def longest_row(pair: dict[str, str]) -> int:
        prompt, *responses = (len(pair[key].split()) for key in ("prompt", "chosen", "rejected"))
        return prompt + max(responses)

    return sorted(pairs, key=longest_row, reverse=True)


def _train_trl(
    job: Job,
    callback: TrainerCallback,
    pairs: list[dict[str, str]],
    pairs_per_step: int,
    *,
    num_steps: int = NUM_STEPS_WITHOUT_END,
    learning_rate: float = 1e-6,
    logging_steps: int = 10,
) -> None:
    import datasets
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    class TimedTrainer(DPOTrainer):
        """Tells the callback what the reference took."""

        def _precompute_ref_logps(self, *args: Any, **kwargs: Any) -> Any:
            return timed(super()._precompute_ref_logps, callback)(*args, **kwargs)

    size = divisor_up_to(job.arm.pairs_per_micro_batch, pairs_per_step)
    adapter = LoraConfig(
        r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    arguments: dict[str, Any] = {"gradient_checkpointing": False} if job.arm.is_tuned else {}
    if job.device == "cpu":
        arguments |= {"use_cpu": True, "bf16": False}
    dtype = torch.bfloat16 if job.is_lora else torch.float32
    with hung_in(callback):
        trainer = TimedTrainer(
            model=AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype),
            args=DPOConfig(
                output_dir=str(job.folder / "trl"),
                beta=job.beta,
                max_length=MAX_LENGTH,
                precompute_ref_log_probs=job.arm.is_tuned,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=pairs_per_step // size,
                train_sampling_strategy="sequential",
                max_steps=num_steps,
                learning_rate=learning_rate,
                lr_scheduler_type="constant",
                logging_steps=logging_steps,
                seed=SEED,
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                **arguments,
            ),
            train_dataset=datasets.Dataset.from_list(pairs),
            processing_class=AutoTokenizer.from_pretrained(job.model),
            peft_config=adapter if job.is_lora else None,
        )
        trainer.train()


def _train_prefopt(
    job: Job,
    callback: TrainerCallback,
    *,
    num_steps: int = NUM_STEPS_WITHOUT_END,
    learning_rate: float = 1e-6,
    logging_steps: int = 10,
) -> None:
    from prefopt.commands.train import train
    from prefopt.train import cached_reference

    compute_all = timed(cached_reference.compute_all, callback)
    with hung_in(callback), patch.object(cached_reference, "compute_all", compute_all):
        train(recipe_of(job, num_steps, learning_rate, logging_steps), overwrite=True)


def recipe_of(job: Job, num_steps: int, learning_rate: float, logging_steps: int) -> Any:
    """What a user would write."""
    from prefopt.config import Recipe

    sections: dict[str, dict[str, Any]] = {
        "model": {"path": str(job.model), "dtype": "bfloat16" if job.is_lora else "float32"},
        "data": {
            "sources": [{"path": str(job.rows)}],
            "cache_dir": str(job.folder / "cache"),
            "max_length": MAX_LENGTH,
        },
        "objective": {"name": "dpo", "beta": job.beta},
        "training": {
            "output_dir": str(job.folder / "run"),
            "groups_per_step": job.groups_per_step,
            "shuffle": False,
            "max_steps": num_steps,
            "learning_rate": learning_rate,
            "lr_scheduler_type": "constant",
            "logging_steps": logging_steps,
            "seed": SEED,
            "save_strategy": "no",
            **({} if job.device == "cpu" else {"bf16": True}),
        },
    }
    if job.is_lora:
        sections["adapter"] = {"r": LORA_RANK, "alpha": 2 * LORA_RANK}
    for name, section in job.arm.recipe.items():
        sections[name] = {**sections.get(name, {}), **section}
    return Recipe.model_validate(sections)
