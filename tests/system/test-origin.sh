#!/usr/bin/env bash
# External origins: files and NBD exports that stand behind volumes, read-only.
. "$(dirname "$0")/lib.sh"
need_tools losetup nbdsh nbdinfo nbdcopy nbdkit qemu-io thin_check python3
write_config <<END
END
start_server
new_pool tank 512M --commit-interval 100ms
mapped() { thincli --json volume show "$1" | field "d['volumes'][0]['mapped']"; }
io() { # VOLUME COMMANDS...: qemu-io, whose pattern checks count
	local v=$1 c args=()
	shift
	for c; do args+=(-c "$c"); done
	qemu-io -f raw "${args[@]}" "$(uri "$v")" >"$W/io.out" 2>&1 || {
		cat "$W/io.out"
		fail "qemu-io on $v: $*"
	}
	! grep -q 'verification failed' "$W/io.out" || {
		cat "$W/io.out"
		fail "other bytes in $v: $*"
	}
}
reads() { # VOLUME FILE: the whole volume reads as the file
	nbdcopy "$(uri "$1")" "$W/read.out"
	cmp "$W/read.out" "$2" || fail "$1 does not read as $2"
}
head -c 10000000 /dev/urandom >"$W/base" # ends inside a block, and inside a sector

echo "equal, smaller, larger, ending inside a block"
cp "$W/base" "$W/odd"
truncate -s 9961472 "$W/base" # 152 blocks of 64k
thincli volume create tank/equal 9961472 --origin "$W/base"
thincli volume create tank/small 5000192 --origin "$W/base"
thincli volume create tank/large 20M --origin "$W/base"
thincli volume create tank/odd 20M --origin "$W/odd"
same "$(thincli --json volume show tank/equal | field "d['volumes'][0]['origin']")" "$W/base"
cp "$W/base" "$W/equal.want"
head -c 5000192 "$W/base" >"$W/small.want"
cp "$W/base" "$W/large.want" && truncate -s 20M "$W/large.want"
cp "$W/odd" "$W/odd.want" && truncate -s 20M "$W/odd.want"
for v in equal small large odd; do
	reads tank/$v "$W/$v.want"
	same "$(mapped tank/$v)" 0 "$v: reading maps nothing"
done

echo "base:allocation tells the origin's ranges as data"
same "$(nbdinfo --map --totals "$(uri tank/equal)" | awk '/data/ { print $1 }')" 9961472
nbdinfo --map "$(uri tank/large)" >"$W/map"
same "$(awk '$4 == "data" { s += $2 } $4 == "hole,zero" { h += $2 } END { print s, h }' "$W/map")" "9961472 11010048"
same "$(thincli volume map tank/large | head -n 1)" "0 9961472 origin"

echo "writes are private, and copy what is around them"
put() { # VOLUME OFFSET LENGTH: the same random bytes into the volume and its model
	head -c "$3" /dev/urandom >"$W/piece"
	dd if="$W/piece" of="$W/$1.want" bs=1M oflag=seek_bytes seek="$2" conv=notrunc status=none
	nbdsh -u "$(uri "tank/$1")" -c "h.pwrite(open('$W/piece', 'rb').read(), $2); h.flush()"
}
for v in equal small large odd; do
	put $v 0 100
	put $v 65000 3000
	put $v 262144 65536
	put $v 4999000 1000
done
put large 9961400 200 # over the origin's end
put odd 9999900 300   # over its end inside a sector
put odd 10000100 20   # behind it in the same sector
put large 15000000 70000
for v in equal small large odd; do
	reads tank/$v "$W/$v.want"
done
sha256sum "$W/base" >"$W/base.sum"
thincli volume snapshot tank/large large-snap
cp "$W/large.want" "$W/large-snap.want"
put large 3000000 100
put large-snap 3000050 100
for v in large large-snap; do reads tank/$v "$W/$v.want"; done
sha256sum -c --quiet "$W/base.sum" || fail "the origin was written to"

