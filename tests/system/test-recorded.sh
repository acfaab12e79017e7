#!/usr/bin/env bash
# The real server on files that write down all that is done to them, under a mixed load; then
# every moment of it as a crash could have left it is built again, opened and compared.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh thin_check
states=1500 seconds=4 rounds=1 states_min=1
# Long runs: every prefix of what was recorded, and reorderings at half of them; a busy
# machine records less, so there may be more rounds.
[ -z "${THIN_TEST_LONG:-}" ] || { states=0 rounds=4 states_min=10000; }
for tool in "$BUILD/tests/crash/replay_run" "$BUILD/tests/crash/record_io.so"; do
	[ -e "$tool" ] || fail "$tool is missing: make tests builds it"
done
seed=${SEED:-$(date +%s)}
looked=0 round=0
while [ $((round += 1)) -le $rounds ] || [ $looked -lt $states_min ]; do
	echo "SEED=$seed"
	rm -rf "$W/state"
	META_SIZE=4M start_server
	META_SIZE=4M new_pool tank 24M --commit-interval 40ms
	stop_server
	cp --sparse=always "$W/tank.data" "$W/before.data"
	cp --sparse=always "$W/tank.meta" "$W/before.meta"
	rm -f "$W/log"
	export RECORD_DATA=$W/tank.data RECORD_META=$W/tank.meta RECORD_LOG=$W/log
	WRAPPER="env LD_PRELOAD=$(preload "$BUILD/tests/crash/record_io.so") THIN_FILE_WAY=threads" start_server
	/usr/bin/python3 "$SRC/tests/crash/record-run.py" "$W/nbd.sock" "$W/log" "$W/notes" $seconds "$seed" ||
		fail "the load has failed"
	kill_server
	unset RECORD_DATA RECORD_META RECORD_LOG
	[ -s "$W/log" ] || fail "nothing was recorded"
	STATES=$states SEED=$seed "$BUILD/tests/crash/replay_run" "$W/before.data" "$W/before.meta" "$W/log" "$W/notes" >"$W/said" ||
		fail "a state is not as promised (SEED=$seed)"
	cat "$W/said"
	looked=$((looked + $(sed -n 's/.*: \([0-9]*\) states,.*/\1/p' "$W/said")))
	rm -f "$W"/tank.* "$W"/before.*
	seed=$((seed + 1))
done
