#!/usr/bin/env bash
# kill -9 of thinsrv under write load: what was flushed is there, the pool is sound, and the
# server serves again in under two seconds. Two kinds of load over NBD: a writer that stamps
# its pages and overwrites them at random, and fio, which flushes now and then and after the
# restart verifies by its own checksums all that it knew as flushed.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh thin_check fio
fio --enghelp 2>/dev/null | grep_q nbd || fail "fio has no nbd engine"
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
# fio writes each place of the volume once at most, one request at a time, and notes each as
# it begins. It goes on after a sync that failed, but not after a write that did: what stands
# before a sync is flushed if two more requests began behind it. ($1 volume, $2 size, $3 bytes
# of a request)
fio_load() {
	fio --name=load --ioengine=nbd --uri="$(uri "tank/$1")" --size="$2" --rw=randwrite --bs="$3" \
		--iodepth=1 --fsync=$((1 + RANDOM % 24)) --randseed=$RANDOM \
		--verify=crc32c --do_verify=0 --write_iolog="$W/$1.log" >"$W/$1.out" 2>&1
}
# What that log knows as flushed, read again and verified by fio; says how many. (as above)
fio_verify() {
	awk -v name="$1" '
		BEGIN { print "fio version 2 iolog"; n = flushed = 0 }
		$3 == "add" && !file { file = $2; print file, "add"; print file, "open" }
		NF != 5 { next }
		synced && ++behind == 2 { for (; flushed < synced; flushed++) print at[flushed]; synced = 0 }
		$3 == "write" { at[n++] = $2 " read " $4 " " $5 }
		$3 == "sync" { synced = n; behind = 0 }
		END { print file, "close" }' "$W/$1.log" >"$W/$1.read"
	local wanted issued
	wanted=$(grep -c ' read ' "$W/$1.read" || true)
	[ "$wanted" -gt 0 ] || return 0
	fio --name=verify --ioengine=nbd --uri="$(uri "tank/$1")" --size="$2" --rw=randread --bs="$3" \
		--iodepth=1 --verify=crc32c --read_iolog="$W/$1.read" >"$W/$1.out" 2>&1 || {
		grep -E 'verify|error' "$W/$1.out"
		tail -n 5 "$W/$1.log"
		fail "round $round: volume $1 has lost what fio had flushed"
	}
	issued=$(sed -n 's/.*issued rwts: total=\([0-9]*\),.*/\1/p' "$W/$1.out")
	same "$issued" "$wanted" "round $round: fio has verified fewer requests than it should"
	echo "fio has verified $wanted flushed writes"
	fio_verified=$((fio_verified + wanted))
}
fio_verified=0 late=
for round in $(seq $rounds); do
	loads=()
	thincli volume create "tank/f$round" 64M
	thincli volume create "tank/g$round" 64M
	for v in a b c; do
		nbdsh -u "$(uri tank/$v)" -c "import sys; sys.argv = ['x', '$v', '$round', '$W/state.$v']; exec(open('$W/load.py').read())" >/dev/null 2>&1 &
		loads+=($!)
	done
	fio_load "f$round" 64M 4k &
	loads+=($!)
	fio_load "g$round" 64M 32k &
	loads+=($!)
	for _ in $(seq 600); do # until both have written some of their log
		[ -s "$W/f$round.log" ] && [ -s "$W/g$round.log" ] && break
		sleep 0.05
	done
	sleep $((RANDOM % 2)).$((RANDOM % 10))
	[ $((round % 2)) = 0 ] || thincli volume snapshot tank/a "snap$round" || true
	kill_server
	wait "${loads[@]}" 2>/dev/null || true
	began=$(date +%s%N)
	start_server
	# What the server stood in line for a processor is the machine's time.
	queued=$(awk '{ print int($2 / 1000000) }' "/proc/$SERVER_PID/schedstat" 2>/dev/null || echo 0)
	took=$((($(date +%s%N) - began) / 1000000 - queued))
	[ $took -lt 2000 ] || late="$late $took"
	for v in a b c; do
		nbdsh -u "$(uri tank/$v)" -c "import sys; sys.argv = ['x', '$W/state.$v']; exec(open('$W/verify.py').read())" ||
			fail "round $round: volume $v lost flushed writes"
	done
	fio_verify "f$round" 64M 4k
	fio_verify "g$round" 64M 32k
	thincli volume delete "tank/f$round"
	thincli volume delete "tank/g$round"
	check_closed tank
	echo "round $round: back after $took ms, and $queued in line for a processor"
done
[ -z "$late" ] || fail "back after more than 2000 ms:$late"
[ $fio_verified -ge $((rounds * 10)) ] || fail "fio has verified $fio_verified flushed writes only"
stop_server
