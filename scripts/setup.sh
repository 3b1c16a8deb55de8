#!/usr/bin/env bash
# Creates .venv and installs prefopt with the tested versions; make calls this when they change.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3 /usr/bin/python3.11; do
        if "$candidate" -c 'import ensurepip, sys, venv; assert sys.version_info >= (3, 11)' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "error: no Python >= 3.11 with venv found; install one or set PYTHON=/path/to/python." >&2
    return 1
}

python=$(find_python)
if ! .venv/bin/python -c '' 2>/dev/null; then
    rm -rf .venv
    "$python" -m venv .venv
fi

# torch first and alone: what follows then finds it installed and builds against it.
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
    -e ".[dev,all]"
touch .venv/.installed
