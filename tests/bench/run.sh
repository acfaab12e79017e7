#!/usr/bin/env bash
# make bench: thinsrv beside its peers in one run, on the same file system, page cache on
# for all, fio's nbd engine over a unix socket. Prints ratios; absolute figures only mean
# something beside each other. BENCH_TIME: seconds for each job (default 5), BENCH_ROUNDS
# (default 3, medians are shown).
set -euo pipefail
: "${BUILD:?}"
PATH=$BUILD:$PATH
seconds=${BENCH_TIME:-5} rounds=${BENCH_ROUNDS:-3} size=${BENCH_SIZE:-1G}
for t in fio nbdkit qemu-nbd qemu-img python3 nbdcopy; do command -v $t >/dev/null || { echo "bench: $t is missing" >&2; exit 1; }; done
W=$(mktemp -d "${TMPDIR:-/tmp}/thinsrv-bench.XXXXXX")
pids=()
trap 'kill "${pids[@]}" 2>/dev/null; rm -rf "$W"' EXIT

# ---- three servers over three disks -------------------------------------------------------
# Each is filled through its server by the same requests: how a file was written decides
# how large the page cache's folios are, and that what an overwrite costs.
head -c "$(numfmt --from=iec "$size")" /dev/urandom >"$W/source"
truncate -s "$size" "$W/raw"
qemu-img create -q -f qcow2 -o preallocation=metadata "$W/qcow2" "$size"
cat >"$W/conf" <<END
[server]
state_dir = $W/state
spin_us = ${BENCH_SPIN_US:-0}
[listen]
unix = $W/thinsrv.sock
[nbd]
listen = unix:$W/nbd.sock
END
thinsrv --config "$W/conf" 2>"$W/log" &
pids+=($!)
nbdkit -f -U "$W/nbdkit.sock" file "$W/raw" &
pids+=($!)
qemu-nbd -t -e 16 -k "$W/qemu.sock" -f qcow2 --cache=writeback --aio=threads "$W/qcow2" &
pids+=($!)
export THIN_SERVER=unix:$W/thinsrv.sock
for _ in $(seq 100); do
	[ -S "$W/nbd.sock" ] && [ -S "$W/nbdkit.sock" ] && [ -S "$W/qemu.sock" ] && thincli server status >/dev/null 2>&1 && break
	sleep 0.1
done
thincli pool create bench --data "$W/data:4G" --metadata "$W/meta:64M"
thincli volume create bench/vol "$size"
thin="nbd+unix:///bench/vol?socket=$W/nbd.sock"
kit="nbd+unix:///?socket=$W/nbdkit.sock"
qemu="nbd+unix:///?socket=$W/qemu.sock"
for u in "$thin" "$kit" "$qemu"; do nbdcopy --flush "$W/source" "$u"; done
for u in "$thin" "$kit" "$qemu"; do nbdcopy "$u" null:; done

rate() { # uri, fio options: operations per second
	fio --name=b --ioengine=nbd --uri="$1" --size="$size" --time_based --runtime="$seconds" --ramp_time=1 \
		--randrepeat=0 --output-format=json "${@:2}" 2>/dev/null |
		python3 -c 'import json, sys; t = sys.stdin.read(); j = json.loads(t[t.index("{"):])["jobs"][0]; print(int(j["read"]["iops"] + j["write"]["iops"]))'
}
median() { sort -n | awk '{a[NR] = $1} END {print a[int((NR + 1) / 2)]}'; }
job() { # name, goal against nbdkit, goal against qemu-nbd, fio options
	local name=$1 goal=$2 goal_qemu=$3 r a b c
	shift 3
	: >"$W/a" >"$W/b" >"$W/c"
	for r in $(seq "$rounds"); do
		rate "$thin" "$@" >>"$W/a"
		rate "$kit" "$@" >>"$W/b"
		rate "$qemu" "$@" >>"$W/c"
	done
	a=$(median <"$W/a") b=$(median <"$W/b") c=$(median <"$W/c")
	awk -v n="$name" -v a="$a" -v b="$b" -v c="$c" -v g="$goal" -v q="$goal_qemu" 'BEGIN {
		printf "%-34s %9d %9d %9d   %5.2f (goal %s)   %5.2f (goal %s)\n", n, a, b, c, a / b, g, a / c, q }'
}
printf '%-34s %9s %9s %9s   %s\n' "operations per second" thinsrv nbdkit qemu-nbd "to nbdkit file      to qemu-nbd qcow2"
job "4k random read, depth 32" 1.3 4 --rw=randread --bs=4k --iodepth=32
job "4k random read, depth 1" - - --rw=randread --bs=4k --iodepth=1
job "4k random overwrite, depth 32" 1.5 - --rw=randwrite --bs=4k --iodepth=32
job "4k write + fsync, depth 16" 1.0 - --rw=randwrite --bs=4k --iodepth=16 --fsync=1
job "1M read, depth 8" - - --rw=read --bs=1M --iodepth=8
job "1M write, depth 8" - - --rw=write --bs=1M --iodepth=8
thincli pool close bench
thin_check -q "$W/meta" || { echo "bench: thin_check finds faults" >&2; exit 1; }

# ---- the offline tools -------------------------------------------------------------------
echo
"$(dirname "$0")/bench-thinmeta.sh"
