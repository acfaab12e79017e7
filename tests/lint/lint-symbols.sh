#!/usr/bin/env bash
# The libraries export only names with their own prefix, and all that their maps list.
set -euo pipefail
: "${BUILD:?}"
bad=0
for l in thinclient:thin_client_ thinmeta:thinmeta_; do
	lib=$BUILD/lib${l%%:*}.so prefix=${l#*:}
	[ -f "$lib" ] || {
		echo "$lib is missing"
		exit 1
	}
	names=$(nm -D --defined-only "$lib" | awk '$2 != "A" {print $3}' | sed 's/@.*//')
	[ -n "$names" ] || {
		echo "$lib exports nothing"
		bad=1
	}
	wrong=$(grep -v "^$prefix" <<<"$names" || true)
	[ -z "$wrong" ] || {
		echo "$lib exports foreign names: $wrong"
		bad=1
	}
done
exit $bad
