#!/usr/bin/env bash
# thinnbd over TLS: real NBD clients, several at once; a server that is restarted or
# killed under load; reading only; how it starts, ends and fails.
. "$(dirname "$0")/lib.sh"
need_tools nbdinfo nbdcopy nbdsh qemu-img qemu-io fio thin_check
free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
thincli pki init --dir "$W/pki" >/dev/null
for c in server client; do thincli pki issue $c --$c --dir "$W/pki" >/dev/null; done
port=$(free_port) nbd_port=$(free_port) tls_port=$(free_port)
cat >"$W/thinsrv.conf" <<END
[server]
state_dir = $W/state
[listen]
unix = $W/thinsrv.sock
tls = 127.0.0.1:$port
[tls]
cert = $W/pki/server/server-cert.pem
key = $W/pki/server/server-key.pem
ca = $W/pki/server/ca-cert.pem
[nbd]
listen = unix:$W/nbd.sock
END
start_server
new_pool tank 1G
thincli volume create tank/vol 256M
thincli access grant cert:client write 'tank/*'
remote=(--server "tls://127.0.0.1:$port" --cert "$W/pki/client/client-cert.pem" --key "$W/pki/client/client-key.pem" --ca "$W/pki/client/ca-cert.pem")

NBD_PID=
start_thinnbd() { # OPTIONS... VOLUME
	: >"$W/thinnbd.out"
	thinnbd "${remote[@]}" "$@" >"$W/thinnbd.out" 2>"$W/thinnbd.log" &
	NBD_PID=$!
	ALSO_KILL=$NBD_PID
	disown
	local _
	for _ in $(seq 600); do
		grep -q '^listening on' "$W/thinnbd.out" && return 0
		kill -0 $NBD_PID 2>/dev/null || break
		sleep 0.05
	done
	cat "$W/thinnbd.log"
	fail "thinnbd does not listen"
}
stop_thinnbd() {
	kill -TERM "$NBD_PID"
	wait_gone "$NBD_PID"
	[ ! -e "$W/local.sock" ] || fail "thinnbd leaves its socket behind"
}
local_uri() { echo "nbd+unix:///$1?socket=$W/local.sock"; }

echo "wrong lines"
must_fail 2 'volume is missing' thinnbd "${remote[@]}" --listen "unix:$W/local.sock"
must_fail 2 '--listen is missing' thinnbd "${remote[@]}" tank/vol
must_fail 2 'POOL/VOLUME' thinnbd "${remote[@]}" --listen "unix:$W/local.sock" tank
must_fail 2 'no such option' thinnbd --frob
must_fail 2 'needs --cert' thinnbd --server tls://localhost --listen "unix:$W/local.sock" tank/vol
must_fail 1 'tank/nothing' thinnbd "${remote[@]}" --listen "unix:$W/local.sock" tank/nothing
must_fail 1 'cannot reach' thinnbd --server "unix:$W/none" --listen "unix:$W/local.sock" tank/vol
must_fail 1 'other machines' thinnbd "${remote[@]}" --listen "tcp:0.0.0.0:$nbd_port" tank/vol
[ ! -e "$W/local.sock" ] || fail "a failed start leaves a socket"

echo "what it offers"
start_thinnbd --listen "unix:$W/local.sock" --listen "tcp:127.0.0.1:$nbd_port" tank/vol
same "$(cat "$W/thinnbd.out")" "listening on unix:$W/local.sock tcp:127.0.0.1:$nbd_port"
nbdinfo --json "$(local_uri tank/vol)" >"$W/info"
for flag in can_multi_conn can_flush can_fua can_trim can_zero can_fast_zero can_df; do
	field "d['exports'][0]['$flag']" <"$W/info" | grep_q True || fail "$flag is not offered"
done
same "$(nbdinfo --size "$(local_uri '')")" 268435456 "the default export"
same "$(nbdinfo --size "nbd://127.0.0.1:$nbd_port/tank/vol")" 268435456
nbdinfo "$(local_uri tank/other)" >/dev/null 2>&1 && fail "an export that is not there"
nbdinfo --list "$(local_uri '')" | grep_q 'export="tank/vol"' || fail "LIST"
must_fail 1 '' thinnbd "${remote[@]}" --listen "unix:$W/local.sock" tank/vol

echo "what goes in comes out, by several connections"
head -c 30000000 /dev/urandom >"$W/in"
truncate -s 200M "$W/in"
head -c 3000000 /dev/urandom | dd of="$W/in" bs=1M seek=150 conv=notrunc status=none
truncate -s 256M "$W/in"
nbdcopy --connections=4 --requests=64 --flush "$W/in" "$(local_uri tank/vol)"
qemu-img compare -f raw -F raw "$W/in" "$(local_uri tank/vol)"
nbdcopy --connections=4 "$(local_uri tank/vol)" "$W/out"
cmp "$W/in" "$W/out"
same "$(nbdcopy "$(uri tank/vol)" - | cmp - "$W/in" && echo same)" same "by the server's own export"
nbdinfo --map "$(local_uri tank/vol)" | grep_q 'hole,zero' || fail "no holes in the map"
[ "$(thincli --json volume show tank/vol | field "d['volumes'][0]['mapped']")" -lt 60000000 ] || fail "zeros took space"

