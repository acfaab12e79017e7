#!/usr/bin/env bash
# One owner for each pool: a second daemon, the tools and another machine are refused, and
# a dead owner on this machine stands in nobody's way.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh thin_check
# A bare system has none before its first boot; every other one must have it.
[ -s /etc/machine-id ] || od -An -N16 -tx1 /dev/urandom | tr -d ' \n' >/etc/machine-id ||
	fail "this machine has no /etc/machine-id, and none can be made: marks cannot be told apart"
start_server
new_pool tank 64M --commit-interval 100ms
new_pool other 64M
thincli volume create tank/vol 16M
nbdsh -u "$(uri tank/vol)" -c 'h.pwrite(b"x" * 4096, 0); h.flush()'

# The mark of a metadata file: "HOST BOOT START", or with a byte, as if a machine had it
# whose id is made of that byte; with a second word, this machine in a boot with such an id.
cat >"$W/mark.py" <<'END'
import struct, sys
T = 384
def crc32c(data):
    c = 0xffffffff
    for b in data:
        c ^= b
        for _ in range(8): c = c >> 1 ^ (0x82f63b78 if c & 1 else 0)
    return c
f = open(sys.argv[1], "r+b")
block = bytearray(f.read(4096))
assert struct.unpack_from("<Q", block, T)[0] == 0x314c525454494854, "no trailer"
if len(sys.argv) > 2:
    at = T + (88 if len(sys.argv) > 3 else 72)
    block[at:at+16] = bytes([int(sys.argv[2])]) * 16
    struct.pack_into("<I", block, T + 124, crc32c(block[T:T+124]) ^ 0xffffffff)
    struct.pack_into("<I", block, 0, crc32c(block[4:]) ^ 160774)
    f.seek(0); f.write(block)
print(block[T+72:T+88].hex(), block[T+88:T+104].hex(), struct.unpack_from("<I", block, T + 104)[0])
END
mark() { python3 "$W/mark.py" "$@"; }

# While it is served the mark names this machine and boot.
read -r host boot start < <(mark "$W/tank.meta")
same "$host" "$(tr -d '\n' </etc/machine-id)" "host in the mark"
same "$boot" "$(tr -d '\n-' </proc/sys/kernel/random/boot_id)" "boot in the mark"
[ "$start" -gt 1700000000 ] || fail "no start in the mark"

# A second daemon, with a state of its own.
cat >"$W/second.conf" <<-END
	[server]
	state_dir = $W/state2
	[listen]
	unix = $W/second.sock
END
thinsrv --config "$W/second.conf" >"$W/second.log" 2>&1 &
second=$!
ALSO_KILL=$second
wait_until 30 "the second daemon does not listen" test -S "$W/second.sock"
on_second() { thincli --server "unix:$W/second.sock" "$@"; }
in_use="in use"
must_fail 1 "$in_use" on_second pool import thief --data "$W/tank.data" --metadata "$W/tank.meta"
must_fail 1 "$in_use" on_second pool create thief --force --data "$W/new.data:16M" --metadata "$W/tank.meta"
must_fail 1 "$in_use" on_second pool create thief --force --data "$W/tank.data" --metadata "$W/new.meta:16M"
must_fail 1 . thinsrv --config "$W/thinsrv.conf"
[ ! -e "$W/new.data" ] && [ ! -e "$W/new.meta" ] || fail "a refused create has left a file"

# The tools that write; those that read, too, since the pool changes under them.
truncate -s 16M "$W/out.meta"
must_fail 1 "$in_use" thinmeta check --clear-needs-check-flag "$W/tank.meta"
must_fail 1 "$in_use" thinmeta check --auto-repair "$W/tank.meta"
thinmeta format --data-size 64M --metadata-size 16M "$W/plain.meta"
thinmeta dump "$W/plain.meta" >"$W/plain.xml"
thinmeta pack -i "$W/plain.meta" -o "$W/plain.pack"
must_fail 1 "$in_use" thinmeta restore -i "$W/plain.xml" -o "$W/tank.meta"
must_fail 1 "$in_use" thinmeta repair -i "$W/plain.meta" -o "$W/tank.meta"
must_fail 1 "$in_use" thinmeta unpack -i "$W/plain.pack" -o "$W/tank.meta"
must_fail 1 "$in_use" thinmeta format --force --data-size 64M "$W/tank.meta"
must_fail 1 "$in_use" thinmeta trim --metadata-dev "$W/tank.meta" --data-dev "$W/tank.data"

# It was closed here and is served there: here it can neither be opened nor destroyed.
thincli pool close tank
same "$(mark "$W/tank.meta")" "00000000000000000000000000000000 00000000000000000000000000000000 0" \
	"mark of a closed pool"
on_second pool import tank --data "$W/tank.data" --metadata "$W/tank.meta"
must_fail 1 "$in_use" thincli pool open tank
must_fail 1 "$in_use" thincli pool destroy tank --yes
[ -s "$W/tank.data" ] || fail "the data of a served pool was removed"
on_second volume show tank/vol >/dev/null
# Killed: nothing stands in the way.
kill -9 "$second"
wait_gone "$second"
thincli pool open tank
nbdsh -u "$(uri tank/vol)" -c 'assert h.pread(4096, 0) == b"x" * 4096'

