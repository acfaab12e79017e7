#!/usr/bin/env bash
# Running out of space, and not: growth by itself, reservations, quotas, over-commit, low
# water, full pools under many writers, a full file system below, an end with writes queued.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh thin_check mkfs.ext4
seconds=6
[ -z "${THIN_TEST_LONG:-}" ] || seconds=60
start_server
info() { thincli --json pool show "$1" | field "d['pools'][0]['$2']"; }
shell() { # VOLUME PYTHON
	nbdsh -u "$(uri "$1")" -c "import errno" -c "$2"
}
write_mib() { shell "$1" "
for i in range($2, $3): h.pwrite(bytes([i % 255 + 1]) * (1 << 20), i << 20)
h.flush()"; }
# How many MiB from $2 on fit; the first that does not must say ENOSPC.
fill_mib() { shell "$1" "
import nbd
for i in range($2, $3):
    try: h.pwrite(bytes([i % 255 + 1]) * (1 << 20), i << 20)
    except nbd.Error as e:
        assert e.errnum == errno.ENOSPC, e
        break
else: i += 1
print(i - $2)"; }
wait_event() { # WORDS
	local _
	for _ in $(seq 300); do
		thincli server events >"$W/events"
		grep -q -- "$1" "$W/events" && return 0
		sleep 0.1
	done
	cat "$W/events" >&2
	fail "no event says '$1'"
}

# ---- growth by itself: on by default, with a limit
new_pool grows 64M --on-full error --commit-interval 100ms
thincli volume create grows/vol 1G
write_mib grows/vol 0 100
[ "$(info grows data_size)" -ge $((100 << 20)) ] || fail "a pool did not grow by itself"
got=$(fill_mib grows/vol 100 200)
[ "$got" -ge 26 ] && [ "$got" -le 28 ] || fail "the limit is not twice the first size: $got more MiB went"
[ "$(info grows data_size)" -le $((128 << 20)) ] || fail "a pool grew beyond its limit"
wait_event "grown to its limit"
thincli pool set grows auto_extend=90:16M:160M
write_mib grows/vol 128 150
[ "$(stat -c %s "$W/grows.data")" -le $((160 << 20)) ] || fail "the file is larger than the new limit"
check_closed grows
thincli pool destroy grows --yes

# ---- low water, on a pool that does not grow
new_pool tank 64M --on-full error --auto-extend off --commit-interval 100ms
thincli volume create tank/vol 1G
same "$(info tank auto_extend)" off
shell tank/vol "
import time
for i in range(60):
    h.pwrite(b'l' * (1 << 20), i << 20); h.flush(); time.sleep(0.02)"
wait_event "are free for data"
grep -q "at the present rate for" "$W/events" || fail "low water says nothing of the time that is left"
# Full: what needs no block goes on.
fill_mib tank/vol 60 70 >/dev/null
same "$(info tank mode)" out-of-data-space
shell tank/vol "
h.pwrite(b'o' * 4096, 0)
assert h.pread(4096, 0) == b'o' * 4096
h.flush()"
thincli pool show tank | grep_q -i "grow the pool, or delete" || fail "pool show does not say what to do"
thincli pool grow tank --data 72M
write_mib tank/vol 62 66
same "$(info tank mode)" write
shell tank/vol "h.trim(40 << 20, 0); h.flush()"
write_mib tank/vol 100 120
check_closed tank
thincli volume delete tank/vol

# ---- reservations and quotas
thincli volume create tank/safe 20M --reserve 20M
thincli volume create tank/bound 1G --quota 8M
thincli volume create tank/greedy 1G
same "$(info tank data_reserved)" $((20 << 20)) "reserved"
must_fail 1 "more bytes than the pool has unreserved" thincli volume create tank/no 100M --reserve 100M
same "$(fill_mib tank/bound 0 20)" 8 "MiB within a quota of 8"
fill_mib tank/greedy 0 200 >/dev/null
same "$(info tank mode)" out-of-data-space
write_mib tank/safe 0 10
must_fail 1 "need.*more bytes" thincli volume snapshot tank/safe s
write_mib tank/safe 10 20
same "$(info tank data_reserved)" 0 "reserved when all is taken"
shell tank/greedy "h.trim(30 << 20, 0); h.flush()"
has_free() { [ "$(info "$1" data_free)" -ge "$2" ]; }
wait_until 30 "what was discarded does not come free" has_free tank $((28 << 20))
thincli volume snapshot tank/safe s
fill_mib tank/greedy 0 200 >/dev/null
write_mib tank/safe 0 20 # all of it breaks sharing
# The format's own snapshot keeps what is discarded: that must have cover as well.
must_fail 1 "need.*more bytes" thincli pool reserve-snap tank
thincli volume delete tank/s tank/bound
shell tank/greedy "h.trim(30 << 20, 0); h.flush()"
wait_until 30 "what was given back does not come free" has_free tank $((20 << 20))
thincli pool reserve-snap tank
fill_mib tank/greedy 0 200 >/dev/null
shell tank/safe "h.trim(20 << 20, 0); h.flush()"
write_mib tank/safe 0 20
thincli pool release-snap tank
thincli volume delete tank/safe tank/greedy
check_closed tank

# ---- over-commit
thincli pool set tank overcommit=200%
thincli volume create tank/a 100M
must_fail 1 "overcommit allows" thincli volume create tank/b 60M
same "$(info tank overcommit_percent)" 138
must_fail 1 "overcommit allows" thincli volume resize tank/a 200M
must_fail 1 "overcommit allows" thincli volume snapshot tank/a s
same "$(thincli pool show tank | awk '$1 == "over-commit"')" "over-commit          138 %, 200 % allowed"
thincli pool set tank overcommit=off
thincli volume delete tank/a

# ---- what was set can be seen
thincli pool set tank on_full=queue no_space_timeout=7s commit_interval=300ms commit_max_dirty=77 extend_metadata=no
same "$(info tank no_space_timeout_ms) $(info tank commit_interval_ms) $(info tank commit_max_dirty) $(info tank extend_metadata)" "7000 300 77 False"
same "$(thincli pool show tank | awk '$1 == "on" || $1 == "commit"')" "on full              queue, for 7000 ms
commit interval      300 ms
commit at            77 metadata blocks"
thincli pool set tank commit_interval=1s extend_metadata=yes

# ---- SIGTERM with writes queued does not wait for their timeout
thincli pool set tank on_full=queue no_space_timeout=60s
thincli volume create tank/vol 1G
shell tank/vol "
import time
cookies = [h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b'q' * (1 << 20))), i << 20) for i in range(100)]
t = time.monotonic()
while time.monotonic() - t < 60:
    try: h.poll(200)
    except nbd.Error: break
