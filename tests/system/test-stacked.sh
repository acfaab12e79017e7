#!/usr/bin/env bash
# Pools on volumes of pools, over NBD: three levels in one daemon and in three, under load,
# with the middle one killed; a pool that would stand on itself is refused.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh nbdcopy fio thin_check
loads=1
[ -z "${THIN_TEST_LONG:-}" ] || loads=10

. "$SRC/tests/system/nodes.sh"
load() { # NAME URI SECONDS
	fio --name="$1" --ioengine=nbd --uri="$2" --rw=randwrite --bsrange=4k-256k --blockalign=4k --size=96M --time_based --runtime="$3" \
		--iodepth=32 --fsync=32 --verify=crc32c --verify_backlog=64 --verify_fatal=1 --verify_state_save=0 --output="$W/fio.$1" || {
		cat "$W/fio.$1"
		return 1
	}
}

echo "three levels in one daemon, little memory for requests, load on all of them"
{
	printf '[server]\nstate_dir = %s/state\npayload_memory = 64M\n' "$W"
	printf '[listen]\nunix = %s/thinsrv.sock\n[nbd]\nlisten = unix:%s/nbd.sock\n' "$W" "$W"
} >"$W/thinsrv.conf"
start_server
new_pool low 1G --commit-interval 100ms
thincli volume create low/data 768M
thincli volume create low/meta 16M
thincli volume create low/side 128M
thincli pool create mid --data "$(uri low/data)" --metadata "$(uri low/meta)"
thincli volume create mid/data 512M
thincli volume create mid/side 128M
thincli pool create top --data "$(uri mid/data)" --metadata "$W/top.meta:16M"
thincli volume create top/vol 256M
thincli volume create top/big 128M
same "$(thincli --json pool show mid | field "d['pools'][0]['data_size']")" 805306368
must_fail 1 "in use\|busy\|read-only" thincli pool create twin --data "$(uri low/data)&" --metadata "$W/twin.meta:16M"
must_fail 1 "device of pool mid" thincli pool create twin --data "$(uri low/data)" --metadata "$W/twin.meta:16M"
[ ! -e "$W/twin.meta" ] || fail "a pool that was refused left a file"
for _ in $(seq $loads); do
	load low "$(uri low/side)" 6 &
	a=$!
	load mid "$(uri mid/side)" 6 &
	b=$!
	load top "$(uri top/vol)" 6 &
	c=$!
	# Requests of 32 MiB take all that is for everyone.
	nbdsh -u "$(uri top/big)" -c '
import os
data = os.urandom(1 << 20) * 32
hs = [h] + [nbd.NBD() for _ in range(3)]
for x in hs[1:]:
    x.connect_uri(h.get_uri())
for n in range(4):
    cookies = [(x, x.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(data)), (i % 4) * (32 << 20))) for i, x in enumerate(hs)]
    for x, cookie in cookies:
        while not x.aio_command_completed(cookie):
            x.poll(-1)
h.flush()
assert h.pread(32 << 20, 64 << 20) == data
' || fail "large writes on the topmost pool"
	for p in $a $b $c; do wait "$p" || fail "load on stacked pools"; done
done

echo "exports that grow under a pool that serves"
load top "$(uri top/vol)" 8 &
a=$!
load mid "$(uri mid/side)" 8 &
b=$!
must_fail 1 "has fewer than" thincli pool grow mid --data 800M
thincli volume resize low/data 800M
thincli volume resize low/meta 20M
thincli pool grow mid --data 800M --metadata 20M
same "$(thincli --json pool show mid | field "'%(data_size)d %(metadata_size)d' % d['pools'][0]")" "$((800 << 20)) $((20 << 20))"
thincli volume resize mid/data 600M
thincli pool grow top --data 600M
must_fail 1 "has fewer than" thincli pool grow top --data 601M
for p in $a $b; do wait "$p" || fail "load on pools that grow"; done
nbdsh -u "$(uri mid/side)" -c 'assert h.pread(4096, 0) is not None'
thincli pool check mid >/dev/null

must_fail 1 "NBD export" thincli pool handover mid
thincli pool dump mid >"$W/dump.mid" # read over a connection of its own
grep_q '^</superblock>' "$W/dump.mid" || fail "the dump of a pool on an export"

