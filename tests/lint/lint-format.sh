#!/usr/bin/env bash
# clang-format as .clang-format says.
set -uo pipefail
mapfile -t files < <(git ls-files '*.c' '*.h')
out=$(clang-format --dry-run --Werror "${files[@]}" 2>&1) && exit 0
grep error <<<"$out" | cut -d: -f1 | sort | uniq -c | sed 's/$/: not formatted/'
exit 1
