#!/bin/bash
# Pin every dependency with its hashes in requirements/*.txt, from what pyproject.toml asks for.
#
#   scripts/pin.sh             keep what is pinned, add and remove what pyproject.toml changed
#   scripts/pin.sh --upgrade   take the newest versions
#
# The build backend is pinned too, so that an installation needs nothing that is not in these files. The files name
# no index: where packages come from is the machine's business.
set -euo pipefail
cd "$(dirname "$0")/.."

compile() { # file, then what to add to the run-time dependencies
  local file=requirements/$1.txt
  shift
  CUSTOM_COMPILE_COMMAND=scripts/pin.sh "${PYTHON:-.venv/bin/python}" -m piptools compile --quiet --generate-hashes --allow-unsafe \
    --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links --no-emit-options \
    --build-deps-for editable --output-file "$file" "$@" pyproject.toml
  if grep -nE '://|^-|(^|[ "=])/' "$file"; then
    echo "$file names an address or a path of this machine (see above)" >&2
    exit 1
  fi
}

compile runtime "${@}"
compile demo --extra demo "${@}"
compile dev --extra demo --extra dev "${@}"
