#!/usr/bin/env bash
# clang-format as .clang-format says.
set -euo pipefail
mapfile -t files < <(git ls-files '*.c' '*.h')
clang-format --dry-run --Werror "${files[@]}" 2>&1 | grep -E 'error' | sed 's/: error.*/: not formatted/' | sort | uniq -c | sort -rn | head -n 20
exit "${PIPESTATUS[0]}"
