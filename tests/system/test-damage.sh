#!/usr/bin/env bash
# Devices that fail to read, write or flush, and damaged mappings: what is told, who goes on,
# and the way back into service without a restart of the server.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh thin_check
[ -e "$BUILD/tests/crash/record_io.so" ] || fail "record_io.so is missing: make tests builds it"
export RECORD_DATA=$W/tank.data RECORD_META=$W/tank.meta RECORD_FAULT=$W/fault
WRAPPER="env LD_PRELOAD=$(preload "$BUILD/tests/crash/record_io.so") THIN_FILE_WAY=threads" start_server
new_pool tank 128M --commit-interval 3600s
for v in a b c; do thincli volume create tank/$v 64M; done
info() { thincli --json pool show "$1" | field "d['pools'][0]['$2']"; }

echo "a failed flush is never a success"
nbdsh -u "$(uri tank/a)" -c 'h.pwrite(b"1" * 65536, 0); h.flush()'
echo data-flush >"$W/fault"
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

echo "a failed read or write of data fails its own request"
nbdsh -u "$(uri tank/a)" -c "
import errno, os
def says(e, f, *a):
    try: f(*a)
    except nbd.Error as x: assert x.errnum == e, (f, x)
    else: assert e == 0, f
h.pwrite(b'4' * 65536, 0)
h.pwrite(b'4' * 65536, 1 << 20)
for what, write, read in ('data-write', errno.EIO, 0), ('data-read', 0, errno.EIO), ('', 0, 0):
    open('$W/fault', 'w').write(what)
    says(write, h.pwrite, b'5' * 65536, 2 << 20) # a new block
    says(write, h.pwrite, b'5' * 65536, 1 << 20) # in place
    says(read, h.pread, 65536, 0)
    os.unlink('$W/fault')
    says(0, h.flush)
assert h.pread(65536, 0) == b'4' * 65536
assert h.pread(65536, 2 << 20) == h.pread(65536, 1 << 20) == b'5' * 65536"
same "$(info tank mode)" write "mode after failed reads and writes of data"

echo "a commit that fails: rolled back, told, read-only, and back with the device"
for what in meta-write meta-flush "meta-write meta-flush"; do
	before=$(info tank incarnation)
	nbdsh -u "$(uri tank/a)" -c "
import errno, os, time
def says(e, f, *a):
    try: f(*a)
    except nbd.Error as x: assert x.errnum == e, (f, x)
    else: assert e == 0, f
h.pwrite(b'6' * 65536, 0); h.flush()
c = nbd.NBD(); c.connect_uri('$(uri tank/c)'); c.pread(512, 0)
h.pwrite(b'7' * 65536, 5 << 20) # acknowledged, not flushed
open('$W/fault', 'w').write('$what')
for _ in range(2): says(errno.EIO, h.flush)
says(errno.EIO, h.pread, 512, 0)
os.unlink('$W/fault')
for _ in range(2): says(errno.EIO, h.flush) # until it is opened anew
end = time.time() + 30 # while the metadata is read again nothing can be opened
while True:
    n = nbd.NBD()
    try: n.connect_uri('$(uri tank/a)')
    except nbd.Error: assert time.time() < end
    else: break
assert n.is_read_only() and n.pread(65536, 0) == b'6' * 65536
assert n.pread(65536, 5 << 20) in (bytes(65536), b'7' * 65536)"
	[ "$(info tank incarnation)" != "$before" ] || fail "the incarnation is as before ($what)"
	same "$(info tank mode) $(info tank needs_check)" "read-only False" "after a commit that failed ($what)"
	info tank why | grep_q "metadata.*Input/output error" || fail "pool show does not say what failed ($what)"
	must_fail 1 "read-only" thincli volume create tank/new 1M
	thincli pool check tank >/dev/null || fail "what is in memory is not sound ($what)"
	thincli pool close tank
	check_pool tank
	thincli pool open tank
	same "$(info tank mode)" write "mode after opening the pool again ($what)"
	nbdsh -u "$(uri tank/a)" -c 'h.pwrite(b"8" * 65536, 5 << 20); h.flush(); h.trim(65536, 5 << 20); h.flush()'
done

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
