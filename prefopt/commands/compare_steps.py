"""One comparison from recipes to report, step by step; what a step has left on disk is kept."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import typer
import yaml

from prefopt.commands.compare_answers import Answering, policy_of, release, with_system
from prefopt.commands.compare_data import TrainingData
from prefopt.commands.compare_judges import Jury
from prefopt.commands.compare_measure import check_kl_prompts
from prefopt.commands.compare_policies import measured_policies
from prefopt.comparison.assemble import Gathered, report_of
from prefopt.comparison.folder import alone_in
from prefopt.comparison.jobs import Jobs, reads_cache, records_needed, reference_key
from prefopt.comparison.judging import (
    best_setting,
    check_apart,
    matches,
    sanity_answers,
    wins_by_prompt,
)
from prefopt.comparison.plan import Run, notes_on, with_seed
from prefopt.comparison.section import CONSTANT, LONGEST, START, ComparisonSection
from prefopt.errors import UserError
from prefopt.evaluation.files import write_json, write_whole
from prefopt.evaluation.generate.load import digest_of
from prefopt.evaluation.numbers import Saved, SweepPoint
from prefopt.evaluation.report.write import HTML_NAME, write_report
from prefopt.evaluation.statistics.intervals import mean_interval
from prefopt.evaluation.suites import read_suite
from prefopt.evaluation.types import Answer, Prompt
from prefopt.train.run_folder import installed_versions


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
        self._start = next(iter(runs.values()))[0].recipe
        self._kl_prompts = with_system(self._test, section.generation.system)
        self._jury = Jury(section)
        self._data = TrainingData()
        self._answering = Answering(self._folder / "answers", section.generation, self._start)

    def check(self, *, asks: bool) -> None:
        """See before any training that what comes after it can be done.

        Args:
            asks: put a question to judges that have not judged here yet.

        Raises:
            UserError: for a judge that cannot be used, or prompts too long for their KL.
        """
        self._jury.check(self._test[0], asks=asks)
        if self._section.kl is not None:
            check_kl_prompts(self._start.model, self._kl_prompts, self._section.kl)

    def run(self) -> None:
        """Everything, and the report.

        Raises:
            UserError: for a mistake that the user can mend; the same command goes on then.
        """
        with alone_in(self._folder) as lock:
            self.check(asks=True)
            section = self._section
            jobs = Jobs(
                self._folder, section.launcher, section.num_jobs, typer.echo, keeps_open=(lock,)
            )
            self._run(jobs)

    def _run(self, jobs: Jobs) -> None:
        settings = [run for runs in self._runs.values() for run in runs]
        more = [with_seed(run, self._section, s) for run in settings for s in self._section.seeds]
        self._data.check_unchanged([*settings, *more])
        # A prompt that the start cannot read is known before hours of training.
        self._answers("test", self._test, [])
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
        found: dict[str, int] = {}
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
        if not found.keys() >= {run.name for run in runs if reads_cache(run)}:
            found = jobs.precompute(runs)
            write_json(file, found)
        return found

    def _choose(self) -> tuple[dict[str, Run], list[SweepPoint]]:
        """The setting of each method with the most wins against the start, on validation."""
        varied = [run for runs in self._runs.values() if len(runs) > 1 for run in runs]
        if not varied:
            return {name: runs[0] for name, runs in self._runs.items()}, []
        prompts = {prompt.prompt_id: prompt for prompt in self._validation}
        answers = self._answers("validation", self._validation, varied)
        judge = self._jury.names[0]
        asked = [(run.name, START) for run in varied]
        judgments = self._jury.ask(judge, "validation", asked, answers, prompts).judgments
        release()
        chosen, sweep = {}, list[SweepPoint]()
        for name, runs in self._runs.items():
            if len(runs) == 1:
                chosen[name] = runs[0]
                continue
            wins = [wins_by_prompt(judgments, run.name, START) for run in runs]
            silent = next((run for run, each in zip(runs, wins, strict=True) if not each), None)
            if silent is not None:
                raise UserError(
                    f"judge {judge} has no verdict in both orders on {silent.name} and the start, "
                    f"so no setting of {name} can be picked. Mend the judge and run again."
                )
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
        found = self._answering.answers(suite, prompts, runs)
        typer.echo(f"{len(found)} systems have answered {len(prompts)} {suite} prompts")
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
        num_samples = self._section.generation.num_samples
        answers |= sanity_answers(self._test, trained, num_samples)
        sanity: dict[str, dict[int | None, str]] = {
            name: {None: name} for name in (CONSTANT, LONGEST)
        }
        pairs = list(matches(systems))
        against = self._section.baseline
        pairs += list(matches({against: systems[against], **sanity}, against=against))
        rest = [(run.name, START) for run in runs if run.name not in selected]
        judged = []
        everyone = [system for each in methods.values() for system in each]
        for number, name in enumerate(self._jury.names):
            asked = [*pairs, *(rest if number == 0 else [])]
            judged.append(self._jury.ask(name, "test", asked, answers, prompts, everyone))
            release()
        return Gathered(
            title=self._section.title,
            protocol=f"pairs of answers, both orders, with judge {', '.join(self._jury.names)}",
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
            policies=measured_policies(
                self._section, self._start, runs, selected, self._kl_prompts
            ),
            sweep=sweep,
            saved=_saved(runs, records),
            notes=[
                *self._suite_notes,
                *notes_on(self._runs),
                *_notes_on_seeds(own),
                *self._notes_on_prompts(own),
            ],
        )

    def _notes_on_prompts(self, runs: Sequence[Run]) -> list[str]:
        """Test prompts that policies may know the answers to."""
        num = self._data.num_seen(runs, self._test)
        if not num:
            return []
        return [
            f"{num:,} of {len(self._test):,} test prompts are among the training data, up to case "
            "and white space."
        ]


def _notes_on_seeds(runs: Sequence[Run]) -> list[str]:
    """Methods whose seeds came to one and the same policy, as without shuffling they may."""
    policies: dict[str, list[str]] = {}
    for run in runs:
        policies.setdefault(run.setting.method, []).append(digest_of(*policy_of(run)))
    alike = [name for name, found in policies.items() if len(set(found)) < len(found)]
    if not alike:
        return []
    return [
        f"Seeds of {', '.join(alike)} came to the same policy, so what is said of several seeds "
        "holds for these checkpoints. Let something be drawn: set training.shuffle."
    ]


def _settings(run: Run) -> dict[str, Any]:
    return {"objective": run.recipe.objective.name, **run.setting.values}


def _saved(runs: Sequence[Run], records: Mapping[str, int]) -> Saved | None:
    """Log-probs of the reference that were computed once instead of in every run."""
    of_key = {reference_key(run): records[run.name] for run in runs if run.name in records}
    readers = [run for run in runs if reads_cache(run) and reference_key(run) in of_key]
    if not readers:
        return None
    once = sum(of_key.values())
    alone = sum(records_needed(run, of_key[reference_key(run)]) for run in readers)
    return Saved(
        num_runs=len(runs),
        num_reference_groups=once,
        num_reference_groups_alone=alone,
        sentence=(
            f"{len(readers)} of {len(runs)} runs read reference log-probs of {once:,} records "
            f"that were computed once; each alone, they would have needed {alone:,}, of the "
            "records that they train on. All runs of a seed draw their data in the same order."
        ),
    )
