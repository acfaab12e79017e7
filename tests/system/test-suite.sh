#!/usr/bin/env bash
# The tests of dm-thin's own suites that have a meaning here; tests/DM-THIN-SUITE.md says which
# is which. test-suite.sh [PART [TEST...]] runs some of them.
. "$(dirname "$0")/lib.sh"
need_tools thin_check thin_dump thin_delta thin_ls nbdcopy qemu-img fio
here=$SRC/tests/system/suite
part=${1:-}
[ $# = 0 ] || shift
export W BUILD
start_server
failed=0
for f in "$here"/*.py; do
	name=$(basename "$f" .py)
	[ "$name" != suite ] || continue
	[ -z "$part" ] || [ "$part" = "$name" ] || continue
	echo "== $name"
	(cd "$W" && PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 "$f" "$@") || failed=1
done
stop_server
[ $failed = 0 ] || fail "the suite"
