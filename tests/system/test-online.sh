#!/usr/bin/env bash
# What a served pool tells of itself while it is written to: check, dump, delta, map,
# stats; and the way out, to the kernel.
. "$(dirname "$0")/lib.sh"
need_tools fio nbdcopy qemu-io thin_check thin_dump thin_delta python3
start_server
new_pool tank 1G
thincli volume create tank/vol 256M
thincli volume create tank/odd 1234567k
dev_id() { thincli --json volume show "$1" | field "d['volumes'][0]['dev_id']"; }

echo "map: extents that follow one another"
same "$(thincli volume map tank/vol)" "0 268435456 hole"
qemu-io -f raw -c 'write -P 1 0 128k' -c 'write -P 2 1M 64k' -c flush "$(uri tank/vol)" >/dev/null
same "$(thincli volume map tank/vol | tr '\n' ';')" \
	"0 131072 data;131072 917504 hole;1048576 65536 data;1114112 267321344 hole;"
thincli volume snapshot tank/vol snap
qemu-io -f raw -c 'write -P 3 64k 64k' -c flush "$(uri tank/vol)" >/dev/null
same "$(thincli volume map tank/vol | head -n 3 | tr '\n' ';')" "0 65536 shared;65536 65536 data;131072 917504 hole;"
same "$(thincli --json volume map tank/odd | field "d['map']")" "[{'begin': 0, 'length': 1264196608, 'kind': 'hole'}]"
same "$(thincli --json volume map tank/vol | field "[(m['begin'], m['length'], m['kind']) for m in d['map']][:3]")" "[(0, 65536, 'shared'), (65536, 65536, 'data'), (131072, 917504, 'hole')]"
must_fail 1 "no such volume" thincli volume map tank/nothing

echo "stats: what was asked since the pool was opened"
thincli volume stats tank/vol >"$W/stats"
grep_q 'tank/vol .*writes=3 written_bytes=262144 .*errors=0' "$W/stats" || { cat "$W/stats"; fail "stats"; }
same "$(thincli --json volume stats tank/vol | field "[(s['name'], s['writes'], s['written_bytes'], s['errors']) for s in d['stats']]")" "[('tank/vol', 3, 262144, 0)]"
same "$(thincli --json volume stats | field "[s['name'] for s in d['stats']]")" "['tank/odd', 'tank/snap', 'tank/vol']"
same "$(thincli volume stats | cut -d' ' -f1 | tr '\n' ' ')" "tank/odd tank/snap tank/vol "
same "$(thincli volume stats tank/odd | grep -o ' reads=[0-9]*')" " reads=0"
must_fail 1 "no such volume" thincli volume stats tank/nothing

echo "check, dump and delta of an idle pool are those of the offline tools"
sleep 2 # what the clients left behind is committed
thincli pool check tank >"$W/check.online"
for f in xml human json; do thincli pool dump tank --format $f >"$W/dump.$f"; done
thincli --json pool dump tank | python3 -m json.tool >/dev/null || fail "dump --json"
thincli --json pool check tank >"$W/check.json"
thincli volume delta tank/snap tank/vol >"$W/delta.online"
same "$(thincli --json volume delta tank/snap tank/vol | field "[(m['begin'], m['length']) for m in d['delta'] if m['kind'] == 'different']")" "[(65536, 65536)]"
left=$(dev_id tank/snap) right=$(dev_id tank/vol)
same "$(grep -c '<different begin="1" length="1"/>' "$W/delta.online")" 1
must_fail 1 "no such volume" thincli volume delta tank/snap tank/nothing
must_fail 2 "json or human" thincli pool dump tank --format yaml
cp "$W/tank.meta" "$W/copy.meta" # the same committed state
thinmeta check "$W/copy.meta" >"$W/check.offline"
cmp "$W/check.online" "$W/check.offline" || fail "the checks differ"
thinmeta check --json "$W/copy.meta" | cmp - "$W/check.json" || fail "the checks differ in JSON"
python3 -m json.tool "$W/check.json" >/dev/null || fail "check --json is no JSON"
for f in xml human_readable json; do
	thinmeta dump -f $f "$W/copy.meta" | cmp - "$W/dump.${f%_readable}" || fail "the $f dumps differ"