echo "closing what others stand on"
must_fail 1 "open" thincli pool close low
must_fail 1 "open" thincli pool close mid
nbdcopy "$(uri top/vol)" - | sha256sum >"$W/sum"

echo "a daemon that ends with stacked pools, and starts"
load top "$(uri top/vol)" 20 >/dev/null 2>&1 &
a=$!
sleep 1
stop_server
wait $a || true
for p in top mid low; do ! grep_q "pool closed with an error" "$W/thinsrv.log" || fail "pool $p closed with an error"; done
for p in low top; do check_pool $p; done
start_server
for p in low mid top; do wait_open "$THIN_SERVER" $p; done
thincli pool check top >/dev/null
thincli pool check low >/dev/null
nbdcopy "$(uri mid/side)" /dev/null
load top "$(uri top/vol)" 3

echo "kill -9 with stacked pools"
load top "$(uri top/vol)" 20 >/dev/null 2>&1 &
a=$!
sleep 1
kill_server
wait $a || true
start_server
for p in low mid top; do wait_open "$THIN_SERVER" $p; done
load top "$(uri top/vol)" 2

echo "circles in one daemon"
must_fail 1 "itself" thincli volume create low/loop 64M --origin "$(uri top/vol)"
must_fail 1 "itself" thincli volume create low/loop 64M --origin "$(uri low/side)"
thincli volume create top/under 256M
thincli pool close top
thincli pool close mid
must_fail 1 "holds a thin-pool superblock" thincli pool create twin --data "$W/twin.data:64M" --metadata "$(uri low/meta)&"
[ ! -e "$W/twin.data" ] || fail "a pool that was refused left a file"
thincli pool close low
cp "$W/low.meta" "$W/low2.meta"
thincli pool open low
wait_open "$THIN_SERVER" low
thincli pool open mid
thincli pool open top
# low goes, and would come back on a volume of top: of what stands on it.
nbdcopy --flush "$W/low.data" "$(uri top/under)" 2>/dev/null || true
thincli pool close low --force
thincli pool forget low
for name in low another; do
	must_fail 1 "itself" timeout 120 thincli pool import $name --data "$(uri top/under)" --metadata "$W/low2.meta"
done
thincli pool import low --data "$W/low.data" --metadata "$W/low.meta"
for p in mid top; do wait_open "$THIN_SERVER" $p; done
load top "$(uri top/vol)" 2
echo "an export that is not there: shown, tried again until it is closed"
thincli pool close top
thincli pool close mid
thincli pool close low
must_fail 1 "export" thincli pool open mid
same "$(state_of "$THIN_SERVER" mid | cut -d' ' -f1)" failed
thincli --json pool show mid | field "d['pools'][0]['why']" | grep_q export || fail "why is not shown"
thincli pool close mid
same "$(state_of "$THIN_SERVER" mid | cut -d' ' -f1)" closed
thincli pool open low
sleep 1
same "$(state_of "$THIN_SERVER" mid | cut -d' ' -f1)" closed "it was closed, and stays so"
thincli pool open mid
thincli pool open top
thincli pool close top
thincli pool destroy top --yes
must_fail 1 "open" thincli pool destroy low --yes
thincli pool destroy mid --yes
same "$(nbdsh -u "$(uri low/meta)" -c 'print(h.pread(4096, 0) == bytes(4096))')" True "the superblock on the export is wiped"
check_closed low
stop_server

echo "three daemons, the middle one killed under load"
for n in one two three; do start_node $n; done
on one pool create a --data "$W/a.data:1G" --metadata "$W/a.meta:16M" --commit-interval 100ms
on one volume create a/data 512M
on one volume create a/meta 16M
on two pool create b --data "$(node_uri one a/data)" --metadata "$(node_uri one a/meta)" --commit-interval 100ms
on two volume create b/data 256M
on three pool create c --data "$(node_uri two b/data)" --metadata "$W/c.meta:16M" --commit-interval 100ms
on three volume create c/vol 128M
cat >"$W/stamps.py" <<'END'
# Stamps pages, flushes, notes what was flushed; goes on over errors with a new connection.
import os, random, struct, sys, time, nbd
uri, note, seconds, mode = sys.argv[1], sys.argv[2], float(sys.argv[3]), sys.argv[4]
def connect(limit):
    end = time.time() + limit
    while True:
        try:
            h = nbd.NBD()
            h.connect_uri(uri)
            if not h.is_read_only():
                return h
        except nbd.Error:
            pass
        if time.time() > end:
            sys.exit("no way to the volume for %d s" % limit)
        time.sleep(0.1)
