#!/usr/bin/env bash
# Pools closed by force, and the daemon ended by SIGTERM, again and again, with volumes
# attached over many connections of both protocols and I/O in flight: no crash, no leak, no
# descriptor left, the pool opens clean. Under a build with the address sanitizer that
# looks too.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh thin_check nm
sanitizer=$(nm "$(command -v thinsrv)" 2>/dev/null | grep -c __asan_init || true)
rounds=10
PATIENCE=60 # seconds for a close
# Under a sanitizer, with all clients on it, the server may be slow to take one more.
thincli() { command thincli --connect-timeout 300s "$@"; }
[ "$sanitizer" = 0 ] || rounds=50
rounds=${TEARDOWN_ROUNDS:-$rounds}
[ -z "${THIN_TEST_LONG:-}" ] || rounds=1000
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:abort_on_error=0}
start_server
new_pool tank 4G --commit-interval 50ms
for v in a b c d; do thincli volume create tank/$v 64M; done
touch "$W/run"

cat >"$W/load.py" <<'END'
# Requests of all kinds in flight on several connections, until the file of the run is
# gone; after an error all is connected anew. What an error may be is told by argv[3].
import errno, os, random, sys, time, nbd
uri, run, strict, seen = sys.argv[1], sys.argv[2], sys.argv[3] == "strict", sys.argv[4]
SIZE, DEPTH, CONNECTIONS = 64 << 20, 8, 4
fine = {errno.ESHUTDOWN, errno.EIO, errno.ENOTCONN}
rng = random.Random(os.getpid())
data = nbd.Buffer.from_bytearray(bytearray(os.urandom(256 << 10)))
small = nbd.Buffer.from_bytearray(bytearray(os.urandom(4096)))
sink = nbd.Buffer(65536) # one for all reads: the binding does not give them back soon
errors, done = {}, 0
def connect():
    h = nbd.NBD()
    h.connect_uri(uri)
    return h
