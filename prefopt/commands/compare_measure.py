"""What is measured of one trained policy beside its answers: KL, held-out pairs, gradients."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import AutoConfig, PreTrainedModel, set_seed

from prefopt.commands.compare_answers import release, start_of
from prefopt.commands.diagnose_subject import Subject, groups_of, subject_of
from prefopt.commands.parts import steps_of
from prefopt.comparison.plan import Run
from prefopt.comparison.section import KlSection
from prefopt.config import Recipe
from prefopt.data.plan import StepPlan
from prefopt.diagnostics.entanglement import broken_conditions
from prefopt.errors import UserError
from prefopt.evaluation.continuations import prompt_ids
from prefopt.evaluation.held_out import pair_numbers
from prefopt.evaluation.kl import kl_numbers, sample_and_score
from prefopt.evaluation.numbers import Estimate
from prefopt.evaluation.statistics.intervals import mean_interval
from prefopt.evaluation.types import Prompt
from prefopt.models.head import layout_of
from prefopt.models.load import load_policy
from prefopt.models.reference import FrozenCopy
from prefopt.models.section import ModelSection
from prefopt.models.tokenizer import load_tokenizer
from prefopt.train.diagnosis import Diagnosis
from prefopt.train.fixed_groups import FixedGroups
from prefopt.train.steps import StepDataset

Model = PreTrainedModel | PeftModel


def check_kl_prompts(model: ModelSection, prompts: Sequence[Prompt], kl: KlSection) -> None:
    """Refuse prompts that leave no room for the answers that the KL is measured on.

    Tokenizer and configuration are read, and no weights.

    Raises:
        UserError: for a prompt that cannot be rendered, or the longest one with both numbers.
    """
    asked = prompt_ids(prompts[: kl.max_prompts], load_tokenizer(model))
    config = AutoConfig.from_pretrained(
        model.path, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    most = getattr(config.get_text_config(), "max_position_embeddings", None)
    longest = max(len(ids) for _, ids in asked) + kl.max_new_tokens
    if most is not None and longest > most:
        raise UserError(
            f"kl.max_new_tokens: the longest prompt with its answer comes to {longest:,} tokens, "
            f"and the model reads {most:,}. Lower it in a comparison file, or shorten the prompts."
        )


class PolicyMeter:
    """Measures trained policies against the model that all of them started from."""

    def __init__(self, recipe: Recipe, prompts: Sequence[Prompt], kl: KlSection | None) -> None:
        """Loads that model.

        Args:
            recipe: of any of the runs; they all start alike.
            prompts: what policies answer for their KL.
            kl: how it is measured; None leaves it out.
        """
        self._accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        self._own_reference: tuple[Any, FrozenCopy] | None = None
        self._tokenizer = load_tokenizer(recipe.model)
        self._kl = kl
        self._prompts = [] if kl is None else prompt_ids(prompts[: kl.max_prompts], self._tokenizer)
        start = load_policy(*start_of(recipe))
        self._start = FrozenCopy(start)
        self._start.prepare(self._accelerator)
        self._start_model = start

    def measure(self, run: Run, num_groups: int) -> dict[str, Any]:
        """Plain numbers of a finished run.

        Args:
            run: whose folder holds the trained policy.
            num_groups: held-out groups whose gradients are looked at; 0 leaves that out.
        """
        subject = subject_of(str(run.folder), [], data=[], objective=None, reference=None)
        set_seed(0)
        policy = subject.load_policy()
        if subject.model.quantization is None:
            policy.to(self._accelerator.device)
        store = groups_of(subject, [], self._tokenizer)
        reference = self._reference_of(subject)
        plan = StepPlan(
            records_per_source=(len(store),),
            source_weights=(1.0,),
            groups_per_step=len(store),
            seed=0,
        )
        steps = steps_of(run.recipe, store, plan, layout_of(policy)[0])
        found: dict[str, Any] = {"pairs": self._pairs(run, policy, reference, steps)}
        if self._kl is not None:
            rows = sample_and_score(
                policy,
                self._start_model,
                self._tokenizer,
                self._prompts,
                num_samples=self._kl.num_samples,
                max_new_tokens=self._kl.max_new_tokens,
                batch_size=32,
            )
            found["kl"] = kl_numbers(rows)
        if num_groups:
            found["entanglement"] = self._entanglement(run, policy, reference, steps, num_groups)
        del policy
        release()
        return found

    def _reference_of(self, subject: Subject) -> FrozenCopy:
        """What a run's log-ratios are measured against: the start, unless its recipe names another.

        One such other model is kept for runs that follow.
        """
        section = subject.reference
        if section is None or section.path is None:
            return self._start
        key = (section.path, subject.recipe.model)
        if self._own_reference is None or self._own_reference[0] != key:
            self._own_reference = None
            release()
            reference = subject.load_reference()
            assert reference is not None
            reference.prepare(self._accelerator)
            self._own_reference = key, reference
        return self._own_reference[1]

    def _pairs(
        self, run: Run, policy: Model, reference: FrozenCopy, steps: StepDataset
    ) -> dict[str, Estimate]:
        """How held-out pairs are ranked, and where their log-probs went since the start."""
        fixed = FixedGroups(steps, len(steps.store))
        if fixed.num_pairs == 0:
            return {}
        objective = run.recipe.objective
        held_out = fixed.score(objective, policy, reference, self._accelerator, None)
        start_logps = held_out.reference_logps
        if reference is not self._start:
            at_start = fixed.score(objective, self._start_model, reference, self._accelerator, None)
            start_logps = at_start.policy_logps
        return pair_numbers(replace(held_out, start_logps=start_logps))

    def _entanglement(
        self,
        run: Run,
        policy: Model,
        reference: FrozenCopy,
        steps: StepDataset,
        num_groups: int,
    ) -> dict[str, Estimate]:
        """How the gradients of a pair's responses hang together, over pairs of held-out groups."""
        objective = run.recipe.objective
        found = Diagnosis(
            policy,
            objective,
            reference,
            steps,
            num_groups,
            self._accelerator,
            normalises=run.recipe.training.normalise_gradients,
        )
        columns: dict[str, list[float]] = {"cosine": []}
        groups: dict[str, list[str]] = {"cosine": []}
        for number, group in enumerate(found.groups):
            of_group = {"cosine": group.pairs.cosine.double()}
            if group.found.influence is not None:
                chosen, rejected = broken_conditions(group.influence, group.pairs)
                of_group["share_chosen_condition_broken"] = chosen.double()
                of_group["share_rejected_condition_broken"] = rejected.double()
            for name, values in of_group.items():
                known = values[~values.isnan()].tolist()
                columns.setdefault(name, []).extend(known)
                groups.setdefault(name, []).extend([str(number)] * len(known))
        return {
            name: mean_interval(
                values, "groups", clusters=groups[name], share=name.startswith("share")
            )
            for name, values in columns.items()
            if values
        }
