#!/usr/bin/env bash
# A data device that fails to flush, and damaged mappings: what is told, who goes on, and the
# way back into service without a restart of the server.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh thin_check
[ -e "$BUILD/tests/crash/record_io.so" ] || fail "record_io.so is missing: make tests builds it"
export RECORD_DATA=$W/tank.data RECORD_META=$W/tank.meta RECORD_FAULT=$W/fault
WRAPPER="env LD_PRELOAD=$BUILD/tests/crash/record_io.so THIN_FILE_WAY=threads" start_server
new_pool tank 128M --commit-interval 3600s
for v in a b c; do thincli volume create tank/$v 64M; done
info() { thincli --json pool show "$1" | field "d['pools'][0]['$2']"; }

echo "a failed flush is never a success"
nbdsh -u "$(uri tank/a)" -c 'h.pwrite(b"1" * 65536, 0); h.flush()'
touch "$W/fault"
nbdsh -u "$(uri tank/a)" -c '
import errno
h.pwrite(b"2" * 65536, 0)
for i in range(3):
    try: h.flush()
    except nbd.Error as e: assert e.errnum in (errno.EIO, errno.EPERM, errno.EROFS), e
    else: assert False, "flush %d succeeded" % i'
rm "$W/fault"
# The fault is over, and still: not before the device was opened anew.
same "$(info tank mode)" read-only "mode after a failed flush"
same "$(info tank needs_check)" False "needs_check after a failed flush"
info tank why | grep_q "flush" || fail "pool show does not say what failed"
info tank what_to_do | grep_q "close the pool and open it again" || fail "pool show does not say what to do"
nbdsh -u "$(uri tank/b)" -c 'assert h.pread(65536, 0) == bytes(65536)' || fail "another volume cannot be read"
thincli pool close tank --force
check_pool tank
thincli pool open tank
same "$(info tank mode)" write "mode after opening the pool again"
nbdsh -u "$(uri tank/a)" -c '
assert h.pread(65536, 0) in (b"1" * 65536, b"2" * 65536)
h.pwrite(b"3" * 65536, 0); h.flush()
assert h.pread(65536, 0) == b"3" * 65536'

echo "damaged mappings: their volume only, listed, and mended without a restart"
nbdsh -u "$(uri tank/b)" -c '
for i in range(0, 1024, 2): h.pwrite(b"b" * 4096, i * 65536)
h.flush()'
nbdsh -u "$(uri tank/c)" -c 'h.pwrite(b"c" * 65536, 0); h.flush()'
id=$(thincli --json volume show tank/b | field "d['volumes'][0]['dev_id']")
thincli pool close tank
cp "$W/tank.meta" "$W/good.meta"
bad=
for block in $(seq 1 400); do
	cp "$W/good.meta" "$W/try.meta"
	printf 'XX' | dd of="$W/try.meta" bs=1 seek=$((block * 4096 + 2000)) conv=notrunc status=none
	thinmeta check "$W/try.meta" >"$W/try.out" 2>&1 || true
	if grep -q "affected: device $id, virtual" "$W/try.out" &&
		[ "$(grep -c '^affected' "$W/try.out")" = 1 ]; then
		bad=$block
		break
	fi
done
[ -n "$bad" ] || fail "no block holds mappings of volume b alone"
cp "$W/try.meta" "$W/tank.meta"
thincli pool open tank
nbdsh -u "$(uri tank/b)" -c '
import errno
bad = 0
for i in range(0, 1024, 2):
    try: h.pread(4096, i * 65536)
    except nbd.Error as e:
        assert e.errnum == errno.EIO, e
        bad += 1
assert bad > 0, "nothing of the damage was met"'
nbdsh -u "$(uri tank/c)" -c 'assert h.pread(65536, 0) == b"c" * 65536; h.pwrite(b"d" * 65536, 65536); h.flush()' ||
	fail "another volume does not go on"
same "$(thincli --json volume show tank/b | field "d['volumes'][0]['damaged']")" True "damaged"
same "$(thincli --json volume show tank/c | field "d['volumes'][0]['damaged']")" False "damaged"
thincli volume list tank | grep_q "b.*damaged" || fail "volume list does not tell of the damage"
info tank why | grep_q "volume b" || fail "pool show does not name the volume"
must_fail 1 . thincli pool check tank
thincli pool close tank
truncate -s 16M "$W/new.meta"
thinmeta repair -i "$W/tank.meta" -o "$W/new.meta" >/dev/null
cp "$W/new.meta" "$W/tank.meta"
thincli pool open tank
same "$(info tank mode)" write "mode after a repair"
nbdsh -u "$(uri tank/c)" -c 'assert h.pread(65536, 65536) == b"d" * 65536'
nbdsh -u "$(uri tank/b)" -c 'h.pread(4096, 0); h.pwrite(b"e" * 4096, 0); h.flush()'
check_closed tank
stop_server