echo "part sectors, zeroes, discard, FUA, large requests"
qemu-io -f raw -c 'write -P 1 0 1M' -c 'write -P 2 100 411' -c 'write -P 3 65000 2000' \
	-c 'read -P 1 0 100' -c 'read -P 2 100 411' -c 'read -P 1 511 64489' -c 'read -P 3 65000 2000' \
	-c 'flush' -c 'write -z 128k 128k' -c 'read -P 0 128k 128k' -c 'discard 256k 256k' -c 'read -P 0 256k 256k' \
	-c 'write -z 70000 5000' -c 'read -P 0 70000 5000' -c 'read -P 1 75000 5000' -c 'write -f -P 7 3 5' -c 'read -P 7 3 5' \
	-c 'write -P 9 1M 32M' -c 'read -P 9 1M 32M' -c 'write -z -u 1M 32M' -c 'read -P 0 1M 32M' \
	"$(local_uri tank/vol)" >"$W/io.out" 2>&1 || { cat "$W/io.out"; fail qemu-io; }
grep -q 'verification failed' "$W/io.out" && { cat "$W/io.out"; fail "qemu-io reads other bytes"; }
nbdsh -u "$(local_uri tank/vol)" -c - <<'END'
# More payload at once than thinnbd lends: it must make clients wait, not fail.
n = 32 << 20
cookies = [h.aio_pread(nbd.Buffer(n), i % 7 * n) for i in range(16)]
while h.aio_in_flight():
    h.poll(-1)
assert all(h.aio_command_completed(c) for c in cookies)
END

echo "fio with verify, in four jobs"
fio --name=v --ioengine=nbd --uri="$(local_uri tank/vol)" --rw=randwrite --bsrange=512-128k --bs_unaligned=0 --blockalign=512 \
	--size=48M --offset_increment=48M --numjobs=4 --iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=64 --randseed=7 \
	--output="$W/fio.out" || { cat "$W/fio.out"; fail fio; }

echo "a restart of the server is a pause"
fio --name=r --ioengine=nbd --uri="$(local_uri tank/vol)" --rw=randwrite --bs=4k --size=64M --io_size=128M --rate_iops=8000 --iodepth=16 \
	--verify=crc32c --verify_fatal=1 --do_verify=1 --fsync=32 --randseed=9 --output="$W/fio.out" &
load=$!
sleep 1
stop_server
sleep 0.5
start_server
wait $load || { cat "$W/fio.out" "$W/thinnbd.log"; fail "fio over a restart"; }
grep -q 'connected again' "$W/thinnbd.log" || fail "the restart came too late"

echo "writes that were not flushed survive a restart in good order, and none is called lost"
SERVER_PID=$SERVER_PID nbdsh -u "$(local_uri tank/vol)" -c - <<'END' || fail "a restart lost writes, or says so"
import os, signal, subprocess, time
w = os.path.dirname(os.environ["THIN_SERVER"][5:])
pid, server = int(os.environ["SERVER_PID"]), None
for turn in range(4):
    data = bytes([turn + 1]) * 65536
    h.pwrite(data, 16 << 20)                  # in place
    h.pwrite(data, (200 << 20) + turn * 65536) # a new block
    if turn == 2:
        h.pwrite(data[:512], 17 << 20)
        time.sleep(1.5)                       # past a commit
        h.pwrite(data, 16 << 20)
    os.kill(pid, signal.SIGTERM)
    if server:
        server.wait()
    else:
        while os.path.exists("/proc/%d" % pid):
            time.sleep(0.02)
    server = subprocess.Popen(["thinsrv", "--config", w + "/thinsrv.conf"], stdin=subprocess.DEVNULL,
                              stdout=subprocess.DEVNULL, stderr=open(w + "/thinsrv.log", "ab"), start_new_session=True)
    pid = server.pid
    open(w + "/server.pid", "w").write(str(pid))
    h.flush()
    assert h.pread(65536, 16 << 20) == data
    assert h.pread(65536, (200 << 20) + turn * 65536) == data
END
SERVER_PID=$(cat "$W/server.pid")

echo "what was flushed survives kill -9 of the server"
nbdsh -u "$(local_uri tank/vol)" -c 'h.pwrite(b"flushed!" * 8192, 128 << 20); h.flush()'
kill_server
start_server
same "$(nbdsh -u "$(local_uri tank/vol)" -c 'print(h.pread(65536, 128 << 20) == b"flushed!" * 8192)')" True

