#!/bin/sh
# Runs test programs one after another and says how it went, one line each; the output
# of a failed one is shown, and last what failed in a line each. TEST_TIMEOUT: seconds for
# each (default 600). TEST_WRAPPER: words in front of each. The limits of single cases are
# for a machine that is not busy; they are stretched.
export CK_TIMEOUT_MULTIPLIER="${CK_TIMEOUT_MULTIPLIER:-4}"
passed=0 failed=0 summary=
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for t; do
	start=$(date +%s)
	# shellcheck disable=SC2086 # the wrapper is words
	if timeout "${TEST_TIMEOUT:-600}" ${TEST_WRAPPER:-} "$t" >"$log" 2>&1; then
		passed=$((passed + 1))
		echo "ok    $(basename "$t") ($(($(date +%s) - start)) s)"
	else
		rc=$?
		failed=$((failed + 1))
		echo "FAIL  $(basename "$t"): exit $rc"
		tail -n 60 "$log" | cut -c1-400
		# Check's own lines of failures, else the last line.
		words=$(grep -E ':[EF]:[^:]*:|^SEED=|ERROR: |runtime error: ' "$log" | head -n 3 | cut -c1-250)
		[ -n "$words" ] || words=$(tail -n 1 "$log" | cut -c1-250)
		summary="${summary}FAILED $(basename "$t"): exit $rc: $words
"
	fi
done
printf '%s' "$summary"
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
