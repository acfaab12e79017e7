#!/usr/bin/env bash
# The libraries export only names with their own prefix, and all that their maps list.
# libthinmeta moreover exports exactly what its map and its header name, keeps no state of
# its own, and neither prints nor ends the process.
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
lib=$BUILD/libthinmeta.so
exported=$(nm -D --defined-only "$lib" | awk '$2 != "A" {print $3}' | sort)
mapped=$(sed -n 's/^\t\(thinmeta_[a-z_]*\);$/\1@@THINMETA_0/p' core/offline/libthinmeta.map | sort)
declared=$(tr '\n' ' ' <core/offline/thinmeta.h | grep -oE 'THINMETA_API [^;(]*\bthinmeta_[a-z_]+\(' |
	sed 's/.*\b\(thinmeta_[a-z_]*\)($/\1@@THINMETA_0/' | sort)
for what in mapped declared; do
	[ "$exported" = "${!what}" ] || {
		echo "libthinmeta: what is exported and what is $what differ:"
		diff <(echo "$exported") <(echo "${!what}") || true
		bad=1
	}
done
state=$(nm "$lib" | awk '$2 ~ /^[bBC]$/ && $3 !~ /^completed\./ {print $3}')
[ -z "$state" ] || {
	echo "libthinmeta keeps state in: $state"
	bad=1
}
# stderr and abort are the assertion's, for our own mistakes.
loud=$(nm -D -u "$lib" | awk '{print $2}' | sed 's/@.*//' |
	grep -xE 'v?printf|__v?printf_chk|puts|putchar|exit|_exit|quick_exit|signal|sigaction|setlocale|stdout|system|fork' || true)
[ -z "$loud" ] || {
	echo "libthinmeta uses: $loud"
	bad=1
}
exit $bad
