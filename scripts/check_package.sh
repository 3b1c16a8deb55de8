#!/usr/bin/env bash
# Builds prefopt as it would be published, installs it where no checkout is, and uses it there.
# `check_package.sh [TESTS...]`: tests to run against the installed wheel, a good part by default.
# PYTHON names the interpreter, EXTRAS what is installed: PYTHON=python3.13 scripts/check_package.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly python=${PYTHON:-.venv/bin/python}
readonly extras=${EXTRAS:-all,dev}
tests=("$@")
if ((${#tests[@]} == 0)); then
    tests=(tests/{objectives,ops,data} tests/test_{cli,config,recipes}.py tests/train/test_trainer.py)
fi
readonly tests
place=$(mktemp -d)
readonly place
trap 'rm -rf "$place"' EXIT

export HF_HUB_OFFLINE=1 TRL_EXPERIMENTAL_SILENCE=1 WANDB_MODE=offline TOKENIZERS_PARALLELISM=false
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=Agg
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-}
# Nothing of the checkout must be found by chance.
unset PYTHONPATH

step() {
    local start=$SECONDS
    echo "== $*"
    "$@"
    echo "== $((SECONDS - start)) s"
}

build() {
    # What git knows, as it is now: no build folder, cache or environment gets in.
    mkdir "$place/source"
    git ls-files -z --cached --others --exclude-standard | xargs -0 cp -a --parents -t "$place/source"
    "$python" -m venv "$place/tools"
    "$place/tools/bin/pip" install --quiet -c constraints.txt build twine
    "$place/tools/bin/python" -m build --outdir "$place/dist" "$place/source" >"$place/build.log"
    "$place/tools/bin/twine" check --strict "$place"/dist/*
}

install() {
    local pip="$place/venv/bin/pip"
    "$python" -m venv "$place/venv"
    "$pip" install --quiet -c constraints.txt torch
    "$pip" install --quiet -c constraints.txt "$(echo "$place"/dist/*.whl)[$extras]"
    "$pip" check
}

use() {
    local bin="$place/venv/bin"
    mkdir "$place/empty"
    cd "$place/empty"
    "$bin/python" --version
    "$bin/python" -c 'import prefopt; print(prefopt.__file__)' | tee imported
    grep -q "^$place/venv/" imported
    "$bin/prefopt" --version
    "$bin/prefopt" objectives >objectives
    "$bin/prefopt" schema --output schema.json
    cmp schema.json "$place/source/recipes/recipe.schema.json"
    "$bin/prefopt" demo --output demo
    # This recipe reads what the demo wrote.
    "$bin/prefopt" train "$place/unpacked/recipes/dpo/tiny.yaml" training.max_steps=2
}

types() {
    # Without py.typed mypy would find no types in prefopt.
    cat >"$place/empty/script.py" <<'END'
from pathlib import Path

from prefopt.config import Recipe, load_recipe
from prefopt.objectives import build, registered


def recipes(folder: Path) -> dict[str, Recipe]:
    return {file.stem: load_recipe(file) for file in folder.glob("*.yaml")}


print(sorted(registered()))
reveal_type(build({"name": "dpo"}))
END
    (cd "$place/empty" && "$place/venv/bin/mypy" --strict script.py) | tee "$place/types"
    grep -q 'Revealed type is "prefopt.objectives.base.Objective"' "$place/types"
}

run_tests() {
    # The tests come from the source distribution, whose own package is put out of their way.
    rm -r "$place/unpacked/prefopt"
    cd "$place/unpacked"
    "$place/venv/bin/python" -m pytest -q -n "${PYTEST_WORKERS:-2}" --dist loadfile "${tests[@]}"
}

step build
mkdir "$place/unpacked"
tar xzf "$place"/dist/*.tar.gz -C "$place/unpacked" --strip-components 1
step install
(step use)
(step types)
(step run_tests)
echo "== passed: package, $SECONDS s"
