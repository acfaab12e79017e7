#!/usr/bin/env bash
# A bounded run of each fuzzer over its corpus: FUZZ_TIME seconds each (default 15).
# What is found stands in the present folder as crash-*, with the seed that repeats it.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
failed=0
new=$(mktemp -d)
log=$(mktemp)
trap 'rm -rf "$new" "$log"' EXIT
for f; do
	name=$(basename "$f")
	corpus=$here/corpus/${name#fuzz_}
	[ -d "$corpus" ] || {
		echo "FAIL  $name: $corpus is missing"
		failed=1
		continue
	}
	mkdir -p "$new/$name"
	if "$f" -max_total_time="${FUZZ_TIME:-15}" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 \
		"$new/$name" "$corpus" >"$log" 2>&1; then
		echo "ok    $name ($(sed -n 's/^stat::number_of_executed_units: *//p' "$log") runs)"
	else
		echo "FAIL  $name"
		tail -n 40 "$log"
		failed=1
	fi
done
exit $failed
