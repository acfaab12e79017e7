#!/usr/bin/env bash
# kill -9 of thinsrv under write load: what was flushed is there, the pool is sound.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh thin_check
rounds=5
[ -z "${THIN_TEST_LONG:-}" ] || rounds=50
start_server
new_pool tank 1G --commit-interval 100ms
for v in a b c; do thincli volume create tank/$v 128M; done
cat >"$W/load.py" <<'END'
# Writes stamped blocks at random and says after each flush what must be there.
import os, random, struct, sys
volume, seed, state = sys.argv[1], int(sys.argv[2]), sys.argv[3]
rng = random.Random(seed)
current = {}
f = open(state, "a")
f.write("start\n") # what an earlier run had not flushed is owed no more
n = seed * 1000000
while True:
    for _ in range(rng.randrange(1, 60)):
        page = rng.randrange(0, 32768)
        n += 1
        h.pwrite(struct.pack("<QQ", page, n) * 256, page * 4096)
        current[page] = n
    f.write("".join("w %d %d\n" % kv for kv in current.items()))
    f.flush(); os.fsync(f.fileno())
    current = {}
    h.flush()
    f.write("flushed\n")
    f.flush(); os.fsync(f.fileno())
END
cat >"$W/verify.py" <<'END'
# Each page holds the last flushed stamp or one written after it.
import struct, sys
flushed, later, pending = {}, {}, {}
for line in open(sys.argv[1]):
    if line == "start\n":
        pending = {}
    elif line == "flushed\n":
        flushed.update(pending)
        for p in pending:
            later.pop(p, None)
        pending = {}
    elif line.startswith("w ") and line.endswith("\n"):
        _, p, n = line.split()
        pending[int(p)] = int(n)
bad = 0
for page, stamp in flushed.items():
    data = h.pread(4096, page * 4096)
    for i in range(8): # sector by sector
        p, n = struct.unpack_from("<QQ", data, i * 512)
        if data[i*512:(i+1)*512] != struct.pack("<QQ", p, n) * 32 or p != page or n < stamp:
            print("page %d sector %d: stamp %d of page %d, flushed was %d" % (page, i, n, p, stamp))
            bad += 1
print("%d flushed pages are there" % len(flushed))
sys.exit(1 if bad or not flushed else 0)
END
for round in $(seq $rounds); do
	loads=()
	for v in a b c; do
		nbdsh -u "$(uri tank/$v)" -c "import sys; sys.argv = ['x', '$v', '$round', '$W/state.$v']; exec(open('$W/load.py').read())" >/dev/null 2>&1 &
		loads+=($!)
	done
	sleep 1.$((RANDOM % 10))
	[ $((round % 2)) = 0 ] || thincli volume snapshot tank/a "snap$round" || true
	kill_server
	wait "${loads[@]}" 2>/dev/null || true
	began=$(date +%s%N)
	start_server
	took=$((($(date +%s%N) - began) / 1000000))
	[ $took -lt 2000 ] || fail "back after $took ms"
	for v in a b c; do
		nbdsh -u "$(uri tank/$v)" -c "import sys; sys.argv = ['x', '$W/state.$v']; exec(open('$W/verify.py').read())" ||
			fail "round $round: volume $v lost flushed writes"
	done
	check_closed tank
	echo "round $round: back after $took ms"
done
stop_server