done
thin_delta --thin1 "$left" --thin2 "$right" "$W/copy.meta" | cmp - "$W/delta.online" || fail "thin_delta differs"
thincli pool close tank
must_fail 1 "not open" thincli pool check tank
must_fail 1 "not open" thincli volume map tank/vol
thincli pool open tank

echo "under load nothing is found wrong"
thincli volume create tank/load 512M
start_load() {
	fio --name=load --ioengine=nbd --uri="$(uri tank/load)" --rw=randwrite --bs=4k --size=512M --time_based --runtime=8 \
		--iodepth=16 --fsync=64 --output="$W/fio.out" &
	load=$!
}
start_load
n=0
while :; do
	kill -0 $load 2>/dev/null || { # on a busy machine one load is not enough
		wait $load || { cat "$W/fio.out"; fail "fio under checks"; }
		[ $n -lt 5 ] || break
		start_load
	}
	thincli pool check tank >"$W/check.out" 2>&1 || { cat "$W/check.out"; fail "check $n under load"; }
	[ "$(grep -vc = "$W/check.out")" = 0 ] || { cat "$W/check.out"; fail "check $n under load finds something"; }
	[ $((n % 4)) != 1 ] || thincli volume snapshot tank/load "s$n"
	[ $((n % 4)) != 2 ] || thincli volume delta "tank/s$((n - 1))" tank/load >"$W/delta"
	[ $((n % 4)) != 3 ] || thincli volume delete "tank/s$((n - 2))"
	thincli pool dump tank >"$W/dump"
	tail -n 1 "$W/dump" | grep_q '^</superblock>' || fail "dump $n under load is cut"
	n=$((n + 1))
done
echo "$n rounds"

echo "readers that go away, and readers that do not read"
python3 - 400000 >"$W/big.xml" <<-'END'
	import sys
	n = int(sys.argv[1])
	print(f'<superblock uuid="" time="0" transaction="1" flags="0" version="2" data_block_size="128" nr_data_blocks="{n}">')
	print(f'  <device dev_id="1" mapped_blocks="{n}" transaction="0" creation_time="0" snap_time="0">')
	for i in range(n):
	    print(f'    <single_mapping origin_block="{i}" data_block="{n - 1 - i}" time="0"/>')
	print('  </device>\n</superblock>')
END
truncate -s 64M "$W/big.meta"
truncate -s $((400000 * 65536)) "$W/big.data"
thinmeta restore -i "$W/big.xml" -o "$W/big.meta" >/dev/null
thincli pool import big --data "$W/big.data" --metadata "$W/big.meta"
for t in 0.02 0.05 0.1 0.2; do
	(timeout -s KILL $t thincli pool dump big || true) >/dev/null 2>&1
done
(thincli pool dump big || true) 2>/dev/null | head -c 100 >/dev/null
rss() { awk '/^VmRSS/ { print $2 }' "/proc/$SERVER_PID/status"; }
before=$(rss)
readers=
for i in 1 2 3 4; do
	mkfifo "$W/slow$i"
	thincli pool dump big >"$W/slow$i" 2>"$W/slow$i.err" &
	readers="$readers $!"
done
exec 11<"$W/slow1" 12<"$W/slow2" 13<"$W/slow3" 14<"$W/slow4"
# What waits in a pipe comes from a dump that is at work.
has_bytes() { python3 -c 'import fcntl, struct, sys, termios; sys.exit(struct.unpack("i", fcntl.ioctl(int(sys.argv[1]), termios.FIONREAD, bytes(4)))[0] == 0)' "$1"; }
for fd in 11 12 13 14; do wait_until 60 "dump $fd does not begin" has_bytes $fd; done
sleep 1 # what would grow has grown
must_fail 1 "at work already" thincli pool check big
grew=$(($(rss) - before))
echo "four dumps that nobody reads take $grew KiB"
[ -n "$SANITIZERS" ] || # its own memory counts
	[ $grew -lt 65536 ] || fail "dumps that nobody reads take $grew KiB"
