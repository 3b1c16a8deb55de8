#!/usr/bin/env bash
# The gate, the same here and in CI. `check.sh [all | static | slow | soak | coverage]`, all by default.
# BIN names the folder of the tools, .venv/bin by default.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly mode=${1:-all}
readonly bin=${BIN:-.venv/bin}
# Two workers of one thread each: more only fight over the cores of a small machine.
readonly workers=${PYTEST_WORKERS:-2}

# No test needs the network or reports anywhere.
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1
export TRL_EXPERIMENTAL_SILENCE=1 WANDB_MODE=offline WANDB_SILENT=true WANDB_ERROR_REPORTING=false
export TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} MPLBACKEND=Agg
# The theme of the site advertises its successor at every build.
export NO_MKDOCS_2_WARNING=1
export CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES-}

step() {
    local start=$SECONDS
    echo "== $*"
    "$@"
    echo "== $((SECONDS - start)) s"
}

static() {
    step "$bin/ruff" check .
    step "$bin/ruff" format --check .
    step "$bin/mypy"
    step "$bin/lint-imports"
    step "$bin/mkdocs" build --strict --quiet
}

case $mode in
    all)
        static
        # One worker runs the whole of a file, so that what its tests share is built once.
        step "$bin/python" -m pytest -n "$workers" --dist loadfile --durations=10
        ;;
    static) static ;;
    slow)
        # What trains on several processes has all cores; the rest shares them.
        step "$bin/python" -m pytest -m slow --durations=10 tests/invariants
        step "$bin/python" -m pytest -m slow --durations=10 -n "$workers" --dist loadfile \
            --ignore tests/invariants
        ;;
    soak) step "$bin/python" -m pytest -m soak -n "$workers" --durations=10 ;;
    coverage)
        mkdir -p runs/coverage
        step "$bin/coverage" erase
        step "$bin/coverage" run -m pytest -n "$workers" --dist loadfile --durations=10
        step "$bin/coverage" combine --quiet
        step "$bin/coverage" report
        ;;
    *)
        echo "error: unknown mode '$mode'; use all, static, slow, soak or coverage." >&2
        exit 2
        ;;
esac
echo "== passed: $mode, $SECONDS s"