" >/dev/null 2>&1 &
queued=$!
is_full() { [ "$(info "$1" mode)" = out-of-data-space ]; }
wait_until 40 "no write is queued" is_full tank
# Volumes and attachments come and go meanwhile, at once.
timeout 20 thincli volume create tank/more 1M
timeout 20 thincli volume delete tank/more
began=$(date +%s%N)
stop_server
took=$((($(date +%s%N) - began) / 1000000))
[ $took -lt 15000 ] || fail "an end with writes queued took $took ms"
wait $queued || true
check_pool tank
start_server

# A client that is gone, or kicked, keeps its volume from nobody though its writes wait.
session_of() { thincli --json session list | field "[s['id'] for s in d['sessions'] if '$1' in s['volumes']][0]"; }
for how in killed kicked; do
	thincli volume create tank/$how 1G
	env PATH="/usr/bin:$PATH" nbdsh -u "$(uri tank/$how)" -c "
data = nbd.Buffer.from_bytearray(bytearray(b'q' * (1 << 20)))
for i in range(100): h.aio_pwrite(data, i << 20)
while True: h.poll(-1)" >/dev/null 2>&1 &
	queued=$!
	wait_until 40 "the client does not attach" session_of tank/$how
	wait_until 40 "no write is queued" is_full tank
	sleep 0.5 # it may have been full before: what is sent has come
	if [ $how = killed ]; then
		kill -9 $queued
	else
		thincli session kick "$(session_of tank/$how)"
	fi
	wait $queued || true
	began=$SECONDS
	wait_until 30 "the volume of a client that was $how stays attached" thincli volume delete tank/$how
	echo "deleted $((SECONDS - began)) s after its client was $how"
done

# A grow resumes them.
shell tank/vol "h.trim(1 << 30, 0); h.flush()"
shell tank/vol "
for i in range(80): h.pwrite(b'r' * (1 << 20), i << 20)
h.flush()
assert all(h.pread(1 << 20, i << 20) == b'r' * (1 << 20) for i in range(80))" &
queued=$!
wait_until 40 "no write is queued" is_full tank
thincli pool grow tank --data 96M
wait $queued || fail "queued writes did not go on after a grow"
check_closed tank
thincli pool destroy tank --yes