echo "write zeroes and discard never bring old data back"
blank() { # VOLUME OFFSET LENGTH
	dd if=/dev/zero of="$W/$1.want" bs=1M iflag=count_bytes count="$3" oflag=seek_bytes seek="$2" conv=notrunc status=none
}
io tank/large 'write -z 0 128k' 'write -z -u 192k 128k' 'write -z 5000000 7000'
blank large 0 131072
blank large 196608 131072
blank large 5000000 7000
io tank/large 'write -P 5 512k 256k' 'discard 512k 256k' 'discard 9437184 1M' 'flush'
blank large 524288 262144
blank large 9895936 131072 # what was copied; the rest of the range still is the origin's
reads tank/large "$W/large.want"
nbdsh -u "$(uri tank/equal)" -c 'h.trim(9961472, 0); h.flush()'
for block in 0 1 4 76; do blank equal $((block * 65536)) 65536; done
reads tank/equal "$W/equal.want"
thincli pool close tank
check_pool tank
thincli pool open tank
for v in equal small large odd large-snap; do reads tank/$v "$W/$v.want"; done
kill_server
start_server
for v in equal small large odd large-snap; do reads tank/$v "$W/$v.want"; done

echo "a changed origin: read-only, with a clear word"
cp -a "$W/base" "$W/base.kept"
thincli volume create tank/other 9961472 --origin "$W/base"
thincli volume create tank/blank 1M
thincli pool close tank
touch "$W/base"
thincli pool open tank
nbdinfo --json "$(uri tank/other)" | field "d['exports'][0]['is_read_only']" | grep_q True || fail "writable over a changed origin"
must_fail any "external origin is not what it was" timeout 90 thinnbd --server "$THIN_SERVER" --listen "unix:$W/bridge.sock" tank/other
grep_q 'read-only' "$W/err" || fail "what a changed origin means is not said"
thincli volume show tank/other | grep_q '^origin changed .*read-only' || fail "volume show does not tell that the origin has changed"
same "$(thincli --json volume show tank/other | field "(lambda v: (v['origin_changed'], v['read_only']))(d['volumes'][0])")" "(True, True)"
same "$(thincli --json volume show tank/blank | field "(lambda v: (v['origin_changed'], v['read_only']))(d['volumes'][0])")" "(False, False)"
thincli server events | grep_q 'origin-changed.*volume other' || fail "no event tells that an origin has changed"
reads tank/other "$W/base"
echo "the same time again, another size"
touch -r "$W/base.kept" "$W/base"
truncate -s 9961984 "$W/base"
touch -r "$W/base.kept" "$W/base"
thincli pool close tank && thincli pool open tank
nbdinfo --json "$(uri tank/other)" | field "d['exports'][0]['is_read_only']" | grep_q True || fail "writable over an origin of another size"
truncate -s 9961472 "$W/base"
touch -r "$W/base.kept" "$W/base"
thincli pool close tank && thincli pool open tank
nbdinfo --json "$(uri tank/other)" | field "d['exports'][0]['is_read_only']" | grep_q False || fail "not writable over the origin that it was"
same "$(thincli --json volume show tank/other | field "d['volumes'][0]['origin_changed']")" False
echo "another file of the same name, size and time"
mv "$W/base" "$W/base.moved"
cp -a "$W/base.moved" "$W/base"
thincli pool close tank && thincli pool open tank
nbdinfo --json "$(uri tank/other)" | field "d['exports'][0]['is_read_only']" | grep_q True || fail "writable over another file"
rm "$W/base"
mv "$W/base.moved" "$W/base"