echo "writes that a crash may have lost are told, and a new client gets the volume anew"
SERVER_PID=$SERVER_PID nbdsh -u "$(local_uri tank/vol)" -c - <<'END' || fail "loss is silent"
import os, signal, subprocess, time
h.pwrite(b"x" * 65536, 192 << 20) # provisions, and is not flushed
os.kill(int(os.environ["SERVER_PID"]), signal.SIGKILL)
w = os.path.dirname(os.environ["THIN_SERVER"][5:])
def fails(f):
    try:
        f()
    except nbd.Error as e:
        return e.errno == "EIO"
    return False
server = subprocess.Popen(["thinsrv", "--config", w + "/thinsrv.conf"],
                          stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
open(w + "/server.pid", "w").write(str(server.pid))
assert fails(h.flush), "the flush over a lost write succeeds"
assert fails(lambda: h.pread(512, 0)) and fails(h.flush), "it heals by itself"
END
SERVER_PID=$(cat "$W/server.pid")
nbdsh -u "$(local_uri tank/vol)" -c 'h.pwrite(b"y" * 65536, 192 << 20); h.flush(); assert h.pread(8, 128 << 20) == b"flushed!"'
kill_server
start_server

echo "a resize shows"
thincli volume resize tank/vol 320M
for _ in $(seq 300); do
	[ "$(nbdinfo --size "$(local_uri tank/vol)")" = 335544320 ] && break
	sleep 0.1
done
same "$(nbdinfo --size "$(local_uri tank/vol)")" 335544320

echo "SIGTERM answers what is in flight"
NBD_PID=$NBD_PID nbdsh -u "$(local_uri tank/vol)" -c - <<'END'
# Every request gets an answer, or the connection ends; it never hangs.
import os, signal
data = nbd.Buffer.from_bytearray(bytearray(b"x" * 1048576))
answers = []
for i in range(64):
    h.aio_pwrite(data, i << 20, completion=lambda error: answers.append(error.value) or 1)
h.poll(1000)
os.kill(int(os.environ["NBD_PID"]), signal.SIGTERM)
try:
    while h.aio_in_flight():
        assert h.poll(10000) == 1, "no answer"
except nbd.Error as e:
    pass
assert 0 in answers, answers
END
wait_gone "$NBD_PID"
grep -q 'given up' "$W/thinnbd.log" && fail "requests in flight were given up"
[ ! -e "$W/local.sock" ] || fail "thinnbd leaves its socket behind"
check_closed tank

echo "reading only"
start_thinnbd --listen "unix:$W/local.sock" tank/vol@ro
nbdinfo --json "$(local_uri tank/vol)" | field "d['exports'][0]['is_read_only']" | grep_q True || fail "@ro is not read-only"
nbdsh -u "$(local_uri tank/vol)" -c 'h.pread(4096, 0)'
nbdsh -u "$(local_uri tank/vol)" -c 'h.set_strict_mode(0); h.pwrite(b"x" * 512, 0)' 2>/dev/null && fail "a write passes"
stop_thinnbd

echo "TLS with certificates for NBD clients on TCP"
start_thinnbd --listen "tcp:127.0.0.1:$tls_port" --tls-cert "$W/pki/server/server-cert.pem" --tls-key "$W/pki/server/server-key.pem" --tls-ca "$W/pki/server/ca-cert.pem" tank/vol
same "$(nbdinfo --size "nbds://127.0.0.1:$tls_port/tank/vol?tls-certificates=$W/pki/client")" 335544320
nbdcopy "nbds://127.0.0.1:$tls_port/tank/vol?tls-certificates=$W/pki/client" - | sha256sum >"$W/sum1"
nbdcopy "$(uri tank/vol)" - | sha256sum >"$W/sum2"
cmp "$W/sum1" "$W/sum2"
nbdinfo "nbd://127.0.0.1:$tls_port/tank/vol" >/dev/null 2>&1 && fail "plain NBD where TLS is required"
thincli pki init --dir "$W/strange" >/dev/null
thincli pki issue client --client --dir "$W/strange" --out "$W/strange/client" >/dev/null
cp "$W/pki/client/ca-cert.pem" "$W/strange/client/ca-cert.pem"
nbdinfo "nbds://127.0.0.1:$tls_port/tank/vol?tls-certificates=$W/strange/client" >/dev/null 2>&1 && fail "a stranger's certificate"
stop_thinnbd

echo "it waits for a server that is not there yet"
stop_server
: >"$W/thinnbd.out"
thinnbd "${remote[@]}" --wait --listen "unix:$W/local.sock" tank/vol >"$W/thinnbd.out" 2>"$W/thinnbd.log" &
NBD_PID=$!
ALSO_KILL=$NBD_PID
disown
sleep 0.5
start_server
wait_until 30 "--wait: $(cat "$W/thinnbd.log")" grep -q '^listening on' "$W/thinnbd.out"
stop_thinnbd
stop_server
check_pool tank
