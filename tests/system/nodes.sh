# Sourced after lib.sh, by tests of several daemons.
# shellcheck shell=bash
# Daemons beside the one of lib.sh: node NAME COMMAND...
declare -A pid_of
node_socket() { echo "unix:$W/$1/thinsrv.sock"; }
on() { # NAME thincli-words...
	local name=$1
	shift
	thincli --server "$(node_socket "$name")" "$@"
}
node_uri() { echo "nbd+unix:///$2?socket=$W/$1/nbd.sock"; } # NAME POOL/VOLUME
start_node() {
	mkdir -p "$W/$1"
	cat >"$W/$1/thinsrv.conf" <<-END
		[server]
		state_dir = $W/$1/state
		[listen]
		unix = $W/$1/thinsrv.sock
		[nbd]
		listen = unix:$W/$1/nbd.sock
	END
	${WRAPPER:-} thinsrv --config "$W/$1/thinsrv.conf" >>"$W/$1/log" 2>&1 </dev/null &
	pid_of[$1]=$!
	ALSO_KILL="$ALSO_KILL ${pid_of[$1]}"
	disown
	for _ in $(seq 1200); do
		on "$1" server status >/dev/null 2>&1 && return 0
		kill -0 "${pid_of[$1]}" 2>/dev/null || break
		sleep 0.05
	done
	tail -n 20 "$W/$1/log"
	fail "node $1 does not start"
}
kill_node() {
	kill -9 "${pid_of[$1]}"
	wait_gone "${pid_of[$1]}"
}
stop_node() {
	kill -TERM "${pid_of[$1]}"
	wait_gone "${pid_of[$1]}"
	tail -n 1 "$W/$1/log" | grep_q stopped || {
		tail -n 20 "$W/$1/log"
		fail "node $1 did not end in order"
	}
}
state_of() { thincli --server "$1" --json pool show "$2" | field "d['pools'][0]['state'] + ' ' + d['pools'][0]['mode']"; }
wait_open() { # SERVER POOL
	for _ in $(seq 600); do
		[ "$(state_of "$1" "$2" 2>/dev/null)" = "open write" ] && return 0
		sleep 0.1
	done
	fail "pool $2 is not open again: $(state_of "$1" "$2")"
}