# Another boot of this machine is dead: taken over in silence. So is this one after a kill.
kill_server
start_server
thincli volume show tank/vol >/dev/null
kill_server
same "$(mark "$W/tank.meta" 55 boot | cut -d' ' -f1,2)" "$host 37373737373737373737373737373737" "the mark of another boot"
thinmeta check -q --clear-needs-check-flag "$W/tank.meta" || fail "another boot stands in a tool's way"
start_server
thincli volume show tank/vol >/dev/null
same "$(mark "$W/tank.meta" | cut -d' ' -f2)" "$boot" "the mark after another boot's"

# Another machine.
kill_server
mark "$W/tank.meta" 33 >/dev/null
thinmeta check -q "$W/tank.meta" || fail "the mark is not as it should be"
start_server
thincli volume list other >/dev/null || fail "a pool that cannot be opened holds up another"
same "$(thincli --json pool show tank | field "d['pools'][0]['state']")" failed "state of the other machine's pool"
thincli --json pool show tank | grep_q "another machine" || fail "pool show does not say why"
must_fail 1 "another machine.*force-takeover" thincli pool open tank
must_fail 1 "another machine" thincli pool destroy tank --yes
must_fail 1 "another machine" thinmeta check --clear-needs-check-flag "$W/tank.meta"
thincli pool forget tank
must_fail 1 "another machine" thincli pool import tank --data "$W/tank.data" --metadata "$W/tank.meta"
must_fail 1 "another machine" thincli pool create tank --force --data "$W/tank.data" --metadata "$W/tank.meta"
cut=$(mark "$W/tank.meta" | cut -c1-4)
same "$cut" 2121 "what was refused has written a mark"
thincli pool import tank --data "$W/tank.data" --metadata "$W/tank.meta" --force-takeover
nbdsh -u "$(uri tank/vol)" -c 'assert h.pread(4096, 0) == b"x" * 4096'
kill_server
mark "$W/tank.meta" 44 >/dev/null
start_server
thincli pool open tank --force-takeover
same "$(mark "$W/tank.meta" | cut -d' ' -f1)" "$host" "the mark after a take-over"
check_closed tank
stop_server
same "$(mark "$W/tank.meta" | cut -d' ' -f3)" 0 "mark after a stop"

# What backs a loop device has two caches: refused.
LOOPS=()
detach() { umount "$W/mnt" 2>/dev/null || true; for l in "${LOOPS[@]}"; do losetup -d "$l" 2>/dev/null || true; done; }
trap 'rc=$?; detach || true; finish $rc' EXIT
attach() { # FILE: its device in $loop
	loop=$(losetup --find --show "$1") || fail "no loop devices here"
	LOOPS+=("$loop")
}
attach "$W/tank.data"
truncate -s 16M "$W/b.meta"
start_server
thincli --json pool show tank | grep_q "backing file of $loop" || fail "a loop device's file was opened"
losetup -d "$loop"
attach "$W/b.meta" # as if a pool were served from there
must_fail 1 "backing file of $loop" thinmeta check --clear-needs-check-flag "$W/b.meta"
must_fail 1 "backing file of $loop" thinmeta restore -i "$W/plain.xml" -o "$W/b.meta"
must_fail 1 "backing file of $loop" thinmeta repair -i "$W/plain.meta" -o "$W/b.meta"
losetup -d "$loop"
detached() { [ -z "$(losetup -j "$W/tank.data")" ]; }
wait_until 30 "$loop does not go" detached # whoever looks at it holds it a moment longer
thincli pool open tank

# Block devices are held alone: against another daemon, a mount, and each other.
truncate -s 64M "$W/b.data" "$W/b.fs"
attach "$W/b.data"
bdata=$loop
attach "$W/b.meta"
bmeta=$loop
attach "$W/b.fs"
mkfs.ext4 -q "$loop"
mkdir "$W/mnt"
mount "$loop" "$W/mnt"
must_fail 1 "in use" thincli pool create blk --force --data "$loop" --metadata "$bmeta"
umount "$W/mnt"
thincli pool create blk --data "$bdata" --metadata "$bmeta"
thincli volume create blk/vol 16M
thinsrv --config "$W/second.conf" >>"$W/second.log" 2>&1 &
second=$!
ALSO_KILL=$second
wait_until 30 "the second daemon does not answer" on_second server status
must_fail 1 "in use" on_second pool import thief --data "$bdata" --metadata "$bmeta"
must_fail 1 "in use" thinmeta check --clear-needs-check-flag "$bmeta"
kill_server
thinmeta check -q --clear-needs-check-flag "$bmeta" || fail "a killed server still holds its device"
start_server
thincli volume show blk/vol >/dev/null
thincli pool close blk
stop_server
