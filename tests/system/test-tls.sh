#!/usr/bin/env bash
# Certificates in one command each; mutual TLS for the own protocol and for NBD; rules
# decide; the bridge serves real NBD clients from a remote volume.
. "$(dirname "$0")/lib.sh"
need_tools nbdinfo nbdcopy qemu-img qemu-io fio openssl
cd "$W"
thincli pki init --dir "$W/pki"
thincli pki issue server --server --dir "$W/pki"
for c in alice bob; do thincli pki issue $c --client --dir "$W/pki"; done
for f in server/server-key.pem alice/client-key.pem; do same "$(stat -c %a "$W/pki/$f")" 600 "mode of $f"; done
openssl verify -CAfile "$W/pki/alice/ca-cert.pem" "$W/pki/alice/client-cert.pem" >/dev/null || fail "alice's certificate"
openssl x509 -in "$W/pki/server/server-cert.pem" -noout -text >cert.txt
for n in DNS:localhost 'IP Address:127.0.0.1' 'IP Address:0:0:0:0:0:0:0:1'; do grep -q "$n" cert.txt || fail "the server's certificate lacks $n"; done
port=$(python3 -c '
import socket
ss = [socket.socket() for _ in range(2)]
for s in ss: s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in ss])')
read -r tls_port nbd_port <<<"$port"
write_config <<END
tls = 127.0.0.1:$tls_port
[tls]
cert = $W/pki/server/server-cert.pem
key = $W/pki/server/server-key.pem
ca = $W/pki/server/ca-cert.pem
crl = $W/pki/ca/ca-crl.pem
[nbd]
listen = unix:$W/nbd.sock
listen = tcp:127.0.0.1:$nbd_port
END
start_server
new_pool tank 1G
thincli volume create tank/vol 256M
thincli volume create tank/other 16M
as() { # client, thincli words
	local c=$1
	shift
	thincli --server "tls://127.0.0.1:$tls_port" --cert "$W/pki/$c/client-cert.pem" --key "$W/pki/$c/client-key.pem" \
		--ca "$W/pki/$c/ca-cert.pem" "$@"
}

echo "default deny: who has no right sees nothing"
same "$(as alice --json pool list | field "len(d['pools'])")" 0
must_fail 1 "no such" as alice volume show tank/vol
must_fail 1 "no such" as alice volume delete tank/vol
thincli access grant cert:alice write tank/vol
thincli access grant cert:bob read 'tank/v*'
thincli access list | grep_q cert:alice || fail "access list"
same "$(as alice --json volume list | field "d['volumes'][0]['name']")" tank/vol
must_fail 1 "right" as alice volume delete tank/vol
must_fail 1 "no such" as alice volume show tank/other
must_fail 1 "" as alice pool create evil --data "$W/evil:64M" --metadata "$W/evil2:4M"
[ ! -e "$W/evil" ] || fail "a stranger made a file"

echo "without a certificate, or with another authority's, nothing"
must_fail any "cert" thincli --server "tls://127.0.0.1:$tls_port" --ca "$W/pki/alice/ca-cert.pem" server status
thincli pki init --dir "$W/evil-pki"
thincli pki issue mallory --client --dir "$W/evil-pki"
must_fail 1 "" thincli --server "tls://127.0.0.1:$tls_port" --cert "$W/evil-pki/mallory/client-cert.pem" \
	--key "$W/evil-pki/mallory/client-key.pem" --ca "$W/pki/alice/ca-cert.pem" server status
must_fail 1 "" thincli --server "tls://127.0.0.1:$tls_port" --cert "$W/pki/alice/client-cert.pem" \
	--key "$W/pki/alice/client-key.pem" --ca "$W/evil-pki/mallory/ca-cert.pem" server status

echo "NBD over TLS: the identity decides"
nbds() { echo "nbds://127.0.0.1:$nbd_port/$2?tls-certificates=$W/pki/$1"; }
same "$(nbdinfo --size "$(nbds alice tank/vol)")" 268435456
nbdinfo --json "$(nbds bob tank/vol)" | field "d['exports'][0]['is_read_only']" | grep_q True || fail "bob may write"
if nbdinfo --size "$(nbds alice tank/other)" 2>/dev/null; then fail "alice opens tank/other"; fi
if nbdinfo --size "nbd://127.0.0.1:$nbd_port/tank/vol" 2>/dev/null; then fail "plain NBD on TCP is served"; fi
head -c 30000000 /dev/urandom >"$W/in"
truncate -s 256M "$W/in"
nbdcopy --flush "$W/in" "$(nbds alice tank/vol)"
nbdcopy "$(nbds bob tank/vol)" "$W/out"
cmp "$W/in" "$W/out"

echo "thinnbd: the bridge over the own protocol"
thinnbd --server "tls://127.0.0.1:$tls_port" --cert "$W/pki/alice/client-cert.pem" --key "$W/pki/alice/client-key.pem" \
	--ca "$W/pki/alice/ca-cert.pem" --listen "unix:$W/bridge.sock" tank/vol >"$W/bridge.log" 2>&1 &
bridge=$!
for _ in $(seq 600); do [ -S "$W/bridge.sock" ] && break; kill -0 $bridge || { cat "$W/bridge.log"; fail "thinnbd ended"; }; sleep 0.05; done
b="nbd+unix:///tank/vol?socket=$W/bridge.sock"
nbdinfo "$b" >/dev/null
same "$(nbdinfo --size "$b")" 268435456
nbdinfo --map "$b" | grep_q 'hole,zero' || fail "the bridge tells no holes"
nbdcopy "$b" "$W/out"
cmp "$W/in" "$W/out"
qemu-img compare -f raw -F raw "$W/in" "$b"
qemu-io -f raw -c 'write -P 9 1M 1M' -c 'write -P 8 1000 3000' -c 'read -P 8 1000 3000' -c 'write -z 1M 512k' -c 'read -P 0 1M 512k' \
	-c 'discard 8M 1M' -c 'read -P 0 8M 1M' -c flush "$b" >"$W/io.out" 2>&1 || { cat "$W/io.out"; fail qemu-io; }
grep -q 'verification failed' "$W/io.out" && { cat "$W/io.out"; fail "the bridge reads other bytes"; }
fio --name=v --ioengine=nbd --uri="$b" --rw=randwrite --bsrange=512-64k --blockalign=512 --size=256M --io_size=96M \
	--iodepth=16 --verify=crc32c --verify_state_save=0 --verify_fatal=1 --do_verify=1 --fsync=64 --randseed=9 --output="$W/fio.out" || { cat "$W/fio.out"; fail fio; }
nbdcopy "$b" - | sha256sum >"$W/sum"

echo "the bridge survives a restart of the server"
stop_server
start_server
nbdcopy "$b" - | sha256sum | cmp - "$W/sum" || fail "the bridge reads other bytes after a restart"
kill -TERM $bridge
wait $bridge || fail "thinnbd did not end in order"

echo "revoked: the door shuts after a reload"
as bob server status >/dev/null || as bob volume list >/dev/null
thincli pki revoke bob --dir "$W/pki"
kill -HUP "$SERVER_PID"
wait_until 30 "no reload" grep -q "access rules are loaded anew" "$W/thinsrv.log"
must_fail 1 "" as bob volume list
as alice volume list >/dev/null
check_closed tank
stop_server
