#!/bin/bash
# Style, types, the import contract and the generated docs, side by side; each prints its own verdict and time.
#
#   scripts/check.sh            these, and the pure tests: the core, the order, the house, the contracts on stand-ins
#   scripts/check.sh --static   only these
#
# Exit 1 if any of them failed. What failed shows its output; the tests show theirs last.
set -uo pipefail
cd "$(dirname "$0")/.." || exit

bin=${VENV:-.venv}/bin
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
names=()

# run NAME COMMAND...: starts it, keeps its output, its exit code and its seconds.
run() {
  local name=$1
  shift
  names+=("$name")
  {
    local start=$EPOCHREALTIME
    "$@" >"$out/$name.log" 2>&1 </dev/null
    echo "$?" >"$out/$name.code"
    awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.1f", b - a }' >"$out/$name.seconds"
  } &
}

# Files with generated parts: they carry cog's mark.
mapfile -t generated < <(grep -rlF '[[[cog' README.md docs 2>/dev/null)

run ruff "$bin/ruff" check --quiet --output-format concise
run format "$bin/ruff" format --check --quiet
run mypy "$bin/mypy"
run imports "$bin/lint-imports"
if [ ${#generated[@]} -gt 0 ]; then run docs "$bin/cog" --check "${generated[@]}"; fi
if [ "${1:-}" = --static ]; then
  # A second opinion on types, which takes as long as everything else: `make test` asks for it.
  run pyright "$bin/pyright" --pythonpath "$bin/python"
else
  # The contracts on the stand-ins that ship: nothing here starts a server or waits for a time-out; `make test` does.
  run tests "$bin/python" -m pytest -q -n 2 -m 'not slow and not needs_server and not needs_docker and not needs_npm and not system' \
    tests/core tests/runbook tests/contract tests/test_*.py
fi
wait

failed=0
for name in "${names[@]}"; do
  if [ "$(cat "$out/$name.code")" = 0 ]; then verdict=ok; else verdict=FAILED failed=1; fi
  if [ "$verdict" = FAILED ] && [ "$name" != tests ]; then cat "$out/$name.log"; fi
  printf '%-7s %-8s %5s s\n' "$verdict" "$name" "$(cat "$out/$name.seconds")"
done
if [ -f "$out/tests.log" ]; then cat "$out/tests.log"; fi
exit $failed