stamps = {}
if os.path.exists(note):
    for line in open(note):
        page, n = line.split()
        stamps[int(page)] = int(n)
if mode == "verify":
    h = connect(60)
    for page, n in stamps.items():
        p, m = struct.unpack_from("<QQ", h.pread(4096, page * 4096))
        if p != page or m < n:
            sys.exit("page %d holds stamp %d of page %d, flushed was %d" % (page, m, p, n))
    print("%d flushed pages are there" % len(stamps))
    sys.exit(0 if stamps else "nothing was flushed")
n = max(stamps.values(), default=0)
end = time.time() + seconds
h = connect(60)
with open(note, "a") as f:
    while time.time() < end:
        try:
            batch = {}
            for _ in range(random.randrange(1, 40)):
                page = random.randrange(32768)
                n += 1
                h.pwrite(struct.pack("<QQ", page, n) * 256, page * 4096)
                batch[page] = n
            h.flush()
            f.write("".join("%d %d\n" % kv for kv in batch.items()))
            f.flush()
        except nbd.Error:
            h = connect(60)
END
stamps() { /usr/bin/python3 "$W/stamps.py" "$(node_uri three c/vol)" "$W/notes" "$1" "$2"; }
rounds=2
[ -z "${THIN_TEST_LONG:-}" ] || rounds=20
for round in $(seq $rounds); do
	stamps 5 write &
	writer=$!
	sleep 1.$((RANDOM % 10))
	kill_node two
	sleep 0.$((RANDOM % 10))
	start_node two
	wait_open "$(node_socket two)" b
	wait_open "$(node_socket three)" c
	wait $writer || fail "round $round: the writer did not get on"
	stamps 0 verify || fail "round $round: flushed writes are lost"
done
echo "the lowest one killed, then all of them"
stamps 4 write &
writer=$!
sleep 1
kill_node one
start_node one
wait_open "$(node_socket two)" b
wait_open "$(node_socket three)" c
wait $writer || fail "the writer did not get on"
stamps 0 verify || fail "flushed writes are lost"
for n in two one three; do kill_node $n; done
for n in three two one; do start_node $n; done
wait_open "$(node_socket two)" b
wait_open "$(node_socket three)" c
stamps 0 verify || fail "flushed writes are lost"

echo "circles over daemons"
must_fail 1 "itself" on one volume create a/loop 64M --origin "$(node_uri three c/vol)"
must_fail 1 "itself" on two volume create b/loop 64M --origin "$(node_uri three c/vol)"
on three volume create c/data 256M
must_fail 1 "device of pool" on two pool create b2 --data "$(node_uri one a/data)" --metadata "$W/b2.meta:16M"
# The same two pools as each other's origins, one after the other.
on one pool create p --data "$W/p.data:64M" --metadata "$W/p.meta:16M"
on three pool create q --data "$W/q.data:64M" --metadata "$W/q.meta:16M"
on one volume create p/v 16M
on three volume create q/v 16M --origin "$(node_uri one p/v)"
nbdcopy "$(node_uri three q/v)" - >/dev/null
(
	nbdsh -u "$(node_uri three q/v)" -c "
import os, time
h.pread(512, 0)
open('$W/held', 'w').close()
while not os.path.exists('$W/let-go'): time.sleep(0.05)"
) &
holder=$!
wait_until 30 "nobody reads" test -e "$W/held"
must_fail 1 "itself" on one volume create p/w 16M --origin "$(node_uri three q/v)"
touch "$W/let-go"
wait $holder
# The name now means another volume: what stood on nothing would stand on itself.
on one volume create p/x 16M --origin "$(node_uri three q/v)"
on one volume delete p/v
on one volume rename p/x v
cannot_read() { # URI: an error, and not much later
	timeout 120 env PATH="/usr/bin:$PATH" nbdsh -u "$1" -c '
try:
    h.pread(512, 0)
    raise SystemExit("a volume that stands on itself was read")
except nbd.Error:
    pass
'
}
cannot_read "$(node_uri three q/v)"
cannot_read "$(node_uri one p/v)"

echo "the end, from the top down"
for n in three two one; do stop_node $n; done
for p in a c p q; do check_pool $p; done
