#!/bin/sh
# Makes .venv/ with the locked runtime, extras, test and development sets and an editable Ostiary.
# Finds a Python >= 3.12 itself: $PYTHON, PATH, pyenv's versions, uv. Quick when nothing changed.
set -eu
cd "$(dirname "$0")/.."

# A python counts only when it runs, is new enough and can make a virtual environment.
fits() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; }

find_python() {
    if [ -n "${PYTHON:-}" ]; then
        fits "$PYTHON" && { printf '%s\n' "$PYTHON"; return 0; }
        echo "PYTHON=$PYTHON is not a Python >= 3.12 with the venv module." >&2
        return 1
    fi
    for name in python3.13 python3.12 python3.14 python3 python; do
        path=$(command -v "$name" 2>/dev/null) || continue
        fits "$path" && { printf '%s\n' "$path"; return 0; }
    done
    for root in "${PYENV_ROOT:-}" "${HOME:-/nonexistent}/.pyenv" "$(pyenv root 2>/dev/null || true)"; do
        [ -n "$root" ] || continue
        for path in "$root"/versions/3.13*/bin/python "$root"/versions/3.12*/bin/python "$root"/versions/3.1[4-9]*/bin/python; do
            fits "$path" && { printf '%s\n' "$path"; return 0; }
        done
    done
    if command -v uv >/dev/null 2>&1; then
        path=$(uv python find '>=3.12' 2>/dev/null) && fits "$path" && { printf '%s\n' "$path"; return 0; }
    fi
    cat >&2 <<'MSG'
Ostiary needs Python 3.12 or newer with the venv module, and none was found on PATH, under pyenv or through uv.
Install one, then run make again:
  Debian, Ubuntu   apt-get install python3.13-venv   (or python3.12-venv)
  macOS            brew install python@3.13
  pyenv            pyenv install 3.13
  uv               uv python install 3.13
or name one: make setup PYTHON=/path/to/python3.13
MSG
    return 1
}

stamp=.venv/.locked
want=$(cat requirements/runtime.txt requirements/extras.txt requirements/test.txt requirements/dev.txt pyproject.toml | cksum)
if [ -x .venv/bin/ostiary ] && [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && fits .venv/bin/python; then
    exit 0
fi

python=$(find_python)
echo "setup: $("$python" --version) at $python"
if ! fits .venv/bin/python; then
    rm -rf .venv
    "$python" -m venv .venv
fi
rm -f "$stamp"
pip=".venv/bin/python -m pip --disable-pip-version-check --no-input -q"
$pip install --require-hashes -r requirements/runtime.txt -r requirements/extras.txt -r requirements/test.txt -r requirements/dev.txt
# The build back end comes from the locked development set: nothing is fetched unpinned.
$pip install --no-deps --no-build-isolation -e .
printf '%s\n' "$want" >"$stamp"
echo "setup: .venv/bin/ostiary is ready"
