#!/usr/bin/env bash
# volume trim: blocks of zeros go, everything else stays, and nobody's write is lost.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh nbdcopy qemu-img thin_check
start_server
new_pool tank 512M --commit-interval 100ms
mapped() { thincli --json volume show "$1" | field "d['volumes'][0]['mapped']"; }
freed() { thincli --json volume trim "$1" | field "d['freed']"; }

echo "nothing to do"
thincli volume create tank/v 100000k # ends inside a block
same "$(freed tank/v)" 0
nbdsh -u "$(uri tank/v)" -c 'h.pwrite(b"x" * 65536 * 16, 0); h.flush()'
same "$(freed tank/v)" 0
same "$(mapped tank/v)" 1048576

echo "zeros go, data stays"
nbdsh -u "$(uri tank/v)" -c '
import os
size = h.get_size()
h.zero(32 << 20, 16 << 20, nbd.CMD_FLAG_NO_HOLE)   # all zeros
h.pwrite(os.urandom(8 << 20), 48 << 20)            # no zeros
for block in range(0, 64):                         # one byte at the end of every other block
    h.pwrite(bytes(65536) if block % 2 else bytes(65535) + b"x", (64 << 20) + block * 65536)
h.pwrite(bytes(size % 65536), size - size % 65536) # the last one, which is not whole
h.flush()'
nbdcopy "$(uri tank/v)" "$W/before"
before=$(mapped tank/v)
want=$(((32 << 20) + 32 * 65536 + 100000 * 1024 % 65536))
same "$(freed tank/v)" $want
thincli volume trim tank/v | grep_q "0 bytes" || fail "a second time"
after=$(mapped tank/v)
[ $((before - after)) = $(((32 << 20) + 33 * 65536)) ] || fail "mapped before $before, after $after"
qemu-img compare -f raw -F raw "$W/before" "$(uri tank/v)"

echo "what a snapshot shares stays the snapshot's"
nbdsh -u "$(uri tank/v)" -c 'h.zero(4 << 20, 0, nbd.CMD_FLAG_NO_HOLE); h.flush()'
thincli volume snapshot tank/v s
nbdcopy "$(uri tank/v)" "$W/before"
shared=$(mapped tank/s)
same "$(freed tank/v)" 4194304
same "$(mapped tank/s)" "$shared"
for v in v s; do qemu-img compare -f raw -F raw "$W/before" "$(uri tank/$v)"; done

echo "not while somebody writes, and not what may not be trimmed"
nbdsh -u "$(uri tank/v)" -c '
import subprocess
h.pwrite(bytes(65536), 0)
r = subprocess.run(["thincli", "volume", "trim", "tank/v"], capture_output=True, text=True)
assert r.returncode == 1 and "attached" in r.stderr, r
h.pwrite(b"mine", 0)
h.flush()
assert h.pread(4, 0) == b"mine"' || fail "trim beside a writer"
must_fail 1 "no such volume" thincli volume trim tank/nothing
thincli volume set tank/s read_only=yes
must_fail 1 "read-only" thincli volume trim tank/s
thincli pool set tank discards=off
must_fail 1 "discards are off" thincli volume trim tank/v
thincli pool set tank discards=passdown
thincli pool close tank
must_fail 1 "not open" thincli volume trim tank/v
thincli pool open tank

echo "large blocks, and an origin behind"
check_closed tank
new_pool big 1G --block-size 16M
thincli volume create big/v 256M
nbdsh -u "$(uri big/v)" -c 'h.pwrite(b"x", (40 << 20)); h.pwrite(b"x", (100 << 20)); h.pwrite(b"\0", (100 << 20)); h.flush()'
same "$(freed big/v)" $((16 << 20))
head -c 20000000 /dev/urandom >"$W/base"
thincli volume create tank/o 40M --origin "$W/base"
nbdsh -u "$(uri tank/o)" -c 'h.zero(1 << 20, 0, nbd.CMD_FLAG_NO_HOLE); h.zero(1 << 20, 30 << 20, nbd.CMD_FLAG_NO_HOLE); h.flush()'
nbdcopy "$(uri tank/o)" "$W/before"
same "$(freed tank/o)" 1048576
qemu-img compare -f raw -F raw "$W/before" "$(uri tank/o)"
[ "$(mapped tank/o)" -ge 1048576 ] || fail "the origin's old data would come back"

echo "a pool that closes, a server that ends and a client that goes end it"
nbdsh -u "$(uri tank/v)" -c 'h.zero(64 << 20, 0, nbd.CMD_FLAG_NO_HOLE); h.flush()'
(timeout -s KILL 0.02 thincli volume trim tank/v || true) >/dev/null 2>&1
thincli volume trim tank/v >"$W/trim" 2>&1 &
p=$!
sleep 0.02
thincli pool close tank --force
wait $p || true
check_pool tank
thincli pool open tank
thincli volume trim tank/v >"$W/trim" 2>&1 &
p=$!
sleep 0.02
stop_server
wait $p || true
check_pool tank
start_server
thincli volume trim tank/v >/dev/null
same "$(nbdsh -u "$(uri tank/v)" -c 'print(h.pread(64 << 19, 0) == bytes(64 << 19))')" True
for p in tank big; do check_closed $p; done
stop_server