qemu-io -f raw -c 'write -P 7 0 1M' -c flush "$(uri tank/vol)" >/dev/null # others are served
exec 12<&- 13<&- 14<&-
thinmeta dump "$W/big.meta" >"$W/big.offline" 2>/dev/null && fail "the pool is not locked"
cat <&11 >"$W/big.online"
exec 11<&-
for p in $readers; do wait "$p" 2>/dev/null || true; done
cmp "$W/big.xml" "$W/big.online" || fail "a dump read slowly differs"
thincli pool check big >/dev/null

echo "a pool that closes takes the views back"
thincli pool dump big >"$W/slow1" 2>"$W/slow1.err" &
reader=$!
exec 11<"$W/slow1"
wait_until 60 "the dump does not begin" has_bytes 11
thincli pool close big
cat <&11 >/dev/null
exec 11<&-
wait $reader && fail "a dump of a pool that was closed succeeds"
grep_q 'being closed' "$W/slow1.err" || { cat "$W/slow1.err"; fail "words of a lost view"; }
check_closed tank

echo "handover: closed, and a script for the kernel"
must_fail 1 "no such pool" thincli pool handover nothing
thincli pool set tank on_full=error
nbdsh -u "$(uri tank/vol)" -c "
import os, time
open('$W/held', 'w').close()
while not os.path.exists('$W/let-go'): time.sleep(0.05)" >/dev/null 2>&1 &
holder=$!
wait_until 30 "nobody attaches" test -e "$W/held"
must_fail 1 "open" thincli pool handover tank
same "$(thincli --json pool show tank | field "d['pools'][0]['state']")" open
thincli pool handover tank --force >"$W/handover.sh"
touch "$W/let-go"
wait $holder || true
sh -n "$W/handover.sh"
same "$(thincli --json pool show tank | field "d['pools'][0]['state']")" closed
check_pool tank
cat >"$W/dmsetup" <<-'END'
	#!/bin/sh
	echo "$*" >>calls
END
cat >"$W/losetup" <<-'END'
	#!/bin/sh
	echo "/dev/loop-${3##*/}"
END
chmod +x "$W/dmsetup" "$W/losetup"
(cd "$W" && PATH=$W:$PATH sh "$W/handover.sh")
grep_q -x "create tank --table 0 2097152 thin-pool /dev/loop-tank.meta /dev/loop-tank.data 128 0 1 error_if_no_space" "$W/calls" ||
	{ cat "$W/calls"; fail "the pool's table"; }
grep_q -x "create tank-vol --table 0 524288 thin /dev/mapper/tank $right" "$W/calls" || { cat "$W/calls"; fail "a volume's table"; }
thincli pool open tank
thincli pool check tank >/dev/null

echo "damage is told, with the ranges that it takes"
thincli pool close tank
python3 - "$W/tank.meta" <<-'END'
	import subprocess, sys
	# A leaf of the mapping tree: a node (type 2) whose values are 8 bytes.
	f = open(sys.argv[1], 'r+b')
	data = f.read()
	for b in range(len(data) // 4096 - 1, 0, -1):
	    n = data[b * 4096:(b + 1) * 4096]
	    if int.from_bytes(n[4:8], 'little') == 2 and int.from_bytes(n[8:16], 'little') == b and \
	       int.from_bytes(n[24:28], 'little') == 8 and int.from_bytes(n[16:20], 'little') > 60:
	        f.seek(b * 4096 + 3000)
	        f.write(b'not what was here')
	END
thincli pool open tank || true
if [ "$(thincli --json pool show tank | field "d['pools'][0]['state']")" = open ]; then
	thincli pool check tank >"$W/check.out" 2>"$W/check.err" && fail "damage is not told"
	grep_q 'faults\? *$' "$W/check.err" || { cat "$W/check.err"; fail "words of damage"; }
	grep_q 'checksum' "$W/check.out" || { cat "$W/check.out"; fail "the report of damage"; }
	thincli --json pool check tank >"$W/check.json" 2>"$W/check.err" && fail "damage is not told"
	python3 - "$W" <<-'END' || fail "the report of damage in JSON"
		import json, sys
		report, error = (json.load(open(f'{sys.argv[1]}/check.{f}')) for f in ('json', 'err'))
		assert not report['good'] and report['damage'] > 0, report
		assert any('checksum' in f['text'] for f in report['findings']), report
		assert error['error']['code'] == 'BAD_BLOCK', error
	END
	thincli pool close tank || true
fi
stop_server