# ---- 64 writers on 32 volumes
for mode in error queue; do
	new_pool full 64M --on-full $mode --auto-extend off --commit-interval 200ms
	for i in $(seq 0 31); do thincli volume create full/v$i 8M; done
	/usr/bin/python3 "$SRC/tests/system/fill-writers.py" "$W/nbd.sock" full 32 $seconds $mode || fail "writers on a full pool, $mode"
	thincli server events | grep_q out-of-data-space || fail "the pool was never full, $mode"
	kill_server
	start_server
	for half in 0 1; do
		/usr/bin/python3 - "$W/nbd.sock" $half <<-'END' || fail "flushed writes are gone after a kill, $mode"
			import json, nbd, struct, sys
			bad = nr = 0
			for i, (volume, pages) in enumerate(json.load(open("flushed.json"))):
			    if i % 2 != int(sys.argv[2]): continue
			    h = nbd.NBD()
			    h.connect_uri("nbd+unix:///full/v%d?socket=%s" % (volume, sys.argv[1]))
			    for p, n in pages.items():
			        nr += 1
			        bad += h.pread(4096, int(p) * 4096) != struct.pack("<QQ", int(p), n) * 256
			    h.shutdown()
			print(nr, "flushed pages,", bad, "wrong")
			sys.exit(bad > 0 or nr == 0)
		END
	done
	# It is taken down cleanly while full.
	check_closed full
	for i in $(seq 0 31); do thincli volume delete full/v$i; done
	is_empty() { [ "$(info full data_used)" -lt $((1 << 20)) ]; }
	wait_until 60 "deleted volumes leave blocks behind, $mode" is_empty
	check_closed full
	thincli pool destroy full --yes
done

# ---- the file system below is full: like out of data space, not like damage
truncate -s 48M "$W/fs"
loop=$(losetup --find --show "$W/fs") || fail "no loop devices here"
trap 'rc=$?; umount "$W/mnt" 2>/dev/null || true; losetup -d "$loop" 2>/dev/null || true; finish $rc' EXIT
mkfs.ext4 -q -m 0 "$loop"
mkdir "$W/mnt"
mount "$loop" "$W/mnt"
thincli pool create thin --data "$W/mnt/data:200M" --metadata "$W/thin.meta:16M" --on-full error --commit-interval 100ms
thincli volume create thin/vol 150M
got=$(fill_mib thin/vol 0 150)
[ "$got" -ge 10 ] && [ "$got" -lt 48 ] || fail "$got MiB fit into a file system of 48 MiB"
same "$(info thin mode)" out-of-data-space "mode on a full file system"
same "$(info thin needs_check)" False
thincli pool show thin | grep_q "file system that holds the data file is full" || fail "pool show does not say where it is full"
same "$(info thin data_size)" $((200 << 20)) "a larger file makes no room in a full file system"
shell thin/vol "
for i in range($got): assert h.pread(1 << 20, i << 20) == bytes([i % 255 + 1]) * (1 << 20), i
h.pwrite(b'o' * 4096, 0); h.flush()"
taken=$(stat -c %b "$W/mnt/data")
shell thin/vol "h.trim(8 << 20, 2 << 20); h.flush()"
has_given_back() { [ "$(stat -c %b "$W/mnt/data")" -le $((taken - (7 << 11))) ]; }
wait_until 30 "what was discarded stays in the file" has_given_back
more=$(fill_mib thin/vol 100 120)
[ "$more" -ge 4 ] || fail "room that a discard made is not used: $more MiB"
check_pool_closed() {
	thincli pool close thin
	cp "$W/thin.meta" "$W/copy.meta"
	thin_check -q "$W/copy.meta" || fail "thin_check after a full file system"
	thinmeta check -q "$W/copy.meta" || fail "check after a full file system"
	thincli pool open thin
}
check_pool_closed
shell thin/vol "
for i in list(range(2)) + list(range(10, $got)):
    assert h.pread((1 << 20) - 4096, (i << 20) + 4096) == bytes([i % 255 + 1]) * ((1 << 20) - 4096), i"
thincli pool close thin
umount "$W/mnt"
losetup -d "$loop"

# The same with writes that wait, on a file system in memory: they go on when there is room.
mount -t tmpfs -o size=32M none "$W/mnt"
thincli pool create wait --data "$W/mnt/data:100M" --metadata "$W/wait.meta:16M" --on-full queue --commit-interval 100ms
thincli volume create wait/vol 90M
dd if=/dev/zero of="$W/mnt/ballast" bs=1M count=12 status=none
shell wait/vol "
for i in range(24): h.pwrite(b'w' * (1 << 20), i << 20)
h.flush()" &
queued=$!
wait_until 40 "a full tmpfs is not seen" is_full wait
rm "$W/mnt/ballast"
wait $queued || fail "writes that waited for the file system did not go on"
thincli pool close wait
thin_check -q "$W/wait.meta" || fail "thin_check after waiting for a file system"
umount "$W/mnt"
stop_server

echo "scattered first writes take no more of the file system than they map"
start_server
new_pool sparse 16G
thincli volume create sparse/v 8G
nbdsh -u "$(uri sparse/v)" -c '
import random
r = random.Random(1)
for i in range(800):
    h.pwrite(b"s" * 4096, r.randrange((8 << 30) >> 16) << 16)
h.flush()'
mapped=$(thincli --json volume show sparse/v | field "d['volumes'][0]['mapped']")
taken=$(($(stat -c %b "$W/sparse.data") * 512))
[ "$taken" -le $((mapped * 2)) ] || fail "$mapped bytes are mapped, the file takes $taken"
check_closed sparse
stop_server
