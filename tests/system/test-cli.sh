#!/usr/bin/env bash
# thincli's face: what it prints, with and without --json, how it fails, and its
# certificates.
. "$(dirname "$0")/lib.sh"
need_tools python3 openssl

usage_error() { # WORDS COMMAND...: exit 2, one line with WORDS and the usage
	must_fail 2 "$@"
	[ "$(wc -l <"$W/err")" = 1 ] && grep -q '; usage: thincli' "$W/err" || {
		cat "$W/err" >&2
		fail "no usage hint: ${*:2}"
	}
	[ ! -s "$W/out" ] || fail "a wrong line prints to stdout: ${*:2}"
}
json_error() { # CODE COMMAND...: exit 1 and one JSON document on stderr, nothing on stdout
	local code=$1
	shift
	"$@" >"$W/out" 2>"$W/err" && fail "no failure: $*"
	[ ! -s "$W/out" ] || fail "a failure prints to stdout: $*"
	same "$(field "d['error']['code']" <"$W/err")" "$code" "code of $*"
	[ -n "$(field "d['error']['text']" <"$W/err")" ] || fail "no text: $*"
}
jq_of() { # EXPRESSION COMMAND...: over its JSON
	local expression=$1
	shift
	"$@" >"$W/json" || fail "fails: $*"
	field "$expression" <"$W/json"
}

echo "wrong lines"
usage_error 'NOUN' thincli
usage_error 'no such noun: frob' thincli frob
usage_error 'VERB' thincli pool
usage_error 'no such verb: frob' thincli pool frob
usage_error 'missing' thincli pool create
usage_error 'no such option: --frob' thincli pool list --frob
usage_error 'needs a value' thincli pool create tank --data
usage_error '--metadata is missing' thincli pool create tank --data "$W/x:1M"
usage_error 'too many' thincli pool list tank
usage_error 'bad size' thincli volume create tank/a 10Q
usage_error '512' thincli volume create tank/a 1000
usage_error 'POOL/VOLUME' thincli volume create tank 1M
usage_error 'bad name' thincli volume create tank/-a 1M
usage_error 'say --yes' thincli pool destroy tank
usage_error 'bad address' thincli --server http://x pool list
usage_error '--cert' thincli --server tls://localhost pool list
usage_error 'no such right' thincli access grant '*' all tank
same "$(thincli --json pool frob 2>&1 >/dev/null | field "d['error']['code']")" INVALID
thincli --help | grep_q '^volume:' || fail "--help"
thincli pool --help | grep_q 'release-snap' || fail "pool --help"
thincli pool create --help | grep_q -- '--auto-extend' || fail "pool create --help"
thincli --version | grep_q '^thincli [0-9]' || fail "--version"

echo "no server"
must_fail 1 "$W/thinsrv.sock" thincli pool list
json_error ENOENT thincli --json pool list
python3 -c '
import socket, sys, time
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); time.sleep(60)' "$W/deaf.sock" &
deaf=$!
wait_until 30 "nobody is deaf" test -S "$W/deaf.sock"
began=$(date +%s%N)
must_fail 1 "$W/deaf.sock" thincli --server "unix:$W/deaf.sock" --connect-timeout 300ms pool list
took=$((($(date +%s%N) - began) / 1000000))
[ $took -lt 4500 ] || fail "--connect-timeout 300ms took $took ms"
kill $deaf