echo "a block device as origin: its end inside a block, of another size, gone"
LOOP=
attach_loop() { LOOP=$(losetup --find --show --read-only "$W/blk") || fail "no loop devices here"; }
trap 'rc=$?; [ -z "$LOOP" ] || losetup -d "$LOOP" || true; finish $rc' EXIT
head -c 9999872 "$W/odd" >"$W/blk" # 19531 sectors: 152 blocks and a part
attach_loop
thincli volume create tank/blk 20M --origin "$LOOP"
cp "$W/blk" "$W/blk.want" && truncate -s 20M "$W/blk.want"
reads tank/blk "$W/blk.want"
same "$(mapped tank/blk)" 0 "blk: reading maps nothing"
same "$(thincli volume map tank/blk | head -n 1)" "0 9999872 origin"
put blk 65000 3000
put blk 9999800 200 # over its end
put blk 262144 65536
reads tank/blk "$W/blk.want"
put blk 524288 131072
nbdsh -u "$(uri tank/blk)" -c 'h.trim(65536 * 4, 65536 * 8); h.zero(65536 * 2, 65536 * 16); h.flush()'
blank blk 524288 131072 # what was copied; the rest of the range still is the origin's
blank blk 1048576 131072
reads tank/blk "$W/blk.want"
thincli volume snapshot tank/blk blk-snap
reads tank/blk-snap "$W/blk.want"
sha256sum "$W/blk" >"$W/blk.sum"
kill_server
start_server
reads tank/blk "$W/blk.want"
thincli pool close tank
losetup -d "$LOOP"
head -c 65536 /dev/urandom >>"$W/blk"
attach_loop # the same place in most runs; else the old one is gone
thincli pool open tank
nbdinfo --json "$(uri tank/blk)" >"$W/blk.json" 2>&1 && { field "d['exports'][0]['is_read_only']" <"$W/blk.json" | grep_q True || fail "writable over a block device of another size"; }
nbdsh -u "$(uri tank/blk)" -c 'h.pwrite(b"x" * 512, 0)' >"$W/out" 2>&1 && fail "written over a block device of another size"
thincli pool close tank
losetup -d "$LOOP"
LOOP=
truncate -s 9999872 "$W/blk"
thincli pool open tank
nbdsh -u "$(uri tank/blk)" -c "assert h.pread(65536, 262144) == open('$W/blk.want', 'rb').read()[262144:327680]" >"$W/out" 2>&1 || grep_q -i 'origin' "$W/out" || {
	cat "$W/out"
	fail "a block that was copied needs its origin, which is gone"
}
echo "another block device of the same name and size"
is_read_only() { nbdinfo --json "$(uri "$1")" | field "d['exports'][0]['is_read_only']"; }
attach_loop
place=$LOOP
thincli volume create tank/disk 20M --origin "$place"
same "$(is_read_only tank/disk)" False "over the device that it was made on"
other_file() { # FILE: behind the same device, and the pool opened anew
	thincli pool close tank
	losetup -d "$place"
	LOOP=
	losetup --read-only "$place" "$1" || fail "the loop device cannot be had again"
	LOOP=$place
	thincli pool open tank
}
cp "$W/blk" "$W/blk2"
other_file "$W/blk2"
same "$(is_read_only tank/disk)" True "over another file behind the same device"
must_fail any "external origin is not what it was" timeout 90 thinnbd --server "$THIN_SERVER" --listen "unix:$W/bridge.sock" tank/disk
other_file "$W/blk"
same "$(is_read_only tank/disk)" False "over the device that it was"
thincli pool close tank
touch "$W/blk"
thincli pool open tank
same "$(is_read_only tank/disk)" True "over a device whose file was written to"
thincli volume delete tank/disk
losetup -d "$place"
LOOP=

sha256sum -c --quiet "$W/blk.sum" || fail "the block device was written to"
for v in blk blk-snap; do thincli volume delete tank/$v; done

echo "an NBD export as origin; gone, and back"
serve_base() {
	rm -f "$W/base.sock"
	nbdkit -f -U "$W/base.sock" --filter=error file "$W/base" error-pread-rate=0 >/dev/null 2>&1 &
	base_pid=$!
	disown
	ALSO_KILL="$ALSO_KILL $base_pid"
	wait_until 30 "nbdkit does not start" test -S "$W/base.sock"
}
serve_base
base_uri="nbd+unix:///?socket=$W/base.sock"
thincli volume create tank/nbd 20M --origin "$base_uri"
cp "$W/base" "$W/nbd.want" && truncate -s 20M "$W/nbd.want"
reads tank/nbd "$W/nbd.want"
put nbd 0 65536
put nbd 1000000 10
reads tank/nbd "$W/nbd.want"
cat >"$W/gone.py" <<'END'
# One client, from before the loss of the origin until after its return.
import errno, os, sys, time, nbd
want = open(sys.argv[1], "rb").read()
def may(offset, length):
    try:
        return h.pread(length, offset) == want[offset:offset + length] or "other bytes"
    except nbd.Error as e:
        return e.errnum