def issue(h, state):
    op = rng.randrange(10)
    at = rng.randrange(SIZE // 4096 - 64) * 4096
    def ended(error):
        global done
        state["in_flight"] -= 1
        if error.value:
            errors[error.value] = errors.get(error.value, 0) + 1
            state["bad"] = True
        else:
            done += 1
        return 1
    state["in_flight"] += 1
    try:
        if op < 4:
            h.aio_pwrite(small, at, ended)
        elif op < 6:
            h.aio_pwrite(data, at, ended, nbd.CMD_FLAG_FUA if op == 5 else 0)
        elif op == 6:
            h.aio_pread(sink, at, ended)
        elif op == 7:
            h.aio_flush(ended)
        elif op == 8:
            h.aio_trim(65536 * 4, at & ~65535, ended)
        else:
            h.aio_zero(65536, at, ended)
    except nbd.Error:
        state["in_flight"] -= 1
        state["bad"] = True
while os.path.exists(run):
    handles = []
    try:
        for _ in range(CONNECTIONS):
            handles.append((connect(), {"in_flight": 0, "bad": False}))
    except nbd.Error:
        time.sleep(0.02)
        continue
    while os.path.exists(run) and not any(s["bad"] for _, s in handles):
        for h, s in handles:
            while s["in_flight"] < DEPTH and not s["bad"]:
                issue(h, s)
            try:
                h.poll(1)
            except nbd.Error:
                s["bad"] = True
    for h, s in handles: # each request is answered, or its connection is gone
        end = time.time() + 600 # a machine may stand still for long
        while s["in_flight"] > 0:
            if time.time() > end:
                sys.exit("%d requests were never answered" % s["in_flight"])
            try:
                h.poll(100)
            except nbd.Error:
                break
    for h, s in handles:
        try:
            h.shutdown()
        except nbd.Error:
            pass
    wrong = [e for e in errors if e not in fine]
    if strict and wrong:
        sys.exit("errors that do not say that it is over: %s" % [errno.errorcode.get(e, e) for e in wrong])
open(seen, "w").write("%d %d\n" % (done, sum(errors.values())))
END
loads=
for v in a b; do
	for n in 1 2; do
		nbdsh -c "import sys; sys.argv = ['x', '$(uri tank/$v)', '$W/run', 'strict', '$W/seen.$v$n']; exec(open('$W/load.py').read())" &
		loads="$loads $!"
	done
done
bridges=
start_bridge() { # VOLUME: over our own protocol
	while [ -e "$W/run" ]; do
		thinnbd --server "$THIN_SERVER" --listen "unix:$W/bridge.$1" "tank/$1" >>"$W/thinnbd.log" 2>&1 || sleep 0.1
	done &
	bridges="$bridges $!"
	nbdsh -c "import sys; sys.argv = ['x', 'nbd+unix:///tank/$1?socket=$W/bridge.$1', '$W/run', 'any', '$W/seen.$1']; exec(open('$W/load.py').read())" &
	loads="$loads $!"
}
start_bridge c
start_bridge d

pool_descriptors() { { find "/proc/$SERVER_PID/fd" -lname "$W/tank.*" 2>/dev/null || true; } | wc -l; }
# One that is closed meanwhile is none.
descriptors() { { find "/proc/$SERVER_PID/fd" -type l 2>/dev/null || true; } | wc -l; }
check_closed_by_force() {
	same "$(pool_descriptors)" 0 "descriptors of the closed pool"
	thin_check "$W/tank.meta" >"$W/check.out" 2>&1 || {
		cat "$W/check.out"
		fail "round $round: thin_check"
	}
	thinmeta check -q "$W/tank.meta" || fail "round $round: thinmeta check"
}
is_closed() { [ "$(thincli --json pool show tank | field "d['pools'][0]['state']")" = closed ]; }
# The first end meets requests of every client.
all_connected() {
	[ "$(thincli --json session list | field "len([s for s in d['sessions'] if s['protocol'] == 'nbd' and s['volumes']])")" -ge 16 ]
}
wait_until 60 "not all clients have connected" all_connected
most=0
for round in $(seq "$rounds"); do
	sleep 0.$((RANDOM % 4))$((RANDOM % 10))
	# Something of everything is under way.
	thincli volume snapshot tank/a "s$round" >/dev/null 2>&1 &
	thincli volume delete "tank/s$((round - 1))" >/dev/null 2>&1 &
	thincli volume resize tank/d $((64 + round % 2 * 64))M >/dev/null 2>&1 &
	# In the second half one daemon lives through all: what each close leaves would add up.
	if [ $((round % 10)) = 5 ] && [ "$round" -le $((rounds / 2)) ]; then
		stop_server
		check_pool tank
		start_server
	else
		timeout "$PATIENCE" "$BUILD/thincli" pool close tank --force || wait_until 30 "round $round: close --force" is_closed
		check_closed_by_force
		thincli pool open tank
	fi
	same "$(thincli --json pool show tank | field "'%s %s' % (d['pools'][0]['mode'], d['pools'][0]['needs_check'])")" "write False" "round $round: the pool"
	for n in $(seq $((round > 5 ? round - 5 : 1)) $((round - 2))); do thincli volume delete "tank/s$n" >/dev/null 2>&1 || true; done
	n=$(descriptors)
	[ "$n" -le $most ] || most=$n
	! grep -q 'Sanitizer' "$W/thinsrv.log" || fail "round $round: the sanitizer has found something"
	[ $((round % 100)) != 0 ] || echo "$round rounds"
	for p in $loads; do kill -0 "$p" 2>/dev/null || { wait "$p" || true; fail "round $round: a client gave up"; }; done
done
rm "$W/run"
for p in $loads; do wait "$p" || fail "a client"; done
for p in $bridges; do
	pkill -P "$p" -x thinnbd || true
	wait "$p" || true
done
for f in "$W"/seen.*; do
	read -r good bad <"$f"
	echo "${f##*/}: $good requests went well, $bad did not"
	[ "$good" -gt 0 ] || fail "a client that did nothing"
done
for v in a1 a2 b1 b2; do
	read -r _ bad <"$W/seen.$v"
	[ "$bad" -ge 1 ] || fail "no forced close met a request of client $v"
done
echo "at most $most descriptors in $rounds rounds"
# Nobody is connected any more: what is left is what a fresh daemon has that has closed a
# pool by force once.
quiet_descriptors() {
	local _
	thincli pool close tank --force
	for _ in $(seq 600); do
		left=$(descriptors)
		[ "$(thincli --json session list | field "len(d['sessions'])")" -le 1 ] && [ "$(pool_descriptors)" = 0 ] && break
		sleep 0.1
	done
}
quiet_descriptors
after=$left
stop_server
! grep -q 'Sanitizer' "$W/thinsrv.log" || fail "the sanitizer has found something"
check_pool tank
start_server
thincli pool open tank
quiet_descriptors
[ "$after" -le $((left + 3)) ] || fail "$after descriptors are left, a fresh daemon has $left"
echo "$after descriptors at the end, $left in a fresh daemon"
thincli pool open tank
stop_server
[ "$sanitizer" = 0 ] || echo "under the address sanitizer"
