#!/usr/bin/env bash
# What users did that nobody had thought of: each part is a story that went wrong once.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh openssl
start_server
new_pool tank 256M
thincli volume create tank/v 16M

echo "who is connected while a volume grows may use the new room"
nbdsh -u "$(uri tank/v)" -c '
import subprocess, time
subprocess.run(["thincli", "volume", "resize", "tank/v", "32M"], check=True)
h.set_strict_mode(0)
end = time.time() + 30 # the connection hears of it a moment later
while True:
    try:
        h.pwrite(b"n" * 4096, (32 << 20) - 4096)
        break
    except nbd.Error as e:
        assert e.errno == "ENOSPC" and time.time() < end, e
    time.sleep(0.05)
h.flush()
assert h.pread(4096, (32 << 20) - 4096) == b"n" * 4096
try:
    h.pwrite(b"n" * 512, 32 << 20)
except nbd.Error as e:
    assert e.errno == "ENOSPC", e
else:
    raise SystemExit("a write beyond the new end was accepted")'

echo "sessions that nobody comes back to keep nobody out"
python3 - "$W/thinsrv.sock" <<'END'
import socket, struct, sys
table = []
for i in range(256):
    c = i
    for _ in range(8):
        c = c >> 1 ^ (0x82F63B78 if c & 1 else 0)
    table.append(c)
def crc(data):
    c = 0xFFFFFFFF
    for b in data:
        c = table[(c ^ b) & 255] ^ c >> 8
    return c ^ 0xFFFFFFFF
# Message.request = {hello = {version_min = 1, version_max = 1}}
message = bytes([0x0A, 6, 0x52, 4, 8, 1, 16, 1])
prefix = b"THIN" + struct.pack("<HHII", 1, 0, len(message), 0)
frame = prefix + struct.pack("<II", crc(prefix + message), 0) + message
for i in range(1500):
    s = socket.socket(socket.AF_UNIX)
    s.settimeout(10)
    s.connect(sys.argv[1])
    s.sendall(frame)
    s.recv(4096)
    s.close()
END
thincli server status >/dev/null
thincli volume create tank/after 1M

echo "--check-config says what a start would say"
thincli pki init --dir "$W/pki" >/dev/null
thincli pki issue server --server --dir "$W/pki" >/dev/null
thincli pki issue alice --client --dir "$W/pki" >/dev/null
tls_config() { # CERT KEY
	cat <<-END
		[server]
		state_dir = $W/state2
		[listen]
		tls = 127.0.0.1:1
		[tls]
		cert = $1
		key = $2
		ca = $W/pki/server/ca-cert.pem
	END
}
P=$W/pki
tls_config "$P/server/server-cert.pem" "$P/server/server-key.pem" >"$W/tls.conf"
thinsrv --check-config --config "$W/tls.conf"
tls_config "$P/server/server-cert.pem" "$P/alice/client-key.pem" >"$W/tls.conf"
must_fail 1 "mismatch" thinsrv --check-config --config "$W/tls.conf"
tls_config "$P/alice/client-cert.pem" "$P/alice/client-key.pem" >"$W/tls.conf"
must_fail 1 "not a server's" thinsrv --check-config --config "$W/tls.conf"
must_fail 1 "not a server's" thinsrv --config "$W/tls.conf"
tls_config "$P/server/none.pem" "$P/alice/client-key.pem" >"$W/tls.conf"
must_fail 1 "No such file" thinsrv --check-config --config "$W/tls.conf"
[ ! -e "$W/state2" ] || fail "a refused start left a state folder"

stop_server
check_pool tank
