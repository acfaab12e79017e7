#!/usr/bin/env bash
# Runs every tests/system/test-*.sh against the programs in $BUILD, one after another, or
# JOBS of them at a time: each has a folder and a server of its own.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
: "${BUILD:?BUILD names the folder with the programs}"
export BUILD
limit=${TEST_TIMEOUT:-${THIN_TEST_LONG:+7200}} # seconds for one of them
limit=${limit:-900}
jobs=${JOBS:-1}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tests=("$@")
[ ${#tests[@]} -gt 0 ] || tests=("$here"/test-*.sh)

# What it prints is written in one piece; what it leaves: passed, or the words of its failure.
run_one() { # number, test
	local log=$work/$1.log start rc=0 words
	start=$(date +%s)
	timeout "$limit" "$2" >"$log" 2>&1 || rc=$?
	if [ $rc = 0 ]; then
		echo "ok    $(basename "$2") ($(($(date +%s) - start)) s)"
		echo passed >"$work/$1.end"
		return
	fi
	echo "FAIL  $(basename "$2"): exit $rc
$(tail -n 40 "$log" | cut -c1-400)"
	words=$(grep '^FAILED: ' "$log" | tail -n 1 | cut -c9-300)
	[ $rc != 124 ] || words="took longer than $limit s; last: $(tail -n 1 "$log" | cut -c1-200)"
	echo "FAILED $(basename "$2"): ${words:-exit $rc: $(tail -n 1 "$log" | cut -c1-200)}" >"$work/$1.end"
}

nr=0
for t in "${tests[@]}"; do
	[ "$(jobs -rp | wc -l)" -lt "$jobs" ] || wait -n
	nr=$((nr + 1))
	run_one "$nr" "$t" &
done
wait
passed=0
for i in $(seq "$nr"); do
	if [ "$(cat "$work/$i.end" 2>/dev/null)" = passed ]; then
		passed=$((passed + 1))
	else # last, where it is seen
		cat "$work/$i.end" 2>/dev/null || echo "FAILED $(basename "${tests[i - 1]}"): it has not ended"
	fi
done
echo "$passed passed, $((nr - passed)) failed"
[ $passed = $nr ] && [ $passed -gt 0 ]
