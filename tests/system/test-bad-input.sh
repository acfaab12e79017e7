#!/usr/bin/env bash
# Wrong options, paths, sizes, names, files: one clear line, exit 1 or 2, nothing changed.
. "$(dirname "$0")/lib.sh"
need_tools mke2fs qemu-img thin_dump nbdsh
start_server
new_pool tank 256M
thincli volume create tank/v 16M

echo "wrong usage is exit 2"
must_fail 2 "" thincli
must_fail 2 "" thincli pool frobnicate
must_fail 2 "" thincli pool create x
must_fail 2 "" thincli pool list --no-such-option
must_fail 2 "" thincli volume create tank/x
must_fail 2 "" thinsrv
must_fail 2 "" thinsrv --no-such-option

echo "names and sizes"
must_fail any "name" thincli volume create "tank/bad name" 1M
must_fail any "name" thincli volume create "tank/-x" 1M
must_fail any "name" thincli volume create "tank/$(printf 'n%.0s' $(seq 128))" 1M
thincli volume create "tank/$(printf 'n%.0s' $(seq 127))" 1M
for size in 0 1000 513 -1 12Q x ''; do
	rc=0
	thincli volume create tank/s "$size" >/dev/null 2>"$W/err" || rc=$?
	{ [ $rc = 1 ] || [ $rc = 2 ]; } && [ -s "$W/err" ] || fail "size '$size': exit $rc"
done
must_fail 1 "exists\|already" thincli volume create tank/v 1M
must_fail 1 "no such\|^thincli: no " thincli volume show tank/none
must_fail 1 "no such\|^thincli: no " thincli volume show none/v
must_fail 1 "no such\|^thincli: no " thincli volume delete tank/none
must_fail 1 "no such\|^thincli: no " thincli volume snapshot tank/none snap
must_fail 1 "exists\|already" thincli volume snapshot tank/v v
must_fail 1 "exists\|already" thincli volume rename tank/v "$(printf 'n%.0s' $(seq 127))"
must_fail 1 "no such\|^thincli: no " thincli pool show none
must_fail 1 "exists\|already" thincli pool create tank --data "$W/y:64M" --metadata "$W/z:4M"
[ ! -e "$W/y" ] && [ ! -e "$W/z" ] || fail "a refused create left files"

echo "devices"
must_fail 1 "does not exist" thincli pool create p --data "$W/none" --metadata "$W/none2"
must_fail 1 "4M" thincli pool create p --data "$W/d:64M" --metadata "$W/m:1M"
[ ! -e "$W/d" ] && [ ! -e "$W/m" ] || fail "a refused create left files"
must_fail 1 "" thincli pool create p --data "$W/no/such/folder/d:64M" --metadata "$W/m:4M"
must_fail 1 "same" thincli pool create p --data "$W/same:64M" --metadata "$W/same:64M"
must_fail 1 "neither" thincli pool create p --data /dev/null --metadata "$W/m:4M"
must_fail 1 "in use\|lock\|exist" thincli pool create p --data "$W/tank.data" --metadata "$W/m:4M" --force
[ ! -e "$W/m" ] || fail "a refused create left files"

echo "what is there is used as it is, whatever size was said"
truncate -s 64M "$W/there.data"
truncate -s 8M "$W/there.meta"
thincli pool create p --data "$W/there.data:32M" --metadata "$W/there.meta:16M"
same "$(stat -c %s "$W/there.data" "$W/there.meta" | tr '\n' ' ')" "67108864 8388608 " "files that were there"
same "$(thincli --json pool show p | field "d['pools'][0]['data_size'], d['pools'][0]['metadata_size']")" "(67108864, 8388608)"
thincli pool destroy p --yes
echo "an empty file is like none"
: >"$W/empty.data"
must_fail 1 "0 bytes" thincli pool create p --data "$W/empty.data" --metadata "$W/m:4M"
must_fail 1 "" thincli pool create p --data "$W/empty.data:64M" --metadata "$W/no/such/folder/m:4M"
same "$(stat -c %s "$W/empty.data")" 0 "an empty file of a refused create"
thincli pool create p --data "$W/empty.data:64M" --metadata "$W/m:4M"
same "$(stat -c %s "$W/empty.data")" 67108864
thincli pool destroy p --yes

echo "signatures are refused, and overwritten with --force"
mke2fs -q -t ext4 "$W/ext4" 64M
qemu-img create -q -f qcow2 "$W/qcow2" 64M
truncate -s 64M "$W/gpt"
python3 - "$W/gpt" <<'END'
import sys
f = open(sys.argv[1], "r+b")
f.seek(446); f.write(bytes([0, 2, 0, 0, 0x83, 255, 255, 255, 1, 0, 0, 0, 255, 0, 0, 0]))
f.seek(510); f.write(b"\x55\xaa")
END
cp "$W/tank.meta" "$W/thin"
for s in ext4 qcow2 gpt thin; do
	sum=$(sha256sum <"$W/$s")
	must_fail 1 "$s\|signature\|superblock\|qcow2\|dos" thincli pool create p --data "$W/$s" --metadata "$W/m:4M"
	same "$(sha256sum <"$W/$s")" "$sum" "$s was changed"
	[ ! -e "$W/m" ] || fail "a refused create left files"
done
thincli pool create forced --data "$W/ext4" --metadata "$W/m:4M" --force
thincli pool destroy forced --yes

