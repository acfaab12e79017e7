#!/usr/bin/env bash
# The tests of dm-thin's own suites that have a meaning here; tests/DM-THIN-SUITE.md says which
# is which. test-suite.sh [PART [TEST...]] runs some of them.
. "$(dirname "$0")/lib.sh"
need_tools thin_check thin_dump thin_delta thin_ls nbdcopy qemu-img fio
here=$SRC/tests/system/suite
part=${1:-}
[ $# = 0 ] || shift
export W BUILD

# The table names what there is, and all of it.
python3 - "$SRC/tests" <<'END' || fail "DM-THIN-SUITE.md is not true"
import os, re, sys
tests, wrong = sys.argv[1], []
table = open(tests + "/DM-THIN-SUITE.md").read()
have = {}
for f in sorted(os.listdir(tests + "/system/suite")):
    if f.endswith(".py") and f != "suite.py":
        have[f[:-3]] = re.findall(r"^def test_(\w+)", open(tests + "/system/suite/" + f).read(), re.M)
for part, names in have.items():
    wrong += ["%s: %s is not in the table" % (part, n) for n in names if not re.search(r"\b%s\b" % n, table)]
for part, names in re.findall(r"\b(%s): ([\w, ]+)" % "|".join(have), table):
    for n in re.split(r", *", names.strip(" ,")):
        if "_" in n and n not in have[part]:
            wrong.append("%s: %s does not exist" % (part, n))
for n in re.findall(r"\b((?:vm/)?test-[a-z-]+)\b", table):
    if not os.path.exists(tests + "/system/%s.sh" % n):
        wrong.append(n + " does not exist")
print("\n".join(wrong))
sys.exit(bool(wrong))
END
start_server
failed=
for f in "$here"/*.py; do
	name=$(basename "$f" .py)
	[ "$name" != suite ] || continue
	[ -z "$part" ] || [ "$part" = "$name" ] || continue
	echo "== $name"
	(cd "$W" && PYTHONDONTWRITEBYTECODE=1 /usr/bin/python3 "$f" "$@") >"$W/part.out" 2>&1 || {
		failed="$failed $name"
		cp "$W/part.out" "$W/failed.$name"
	}
	cat "$W/part.out"
done
stop_server
for name in $failed; do # once more, where it is seen
	echo "== $name, which failed"
	grep -v '^ok ' "$W/failed.$name" | tail -n 12
done
[ -z "$failed" ] || fail "of the suite:$failed"