echo "pools"
start_server
same "$(jq_of "d" thincli pool list --json)" "{'pools': []}"
same "$(jq_of "d" thincli --json volume list)" "{'volumes': []}"
(cd "$W" && thincli pool create tank --data tank.data:256M --metadata ./tank.meta:16M)
[ -f "$W/tank.data" ] && [ -f "$W/tank.meta" ] || fail "relative paths are the client's"
same "$(jq_of "sorted(d)" thincli --json pool show tank)" "['pools']"
same "$(field "d['pools'][0]['data_size']" <"$W/json")" 268435456
same "$(field "[k for k in 'name state mode data_size data_used metadata_size metadata_used transaction_id needs_check why what_to_do'.split() if k not in d['pools'][0]]" <"$W/json")" "[]"
same "$(field "(lambda p: p['metadata_used'] < 16 * 4096 and p['metadata_reserve'] == p['metadata_size'] // 10 // 4096 * 4096)(d['pools'][0])" <"$W/json")" True "what is kept for deletes counts as used"
same "$(field "[type(d['pools'][0][k]).__name__ for k in ('data_used', 'metadata_used', 'transaction_id', 'needs_check', 'why')]" <"$W/json")" "['int', 'int', 'int', 'bool', 'str']"
same "$(field "all(s['count'] >= sum(t['count'] for t in s['times']) and s['longest_ns'] > 0 and s['locks'] <= 10 for s in d['pools'][0]['steps']) and 'cut' in [s['name'] for s in d['pools'][0]['steps']]" <"$W/json")" True
must_fail 1 "exist" thincli pool create tank --data "$W/o.data:64M" --metadata "$W/o.meta:16M"
json_error NOT_FOUND thincli --json pool show nothing
thincli pool grow tank --data 512M
same "$(jq_of "d['pools'][0]['data_size']" thincli pool show tank --json)" 536870912
usage_error '--data or --metadata' thincli pool grow tank
thincli pool close tank
same "$(jq_of "d['pools'][0]['state']" thincli pool show tank --json)" closed
thincli pool open tank
same "$(jq_of "d['pools'][0]['state']" thincli pool show tank --json)" open
thincli pool list | grep_q '^tank .*512M' || fail "the table of pools"

echo "volumes"
thincli volume create tank/vol 100M
same "$(jq_of "[k for k in 'name dev_id size mapped exclusive parent created read_only attached holder'.split() if k not in d['volumes'][0]]" thincli volume show tank/vol --json)" "[]"
same "$(field "d['volumes'][0]['parent']" <"$W/json")" None
same "$(field "d['volumes'][0]['size']" <"$W/json")" 104857600
same "$(field "type(d['volumes'][0]['created']).__name__" <"$W/json")" int
thincli volume snapshot tank/vol snap
thincli volume snapshot tank/snap tank/snap-of-snap
same "$(jq_of "sorted(v['name'] + ' ' + str(v['parent']) for v in d['volumes'])" thincli --json volume list --tree)" \
	"['tank/snap tank/vol', 'tank/snap-of-snap tank/snap', 'tank/vol None']"
thincli volume list --tree | grep_q '─tank/snap-of-snap' || fail "no tree"
thincli volume snapshot --group day1 tank/vol tank/snap
same "$(jq_of "sorted(v['name'] for v in d['volumes'])" thincli --json volume list tank)" \
	"['tank/snap', 'tank/snap-of-snap', 'tank/snap.day1', 'tank/vol', 'tank/vol.day1']"
usage_error 'is not in the pool' thincli volume snapshot tank/vol other/x
must_fail 1 "already" thincli volume snapshot tank/vol snap
json_error EXISTS thincli --json volume snapshot tank/vol snap
must_fail 1 "" thincli volume create nothing/vol 1M
json_error NOT_FOUND thincli --json volume show tank/nothing
thincli volume resize tank/vol 200M
same "$(jq_of "d['volumes'][0]['size']" thincli volume show tank/vol --json)" 209715200
thincli volume rename tank/snap renamed
thincli volume show tank/renamed | grep_q '^parent *tank/vol' || fail "the renamed snapshot"
thincli volume delete --dry-run tank/renamed | grep_q 'would come free' || fail "--dry-run"
thincli volume show tank/renamed >/dev/null
thincli volume delete tank/renamed tank/snap-of-snap tank/vol.day1
must_fail 1 'deleted 1 of 2.*tank/nothing' thincli volume delete tank/snap.day1 tank/nothing
same "$(jq_of "[v['name'] for v in d['volumes']]" thincli --json volume list tank)" "['tank/vol']"

echo "long lists"
for n in $(seq 1 300); do echo "tank/n$n"; done >"$W/names"
while read -r name; do thincli volume create "$name" 1M; done <"$W/names"
same "$(jq_of "len(d['volumes'])" thincli --json volume list)" 301
same "$(jq_of "len(set(v['name'] for v in d['volumes']))" thincli --json volume list tank)" 301
xargs thincli volume delete <"$W/names"

echo "a full disk behind stdout"
must_fail 1 "space" sh -c 'thincli --json pool list >/dev/full'

echo "certificates"
(
	cd "$W"
	thincli pki init >/dev/null
	thincli pki issue one --client >/dev/null
	[ -f pki/one/client-key.pem ] && [ -f pki/ca/ca-key.pem ] || fail "./pki is the default"
	must_fail 1 already thincli pki init --dir pki
	mkdir elsewhere
	cd elsewhere
	must_fail 1 'no authority' thincli pki issue two --client
	thincli pki issue two --client --out ../pki/two >/dev/null
	THIN_PKI=../pki thincli pki issue three --client --out here >/dev/null
	[ -f ../pki/two/client-cert.pem ] && [ -f here/client-cert.pem ] || fail "--out"
	same "$(ls here | tr '\n' ' ')" "ca-cert.pem client-cert.pem client-key.pem "
	same "$(stat -c %a here/client-key.pem)" 600
)
usage_error '--server or --client' thincli pki issue x --dir "$W/pki"
usage_error '--days' thincli pki issue x --client --days 0 --dir "$W/pki"
thincli pki issue srv --server --host store.example --host 10.1.2.3 --days 30 --dir "$W/pki" >/dev/null
openssl x509 -in "$W/pki/srv/server-cert.pem" -noout -ext subjectAltName >"$W/san"
for host in localhost 127.0.0.1 0:0:0:0:0:0:0:1 store.example 10.1.2.3; do
	grep -q -- "$host" "$W/san" || fail "no $host in the server's certificate"
done
same "$(thincli pki show --dir "$W/pki" --json | field "sorted(c['name'] for c in d['certificates'])")" \
	"['one', 'srv', 'three', 'two']"
thincli pki revoke two --dir "$W/pki" >/dev/null
same "$(thincli pki show --dir "$W/pki" --json | field "[c['name'] for c in d['certificates'] if c['revoked']]")" "['two']"
must_fail 1 "" thincli pki revoke nobody --dir "$W/pki"

echo "over TLS, with rights"
stop_server
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
cat >"$W/thinsrv.conf" <<END
[server]
state_dir = $W/state
[listen]
unix = $W/thinsrv.sock
tls = 127.0.0.1:$port
[tls]
cert = $W/pki/srv/server-cert.pem
key = $W/pki/srv/server-key.pem
ca = $W/pki/srv/ca-cert.pem
[nbd]
listen = unix:$W/nbd.sock
END
start_server
remote() { thincli --server "tls://127.0.0.1:$port" --cert "$W/pki/$1/client-cert.pem" --key "$W/pki/$1/client-key.pem" --ca "$W/pki/$1/ca-cert.pem" "${@:2}"; }
same "$(jq_of "d['volumes']" remote one --json volume list)" "[]" "no right, no volume"
json_error NOT_FOUND remote one --json volume show tank/vol
thincli access grant cert:one write 'tank/*'
same "$(jq_of "d['rules']" thincli access list --json)" "[{'who': 'cert:one', 'right': 'write', 'glob': 'tank/*'}]"
same "$(jq_of "[v['name'] for v in d['volumes']]" remote one --json volume list)" "['tank/vol']"
json_error DENIED remote one --json volume delete tank/vol
thincli access grant cert:one manage 'tank/*'
remote one volume snapshot tank/vol remote-snap
remote one volume delete tank/remote-snap
json_error DENIED remote one --json session list
thincli access revoke cert:one manage 'tank/*'
thincli access revoke cert:one write 'tank/*'
same "$(jq_of "d['volumes']" remote one --json volume list)" "[]"
must_fail 1 "" thincli access revoke cert:one write 'tank/*'
mkdir "$W/strange"
thincli pki init --dir "$W/strange" >/dev/null
thincli pki issue one --client --dir "$W/strange" >/dev/null
must_fail 1 "cert" thincli --server "tls://127.0.0.1:$port" --cert "$W/strange/one/client-cert.pem" --key "$W/strange/one/client-key.pem" --ca "$W/pki/one/ca-cert.pem" pool list
must_fail 1 "cert" thincli --server "tls://127.0.0.1:$port" --cert "$W/pki/one/client-cert.pem" --key "$W/pki/one/client-key.pem" --ca "$W/strange/one/ca-cert.pem" pool list
must_fail 1 "No such file" thincli --server "tls://127.0.0.1:$port" --cert "$W/none.pem" --key "$W/none.pem" --ca "$W/none.pem" pool list

echo "the server"
same "$(jq_of "d['server']['pools']" thincli --json server status)" 1
thincli pool close tank
thincli pool forget tank
same "$(jq_of "d" thincli --json pool list)" "{'pools': []}"
thincli server shutdown
wait_gone "$SERVER_PID"
SERVER_PID=
