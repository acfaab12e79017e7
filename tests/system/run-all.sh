#!/usr/bin/env bash
# Runs every tests/system/test-*.sh against the programs in $BUILD, one after another.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${BUILD:?BUILD names the folder with the programs}"
export BUILD
limit=${TEST_TIMEOUT:-${THIN_TEST_LONG:+7200}} # seconds for one of them
passed=0 failed=0 summary=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=("$here"/test-*.sh)
for t in "${tests[@]}"; do
	start=$(date +%s)
	if timeout "${limit:-900}" "$t" >"$log" 2>&1; then
		passed=$((passed + 1))
		echo "ok    $(basename "$t") ($(($(date +%s) - start)) s)"
	else
		rc=$?
		failed=$((failed + 1))
		echo "FAIL  $(basename "$t"): exit $rc"
		tail -n 40 "$log" | cut -c1-400
		words=$(grep '^FAILED: ' "$log" | tail -n 1 | cut -c9-300)
		[ $rc != 124 ] || words="took longer than ${limit:-900} s; last: $(tail -n 1 "$log" | cut -c1-200)"
		summary+=("FAILED $(basename "$t"): ${words:-exit $rc: $(tail -n 1 "$log" | cut -c1-200)}")
	fi
done
[ $failed = 0 ] || printf '%s\n' "${summary[@]}" # last, where it is seen
echo "$passed passed, $failed failed"
[ $failed = 0 ] && [ $passed -gt 0 ]
