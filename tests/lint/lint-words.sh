#!/usr/bin/env bash
# Words that have no place here: old names, left-overs, and what a reader cannot use.
set -uo pipefail
bad=0
if git grep -nIE '\b(TODO|FIXME|XXX|HACK)\b' -- '*.c' '*.h' '*.sh' '*.proto' Makefile.in configure ':!tests/lint'; then
	echo "left-overs: say it in an issue, or do it"
	bad=1
fi
if git grep -nIiE '\bmultisnap\b' -- . ':!tests/lint' ':!core/ondisk/FORMAT.md'; then
	echo "one word per thing: thin"
	bad=1
fi
if git grep -nIE '[[:space:]]+$' -- '*.c' '*.h' '*.sh' '*.md' | head -n 5 | grep .; then
	echo "blanks at the end of lines"
	bad=1
fi
# Every folder with sources says what it is for.
for d in $(git ls-files 'core/*.c' 'proto/*.c' 'server/*.c' 'client/*.c' | xargs -n1 dirname | sort -u); do
	[ -f "$d/README.md" ] || {
		echo "$d/README.md is missing"
		bad=1
	}
done
exit $bad