echo "metadata that is none"
head -c 8M /dev/urandom >"$W/noise"
truncate -s 64M "$W/data"
truncate -s 8M "$W/zeros"
sum=$(sha256sum <"$W/noise")
must_fail 1 "" thincli pool import p --data "$W/data" --metadata "$W/noise"
must_fail 1 "" thincli pool import p --data "$W/data" --metadata "$W/zeros"
must_fail 1 "" thincli pool import p --data "$W/data" --metadata "$W/none"
must_fail 1 "no such\|^thincli: no " thincli pool show p
same "$(sha256sum <"$W/noise")" "$sum" "a file that is no metadata was changed"
thincli pool close tank
cp "$W/tank.meta" "$W/copy.meta"
truncate -s 1M "$W/short"
must_fail 1 "" thincli pool import p --data "$W/short" --metadata "$W/copy.meta"
cmp "$W/tank.meta" "$W/copy.meta" || fail "a refused import changed the metadata"

echo "in use by another process"
exec 8<>"$W/tank.meta"
python3 - "$W/tank.meta" <<'END' &
import fcntl, struct, sys, time
f = open(sys.argv[1], "r+b")
# an open-file-description write lock on the whole file
fcntl.fcntl(f, 37, struct.pack("hhqqi4x", 1, 0, 0, 0, 0))
open(sys.argv[1] + ".locked", "w").close()
time.sleep(60)
END
locker=$!
wait_until 30 "nobody locks" test -e "$W/tank.meta.locked"
must_fail 1 "in use" thincli pool open tank
kill $locker
wait $locker 2>/dev/null || true
thincli pool open tank
if thinmeta restore -i /dev/null -o "$W/tank.meta" >/dev/null 2>&1; then fail "restore wrote on an open pool"; fi

echo "a second server on the same socket, or the same pool"
cp "$W/thinsrv.conf" "$W/second.conf"
must_fail 1 "" thinsrv --config "$W/second.conf"
thincli server status >/dev/null || fail "the first server lost its socket"
sed "s|$W/state|$W/state2|; s|thinsrv.sock|second.sock|; s|nbd.sock|nbd2.sock|" "$W/thinsrv.conf" >"$W/second.conf"
thinsrv --config "$W/second.conf" 2>>"$W/second.log" &
second=$!
wait_until 30 "the second server does not listen" test -S "$W/second.sock"
must_fail 1 "in use" thincli --server "unix:$W/second.sock" pool import tank --data "$W/tank.data" --metadata "$W/tank.meta"
kill $second
wait $second || fail "the second server did not end in order"

echo "configuration"
for bad in '[server]' '[nonsense]
x = 1' '[server]
state_dir = /tmp/x
nonsense = 1' '[server]
state_dir = /tmp/x
workers = many' '[server]
state_dir = /tmp/x
[listen]
tls = 127.0.0.1:1' "[server]
state_dir = $(printf 'x%.0s' $(seq 200))" "[server]
state_dir = /tmp/x
[listen]
unix = /tmp/$(printf 'x%.0s' $(seq 110))" 'no section'; do
	printf '%s\n' "$bad" >"$W/bad.conf"
	must_fail 1 "bad.conf" thinsrv --check-config --config "$W/bad.conf"
done
printf '[server]\nstate_dir = %s\nuser = nobody-of-that-name\n' "$W/state2" >"$W/bad.conf"
must_fail 1 "no such user" thinsrv --check-config --config "$W/bad.conf"
must_fail 1 "no such user" thinsrv --config "$W/bad.conf"
must_fail 1 "No such file" thinsrv --config "$W/none.conf"
must_fail 1 "Is a directory" thinsrv --config "$W"
thinsrv --check-config --config "$W/thinsrv.conf"

echo "garbage on both sockets does no harm"
python3 - "$W/thinsrv.sock" "$W/nbd.sock" <<'END'
import os, random, socket, sys
rng = random.Random(5)
for path in sys.argv[1:]:
    for i in range(60):
        s = socket.socket(socket.AF_UNIX)
        s.settimeout(5)
        s.connect(path)
        data = bytes(rng.randrange(256) for _ in range(rng.choice([1, 24, 100, 5000])))
        if i % 3 == 0:
            data = b"THIN" + b"\x01\x00\x00\x00" + b"\xff" * 16 + data
        if i % 3 == 1:
            data = b"\x00\x00\x00\x03" + b"IHAVEOPT" + b"\x00\x00\x00\x07\xff\xff\xff\xff" + data
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            while s.recv(65536):
                pass
        except OSError:
            pass
        s.close()
END
thincli server status >/dev/null || fail "the server is gone"
nbdsh -u "$(uri tank/v)" -c 'h.pwrite(b"a" * 512, 0); h.flush(); assert h.pread(512, 0) == b"a" * 512'

echo "requests beyond the end"
nbdsh -u "$(uri tank/v)" -c '
h.set_strict_mode(0)
for f in (lambda: h.pread(512, 16 << 20), lambda: h.pwrite(b"x" * 1024, (16 << 20) - 512), lambda: h.trim(1 << 20, 16 << 20)):
    try:
        f()
    except nbd.Error as e:
        assert e.errno in ("EINVAL", "ENOSPC"), e
    else:
        raise SystemExit("a request beyond the end was accepted")
h.pread(512, 0)'
thincli pool list >/dev/null
stop_server
check_pool tank
