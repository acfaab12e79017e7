#!/usr/bin/env bash
# Style as a test. From the top of the sources; BUILD names the build folder.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
failed=0
for l in tests/lint/lint-*.sh; do
	start=$(date +%s)
	if "$l"; then
		echo "ok    $(basename "$l") ($(($(date +%s) - start)) s)"
	else
		echo "FAIL  $(basename "$l")"
		failed=$((failed + 1))
	fi
done
[ $failed = 0 ]
