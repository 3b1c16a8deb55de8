"""`prefopt compare`: train several objectives alike, judge what they answer, and report."""

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from prefopt.commands.compare_demo import demo_comparison
from prefopt.commands.compare_steps import Comparison
from prefopt.commands.hush import hush
from prefopt.commands.judge import load_section
from prefopt.comparison.plan import Run, runs_of
from prefopt.comparison.section import ComparisonSection, load_comparison
from prefopt.errors import UserError, check_section
from prefopt.yaml_text import read_mapping


def run(
    files: Sequence[Path],
    *,
    is_demo: bool,
    output: Path | None,
    prompts: Path | None,
    judge: Path | None,
    seeds: str | None,
    is_dry: bool,
) -> None:
    """Compare what the files say; see `prefopt compare --help`.

    Raises:
        UserError: for a mistake that the user can mend.
    """
    with_recipes = {"--prompts": prompts, "--judge": judge, "--seeds": seeds}
    if is_demo:
        if files or any(with_recipes.values()):
            raise UserError("--demo brings its own recipes, prompts and judges. Leave them out.")
        if is_dry:
            raise UserError(
                "--dry-run does not go with --demo, which trains a start first. Leave it out."
            )
        section = demo_comparison(output or Path("runs/compare"))
    else:
        section = _section(files, output, with_recipes)
    hush()
    runs = runs_of(section)
    comparison = Comparison(section, runs, _command())
    if not is_dry:
        comparison.run()
        return
    comparison.check(asks=False)
    _say_what(section, runs)


def _section(
    files: Sequence[Path], output: Path | None, with_recipes: dict[str, Any]
) -> ComparisonSection:
    if not files:
        raise UserError("compare: give a comparison file, recipes, or --demo.")
    if len(files) == 1 and _is_comparison(files[0]):
        given = [option for option, value in with_recipes.items() if value is not None]
        if given:
            raise UserError(f"{given[0]} goes with recipes; {files[0]} says it all. Leave it out.")
        section = load_comparison(files[0])
        return section if output is None else section.model_copy(update={"output_dir": output})
    missing = [each for each in ("--prompts", "--judge") if with_recipes[each] is None]
    if missing or output is None:
        needed = [*missing, *(["--output"] if output is None else [])]
        raise UserError(f"compare: recipes need {', '.join(needed)} too, or use a comparison file.")
    names = [file.stem if file.stem != "tiny" else file.parent.name for file in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"compare: two recipes are called {twice}. Rename one, or use a comparison file."
        )
    judge = with_recipes["--judge"]
    values = {
        "output_dir": output,
        "methods": {name: {"recipe": file} for name, file in zip(names, files, strict=True)},
        "prompts": {"test": with_recipes["--prompts"]},
        "judges": {judge.stem: load_section(judge)},
        "seeds": _numbers(with_recipes["--seeds"] or "0"),
    }
    return check_section(ComparisonSection, values, "")


def _is_comparison(file: Path) -> bool:
    return "methods" in read_mapping(file, what="comparison or recipe", keys="sections")


def _numbers(text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise UserError(f"--seeds: '{text}' is no list of numbers. Write them as 0,1,2.")
    return [int(word) for word in words]


def _say_what(section: ComparisonSection, runs: Mapping[str, Sequence[Run]]) -> None:
    num_settings = sum(len(settings) for settings in runs.values())
    num_more = len(runs) * (len(section.seeds) - 1)
    for settings in runs.values():
        for each in settings:
            typer.echo(f"{each.name}: {each.setting.values or 'as its recipe says'}")
    typer.echo(
        f"{num_settings} settings with seed {section.seeds[0]}, then the best of each method with "
        f"{len(section.seeds) - 1} more seeds: {num_settings + num_more} runs in "
        f"{section.output_dir}"
    )


def _command() -> str:
    return shlex.join(["prefopt", *sys.argv[1:]])