assert may(2000000, 4096) is True
os.kill(int(sys.argv[2]), 9)
open(sys.argv[3], "w").close()
deadline = time.time() + 90
while True:
    r = may(5000000, 4096)
    if r == errno.EIO:
        break
    assert r is True and time.time() < deadline, r  # what is on its way may still come
    time.sleep(0.1)
assert may(0, 65536) is True            # copied blocks
assert may(983040, 65536) is True
assert may(15 << 20, 65536) is True     # behind the origin's end
try:
    h.pwrite(b"x" * 10, 5000000)        # must read the origin first
    sys.exit("a part of a block was written without its origin")
except nbd.Error as e:
    assert e.errnum == errno.EIO, e
h.pwrite(b"y" * 65536, 65536)           # needs nothing of it
h.flush()
open(sys.argv[3] + ".wanted", "w").close()
deadline = time.time() + 90
while may(5000000, 4096) is not True:
    assert time.time() < deadline, "it does not heal"
    time.sleep(0.1)
h.pwrite(b"x" * 10, 5000000)
h.flush()
END
nbdsh -u "$(uri tank/nbd)" -c "import sys; sys.argv = ['x', '$W/nbd.want', '$base_pid', '$W/gone']; exec(open('$W/gone.py').read())" &
client=$!
for _ in $(seq 1500); do
	[ -e "$W/gone.wanted" ] && break
	kill -0 $client 2>/dev/null || break
	sleep 0.1
done
serve_base
wait $client || fail "the client over the loss of the origin"
printf 'x%.0s' $(seq 10) | dd of="$W/nbd.want" bs=1M oflag=seek_bytes seek=5000000 conv=notrunc status=none
head -c 65536 /dev/zero | tr '\0' y | dd of="$W/nbd.want" bs=64k seek=1 conv=notrunc status=none
reads tank/nbd "$W/nbd.want"

echo "a file that is gone when the pool opens: EIO where it is needed, and it heals"
thincli pool close tank
mv "$W/odd" "$W/odd.away"
thincli pool open tank
nbdsh -u "$(uri tank/odd)" -c '
import errno, time
h.pread(65536, 0) # copied above
try:
    h.pread(4096, 6000000)
    raise SystemExit("read without the origin")
except nbd.Error as e:
    assert e.errnum == errno.EIO, e
' || fail "an origin that is gone"
mv "$W/odd.away" "$W/odd"
wait_until 60 "an origin that is back does not heal" nbdcopy "$(uri tank/odd)" "$W/read.out"
reads tank/odd "$W/odd.want"

echo "refusals"
must_fail 1 "no such file" thincli volume create tank/no 1M --origin "$W/nothing"
must_fail 1 "neither a regular file" thincli volume create tank/no 1M --origin "$W"
: >"$W/empty"
must_fail 1 "empty" thincli volume create tank/no 1M --origin "$W/empty"
must_fail 1 "URI" thincli volume create tank/no 1M --origin "http://127.0.0.1/x"
must_fail 1 "open the origin" thincli volume create tank/no 1M --origin "nbd+unix:///?socket=$W/nobody.sock"
must_fail 1 "itself" thincli volume create tank/no 1M --origin "$(uri tank/equal)"
same "$(thincli --json volume list tank | field "len([v for v in d['volumes'] if v['name'] == 'tank/no'])")" 0
thincli volume delete tank/equal tank/small tank/large tank/odd tank/other tank/blank tank/nbd tank/large-snap
check_closed tank
stop_server
sha256sum -c --quiet "$W/base.sum" || fail "the origin was written to"
