#!/usr/bin/env bash
# clang-tidy with .clang-tidy's checks, over all sources.
set -uo pipefail
: "${BUILD:?}"
mapfile -t files < <(git ls-files 'core/*.c' 'proto/*.c' 'server/*.c' 'client/*.c')
flags=(-std=c11 -D_GNU_SOURCE '-DTHIN_VERSION="0"' '-DTHIN_SYSCONFDIR="/etc"' '-DTHIN_RUNSTATEDIR="/run"' -I. -isystem "$BUILD/gen")
for p in libnl-genl-3.0 smartcols blkid; do
	for f in $(pkg-config --cflags "$p"); do flags+=("$f"); done
done
log=$(mktemp)
trap 'rm -f "$log"' EXIT
printf '%s\n' "${files[@]}" | xargs -P "$(nproc)" -n 8 sh -c \
	'clang-tidy --quiet "$@" -- '"$(printf '%q ' "${flags[@]}")" sh >"$log" 2>/dev/null
rc=$?
if [ $rc != 0 ]; then
	grep -E 'error:|warning:' "$log" | sort -u | head -n 40
	return_code=1
fi
exit "${return_code:-0}"
