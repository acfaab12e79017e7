#!/bin/sh
# Runs test programs one after another and says how it went, one line each; the output
# of a failed one is shown. TEST_TIMEOUT: seconds for each (default 300). TEST_WRAPPER:
# words in front of each.
passed=0 failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for t; do
	start=$(date +%s)
	# shellcheck disable=SC2086 # the wrapper is words
	if timeout "${TEST_TIMEOUT:-300}" ${TEST_WRAPPER:-} "$t" >"$log" 2>&1; then
		passed=$((passed + 1))
		echo "ok    $(basename "$t") ($(($(date +%s) - start)) s)"
	else
		rc=$?
		failed=$((failed + 1))
		echo "FAIL  $(basename "$t"): exit $rc"
		tail -n 60 "$log"
	fi
done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ] && [ "$passed" -gt 0 ]
