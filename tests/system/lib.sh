# Sourced by the system tests: a server of their own in a folder of their own, which is
# gone at the end whatever happens. A missing tool is a failure.
set -euo pipefail
: "${BUILD:?BUILD names the folder with the programs}"
PATH=$BUILD:$PATH:/usr/sbin:/sbin
SRC=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# A program linked with a sanitized library wants its runtime too.
SANITIZERS=$(sed -n 's/^SANITIZERS := *//p' "$BUILD/../config.mk" 2>/dev/null || true)
sanitizer_flags=(${SANITIZERS:+-fsanitize="$SANITIZERS"})
# What LD_PRELOAD has to say to load a library: a sanitizer's runtime comes first.
preload() {
	ldd "$BUILD/thinsrv" | awk '$1 ~ /^lib[at]san\./ { printf "%s:", $3 }'
	echo "$1"
}
W=$(mktemp -d "${TMPDIR:-/tmp}/thinsrv-test.XXXXXX")
SERVER_PID=
cd "$W" # what tools leave behind stays here
W=$(pwd -P)
export THIN_SERVER=unix:$W/thinsrv.sock

ALSO_KILL= # further processes that end with the test
# The essence of a failure comes last and is short: CI keeps the end of what it is told. A trap
# that does more passes on the exit code that it found.
finish() {
	local rc=${1:-$?} p words
	trap - EXIT ERR
	for p in $ALSO_KILL $SERVER_PID; do
		# Its number may be another's by now.
		[ "$(readlink "/proc/$p/cwd")" != "$W" ] || kill -9 "$p" 2>/dev/null || true
	done
	jobs -p | xargs -r kill -9 2>/dev/null || true
	if [ $rc != 0 ]; then
		[ ! -s "$W/thinsrv.log" ] || {
			echo "--- the end of thinsrv.log"
			tail -n 8 "$W/thinsrv.log" | cut -c1-300
		}
		words=$(tail -n 1 "$W/failed" 2>/dev/null || tail -n 1 "$W/failed.line" 2>/dev/null) || words="no words"
		echo "FAILED: $words (${0##*/}, exit $rc)"
	fi
	# What a process that was killed a moment ago still makes goes with the second try.
	rm -rf "$W" 2>/dev/null || { sleep 1 && rm -rf "$W"; } || true
	exit $rc
}
trap finish EXIT
# A command that fails without a word of its own is named by its line.
trap 'echo "line $LINENO: exit $?: $BASH_COMMAND" | head -n 1 >>"$W/failed.line"' ERR
set -E

fail() {
	echo "FAILED: $*" >&2
	echo "$*" | tail -n 1 >>"$W/failed"
	exit 1
}
# wait_until SECONDS WORDS COMMAND...: until it succeeds; only for what comes about by
# itself, never for an expectation that has failed.
wait_until() {
	local end=$((SECONDS + $1)) words=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $end ] || fail "$words"
		sleep 0.05
	done
}
need_tools() {
	local t
	for t; do command -v "$t" >/dev/null || fail "$t is not installed"; done
}
# Debian's python has the binding; another one may stand first in PATH.
nbdsh() { PATH=/usr/bin:$PATH command nbdsh "$@"; }
same() { [ "$1" = "$2" ] || fail "${3:-differs}: '$1' is not '$2'"; }

# grep -q that reads to the end: what writes into it must not meet a broken pipe.
grep_q() { grep "$@" >/dev/null; }

# must_fail CODE WORDS COMMAND...: exits with CODE (any: 1 or 2) and one line on stderr
# that has WORDS.
must_fail() {
	local code=$1 words=$2 rc=0
	shift 2
	"$@" >"$W/out" 2>"$W/err" || rc=$?
	[ "$rc" = "$code" ] || { [ "$code" = any ] && { [ $rc = 1 ] || [ $rc = 2 ]; }; } || {
		cat "$W/out" "$W/err" >&2
		fail "exit $rc, not $code: $*"
	}
	grep -qi -- "$words" "$W/err" || {
		cat "$W/err" >&2
		fail "no word of '$words': $*"
	}
	[ "$code" = 2 ] || [ "$(wc -l <"$W/err")" = 1 ] || {
		cat "$W/err" >&2
		fail "more than one line: $*"
	}
}

write_config() { # further lines are appended from stdin
	cat >"$W/thinsrv.conf" <<-END
		[server]
		state_dir = $W/state
		[listen]
		unix = $W/thinsrv.sock
	END
	cat >>"$W/thinsrv.conf"
	grep -q '^\[nbd\]' "$W/thinsrv.conf" || printf '[nbd]\nlisten = unix:%s/nbd.sock\n' "$W" >>"$W/thinsrv.conf"
}
start_server() {
	[ -f "$W/thinsrv.conf" ] || write_config </dev/null
	rm -f "$W/ready"
	${WRAPPER:-} thinsrv --config "$W/thinsrv.conf" >>"$W/thinsrv.log" 2>&1 </dev/null &
	SERVER_PID=$!
	disown
	local _
	for _ in $(seq 1200); do
		[ -S "$W/thinsrv.sock" ] && thincli server status >/dev/null 2>&1 && return 0
		kill -0 "$SERVER_PID" 2>/dev/null || fail "the server did not start"
		sleep 0.05
	done
	fail "the server does not answer"
}
wait_gone() {
	local _
	for _ in $(seq 1800); do
		kill -0 "$1" 2>/dev/null || return 0
		sleep 0.05
	done
	fail "process $1 does not end"
}
stop_server() {
	kill -TERM "$SERVER_PID"
	wait_gone "$SERVER_PID"
	SERVER_PID=
	tail -n 1 "$W/thinsrv.log" | grep_q stopped || fail "the server did not end in order"
}
kill_server() {
	kill -9 "$SERVER_PID"
	wait_gone "$SERVER_PID"
	SERVER_PID=
}
new_pool() { # NAME DATASIZE [options]
	thincli pool create "$1" --data "$W/$1.data:$2" --metadata "$W/$1.meta:${META_SIZE:-16M}" "${@:3}"
}
uri() { echo "nbd+unix:///$1?socket=$W/nbd.sock"; }
field() { # JSON-EXPRESSION over the document d, from stdin
	python3 -c 'import json, sys; d = json.load(sys.stdin); print(eval(sys.argv[1]))' "$1"
}

# On a closed pool: the official tools and ours agree and find nothing.
check_pool() {
	thin_check "$W/$1.meta" >"$W/check.out" 2>&1 || {
		cat "$W/check.out"
		fail "thin_check finds faults in $1"
	}
	thinmeta check "$W/$1.meta" >"$W/check.out" 2>&1 || {
		cat "$W/check.out"
		fail "thinmeta check finds faults in $1"
	}
	thin_dump "$W/$1.meta" >"$W/dump.theirs"
	thinmeta dump "$W/$1.meta" >"$W/dump.ours"
	cmp "$W/dump.theirs" "$W/dump.ours" || fail "the dumps of $1 differ"
}
check_closed() {
	thincli pool close "$1"
	check_pool "$1"
	thincli pool open "$1"
}
