"""One comparison from recipes to report, step by step; what a step has left on disk is kept."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer
import yaml

from prefopt.commands.compare_measure import PolicyMeter
from prefopt.comparison.assemble import Gathered, Judged, Policy, report_of
from prefopt.comparison.jobs import Jobs, reads_cache, reference_key
from prefopt.comparison.judging import (
    best_setting,
    check_apart,
    matches,
    questions,
    scored,
    wins_by_prompt,
)
from prefopt.comparison.plan import Run, notes_on, with_seed
from prefopt.comparison.section import START, ComparisonSection
from prefopt.evaluation.analysis import longest_answers, null_answers
from prefopt.evaluation.files import write_json, write_whole
from prefopt.evaluation.generate.answers import read_answers
from prefopt.evaluation.generate.load import load_backend
from prefopt.evaluation.generate.run import generate
from prefopt.evaluation.judge.build import build_judge
from prefopt.evaluation.judge.runner import run_judge
from prefopt.evaluation.numbers import Saved, SweepPoint
from prefopt.evaluation.report.write import HTML_NAME, write_report
from prefopt.evaluation.statistics.intervals import mean_interval
from prefopt.evaluation.suites import read_suite
from prefopt.evaluation.types import Answer, Judgment, Prompt
from prefopt.train.run_folder import installed_versions

CONSTANT, LONGEST = "constant", "longest"
"""Sanity rows: what a judge can be fooled by."""


class Comparison:
    """Trains, answers, judges, measures and reports; each step first looks what is there."""

    def __init__(
        self, section: ComparisonSection, runs: Mapping[str, list[Run]], command: str
    ) -> None:
        """Reads the prompts.

        Args:
            section: what is compared.
            runs: every setting of every method, with the first seed.
            command: what the user typed, for the report.

        Raises:
            UserError: if prompts cannot be read, or settings would be picked by test prompts.
        """
        self._section, self._runs, self._command = section, runs, command
        self._folder = section.output_dir
        suite = read_suite(section.prompts.test, references=section.prompts.references)
        self._suite_notes = list(suite.notes)
        self._test = list(suite.prompts)
        self._validation: list[Prompt] = []
        if section.prompts.validation is not None:
            self._validation = list(read_suite(section.prompts.validation).prompts)
            check_apart(self._test, self._validation)
        self._judges = {name: build_judge(judge) for name, judge in section.judges.items()}

    def run(self) -> None:
        """Everything, and the report.

        Raises:
            UserError: for a mistake that the user can mend; the same command goes on then.
        """
        settings = [run for runs in self._runs.values() for run in runs]
        jobs = Jobs(self._folder, self._section.launcher, self._section.num_jobs, typer.echo)
        write_whole(
            self._folder / "comparison.yaml",
            yaml.safe_dump(self._section.model_dump(mode="json"), sort_keys=False),
        )
        records = self._precompute(jobs, settings)
        typer.echo(f"training {len(settings)} settings with seed {self._section.seeds[0]}")
        jobs.train(settings)
        chosen, sweep = self._choose()
        others = [
            with_seed(run, self._section, seed)
            for run in chosen.values()
            for seed in self._section.seeds[1:]
        ]
        if others:
            typer.echo(f"training {len(others)} more seeds")
            jobs.train(others)
        everything = [*settings, *others]
        selected = {run.name for run in [*chosen.values(), *others]}
        gathered = self._gather(everything, selected, sweep, records)
        write_report(report_of(gathered, START), self._folder)
        typer.echo(f"report in {self._folder / HTML_NAME}")

    def _precompute(self, jobs: Jobs, runs: Sequence[Run]) -> dict[str, int]:
        """Records whose reference log-probs a run would compute, by what the numbers depend on."""
        file = self._folder / "reference.json"
        if not file.exists():
            write_json(file, jobs.precompute(runs))
        found: dict[str, int] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _choose(self) -> tuple[dict[str, Run], list[SweepPoint]]:
        """The setting of each method with the most wins against the start, on validation."""
        if not self._validation:
            return {name: runs[0] for name, runs in self._runs.items()}, []
        varied = [run for runs in self._runs.values() if len(runs) > 1 for run in runs]
        prompts = {prompt.prompt_id: prompt for prompt in self._validation}
        answers = self._answers("validation", self._validation, varied)
        judgments = self._judge(
            next(iter(self._judges)),
            "validation",
            [(run.name, START) for run in varied],
            answers,
            prompts,
        )
        chosen, sweep = {}, list[SweepPoint]()
        for name, runs in self._runs.items():
            if len(runs) == 1:
                chosen[name] = runs[0]
                continue
            wins = [wins_by_prompt(judgments, run.name, START) for run in runs]
            found = [mean_interval(list(each.values()), "prompts", share=True) for each in wins]
            best = best_setting([each["value"] for each in found])
            chosen[name] = runs[best]
            sweep += [
                SweepPoint(
                    method=name,
                    settings=run.setting.values,
                    validation=each,
                    is_selected=number == best,
                )
                for number, (run, each) in enumerate(zip(runs, found, strict=True))
            ]
        return chosen, sweep

    def _answers(
        self, suite: str, prompts: Sequence[Prompt], runs: Sequence[Run]
    ) -> dict[str, Sequence[Answer]]:
        """What the start and the runs' policies answer, by system."""
        start = next(iter(self._runs.values()))[0].recipe.model
        places = {START: start.path, **{run.name: str(run.folder) for run in runs}}
        # The weights alone of what a recipe says of its model: the rest of it is for training.
        model = {"dtype": start.dtype, "trust_remote_code": start.trust_remote_code}
        known = {prompt.prompt_id for prompt in prompts}
        num_wanted = len(prompts) * self._section.generation.num_samples
        found: dict[str, Sequence[Answer]] = {}
        for system, place in places.items():
            path = self._folder / "answers" / suite / f"{system}.jsonl"
            there = read_answers(path)[1] if path.exists() else []
            if len(there) == num_wanted and {each.prompt_id for each in there} == known:
                found[system] = there
                continue
            section = self._section.generation
            backend = load_backend(place, section, model)
            found[system] = generate(backend, prompts, section, path, system=system)
        typer.echo(f"{len(found)} systems have answered {len(prompts)} {suite} prompts")
        return found

    def _judge(
        self,
        name: str,
        suite: str,
        pairs: Sequence[tuple[str, str]],
        answers: Mapping[str, Sequence[Answer]],
        prompts: Mapping[str, Prompt],
        systems: Sequence[str] = (),
    ) -> list[Judgment]:
        """Verdicts of a judge on pairs of systems, and its scores of systems."""
        judge = self._judges[name]
        found = run_judge(
            judge,
            questions(pairs, answers, prompts),
            scored(systems, answers, prompts) if self._section.judges_score else (),
            self._folder / "judgments" / suite / f"{name}.jsonl",
            allow_missing=self._section.allow_missing,
            progress=True,
        )
        typer.echo(f"judge {name}: {len(found):,} judgments of {suite} answers")
        return found

    def _gather(
        self,
        runs: Sequence[Run],
        selected: set[str],
        sweep: Sequence[SweepPoint],
        records: Mapping[str, int],
    ) -> Gathered:
        """Answers, verdicts and measurements of everything that was trained."""
        prompts = {prompt.prompt_id: prompt for prompt in self._test}
        answers = self._answers("test", self._test, runs)
        own = [run for run in runs if run.name in selected]
        systems: dict[str, dict[int | None, str]] = {START: {None: START}}
        for run in own:
            systems.setdefault(run.setting.method, {})[run.seed] = run.name
        methods = {name: list(by_seed.values()) for name, by_seed in systems.items()}
        trained = {name: answers[name] for name in answers if name == START or name in selected}
        answers[CONSTANT] = null_answers(self._test)
        answers[LONGEST] = longest_answers(trained)
        sanity: dict[str, dict[int | None, str]] = {
            name: {None: name} for name in (CONSTANT, LONGEST)
        }
        pairs = list(matches(systems))
        against = self._section.baseline
        pairs += list(matches({against: systems[against], **sanity}, against=against))
        rest = [(run.name, START) for run in runs if run.name not in selected]
        judged = []
        for number, name in enumerate(self._judges):
            asked = [*pairs, *(rest if number == 0 else [])]
            everyone = [system for each in methods.values() for system in each]
            found = self._judge(name, "test", asked, answers, prompts, everyone)
            judged.append(Judged(name=name, identity=self._judges[name].identity, judgments=found))
        return Gathered(
            title=self._section.title,
            protocol=f"pairs of answers, both orders, with judge {', '.join(self._judges)}",
            command=self._command,
            versions=installed_versions(),
            prompts=self._test,
            methods={**methods, CONSTANT: [CONSTANT], LONGEST: [LONGEST]},
            seeds={
                name: [seed for seed in each if seed is not None] for name, each in systems.items()
            },
            settings={run.setting.method: _settings(run) for run in own},
            baseline=against,
            sanity=(CONSTANT, LONGEST),
            answers=answers,
            judged=judged,
            policies=self._policies(runs, selected),
            sweep=sweep,
            saved=_saved(runs, records),
            notes=[*self._suite_notes, *notes_on(self._runs)],
        )

    def _policies(self, runs: Sequence[Run], selected: set[str]) -> list[Policy]:
        """What is measured of every trained policy, once."""
        meter: PolicyMeter | None = None
        entanglement = self._section.entanglement
        found = []
        for run in runs:
            file = self._folder / "measured" / f"{run.name}.json"
            is_first = run.name in selected and run.seed == self._section.seeds[0]
            num_groups = entanglement.groups if entanglement is not None and is_first else 0
            if not file.exists():
                meter = meter or PolicyMeter(run.recipe, self._test, self._section.kl)
                write_json(file, meter.measure(run, num_groups))
            numbers: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            found.append(
                Policy(
                    method=run.setting.method,
                    seed=run.seed,
                    system=run.name,
                    settings=run.setting.values,
                    is_selected=run.name in selected,
                    kl=numbers.get("kl", {}).get("kl"),
                    pairs=numbers["pairs"],
                    entanglement=numbers.get("entanglement", {}),
                )
            )
        typer.echo(f"{len(found)} policies measured")
        return found


def _settings(run: Run) -> dict[str, Any]:
    return {"objective": run.recipe.objective.name, **run.setting.values}


def _saved(runs: Sequence[Run], records: Mapping[str, int]) -> Saved:
    """Log-probs of the reference that were computed once instead of in every run."""
    of_key = {reference_key(run): records[run.name] for run in runs if run.name in records}
    readers = [run for run in runs if reads_cache(run) and reference_key(run) in of_key]
    once, alone = sum(of_key.values()), sum(of_key[reference_key(run)] for run in readers)
    share = f", {once / alone:.0%} of what they would have computed alone" if alone else ""
    return Saved(
        num_runs=len(runs),
        num_reference_groups=once,
        num_reference_groups_alone=alone,
        sentence=(
            f"{len(readers)} of {len(runs)} runs read reference log-probs of {once:,} records "
            f"that were computed once{share}. All runs of a method and seed read the same data in "
            "the same order."
        ),
    )
