#!/usr/bin/env bash
# Real NBD clients on the export in thinsrv; after each the closed pool is sound.
. "$(dirname "$0")/lib.sh"
need_tools nbdinfo nbdcopy qemu-img qemu-io fio thin_check thin_dump
start_server
new_pool tank 2G
thincli volume create tank/vol 1G

# A client that attaches and then has nothing to ask for longer than a handshake may take.
new_pool idle 64M
thincli volume create idle/vol 8M
nbdsh -u "$(uri idle/vol)" -c 'import time; time.sleep(17); h.pread(512, 0)' >"$W/idle.out" 2>&1 &
idle=$!

echo "nbdinfo: sizes, flags, list"
same "$(nbdinfo --size "$(uri tank/vol)")" 1073741824
nbdinfo --json "$(uri tank/vol)" >"$W/info"
for flag in can_multi_conn can_flush can_fua can_trim can_zero can_fast_zero can_cache can_df; do
	field "d['exports'][0]['$flag']" <"$W/info" | grep_q True || fail "$flag is not offered"
done
field "d['structured']" <"$W/info" | grep_q True || fail "no structured replies"
nbdinfo --list "nbd+unix:///?socket=$W/nbd.sock" | grep_q 'export="tank/vol"' || fail "LIST misses tank/vol"
nbdinfo --map "$(uri tank/vol)" | grep_q 'hole,zero' || fail "a fresh volume is one hole"

echo "nbdcopy and qemu-img: what goes in comes out"
head -c 50000000 /dev/urandom >"$W/in"
truncate -s 300M "$W/in"
head -c 3000000 /dev/urandom | dd of="$W/in" bs=1M seek=200 conv=notrunc status=none
truncate -s 1G "$W/in"
nbdcopy --flush "$W/in" "$(uri tank/vol)"
qemu-img compare -f raw -F raw "$W/in" "$(uri tank/vol)"
nbdcopy "$(uri tank/vol)" "$W/out.img"
cmp "$W/in" "$W/out.img"
mapped=$(thincli --json volume show tank/vol | field "d['volumes'][0]['mapped']")
[ "$mapped" -lt 120000000 ] || fail "zeros took space: $mapped bytes are mapped"
check_closed tank
qemu-img compare -f raw -F raw "$W/in" "$(uri tank/vol)"

echo "qemu-io: part sectors, zeroes, discard, flush"
thincli volume create tank/io 64M
qemu-io -f raw -c 'write -P 1 0 1M' -c 'write -P 2 100 411' -c 'write -P 3 65000 2000' \
	-c 'read -P 1 0 100' -c 'read -P 2 100 411' -c 'read -P 1 511 64489' -c 'read -P 3 65000 2000' \
	-c 'read -P 1 67000 1k' -c 'flush' "$(uri tank/io)" >"$W/io.out" 2>&1 || { cat "$W/io.out"; fail qemu-io; }
grep -q 'verification failed' "$W/io.out" && { cat "$W/io.out"; fail "qemu-io reads other bytes"; }
qemu-io -f raw -c 'write -z 128k 128k' -c 'read -P 0 128k 128k' -c 'discard 256k 256k' -c 'read -P 0 256k 256k' \
	-c 'write -z 70000 5000' -c 'read -P 0 70000 5000' -c 'read -P 1 75000 5000' -c 'write -z -u 0 1M' -c 'read -P 0 0 1M' \
	"$(uri tank/io)" >"$W/io.out" 2>&1 || { cat "$W/io.out"; fail qemu-io; }
grep -q 'verification failed' "$W/io.out" && { cat "$W/io.out"; fail "qemu-io reads other bytes"; }
same "$(thincli --json volume show tank/io | field "d['volumes'][0]['mapped']")" 0 "blocks of zeroes stay mapped"

echo "fio with verify"
thincli volume create tank/fio 256M
fio --name=v --ioengine=nbd --uri="$(uri tank/fio)" --rw=randwrite --bsrange=512-128k --bs_unaligned=0 --blockalign=512 --size=256M --io_size=192M \
	--iodepth=32 --verify=crc32c --verify_state_save=0 --verify_fatal=1 --do_verify=1 --fsync=64 --randseed=7 --output="$W/fio.out" ||
	{ cat "$W/fio.out"; fail fio; }
check_closed tank

echo "snapshot under load keeps its point in time"
nbdcopy --flush "$W/in" "$(uri tank/vol)"
fio --name=load --ioengine=nbd --uri="$(uri tank/fio)" --rw=randwrite --bs=4k --size=256M --time_based --runtime=4 --iodepth=16 \
	--output="$W/fio.out" &
load=$!
sleep 1
thincli volume snapshot tank/fio fio-snap
nbdcopy "$(uri tank/fio-snap)" - | sha256sum >"$W/sum1"
sleep 1
nbdcopy "$(uri tank/fio-snap)" - | sha256sum >"$W/sum2"
wait $load || { cat "$W/fio.out"; fail "fio under a snapshot"; }
nbdcopy "$(uri tank/fio-snap)" - | sha256sum >"$W/sum3"
cmp "$W/sum1" "$W/sum2" && cmp "$W/sum1" "$W/sum3" || fail "the snapshot changed"
check_closed tank
cmp <(nbdcopy "$(uri tank/fio-snap)" - | sha256sum) "$W/sum1" || fail "the snapshot changed over a restart of the pool"

echo "an idle client is left in peace"
wait $idle || { cat "$W/idle.out"; fail "an idle client was disconnected"; }

echo "deleting gives all space back"
thincli volume delete tank/fio tank/fio-snap tank/io tank/vol
for _ in $(seq 600); do
	[ "$(thincli --json volume list tank | field "len(d['volumes'])")" = 0 ] &&
		used=$(thincli --json pool show tank | field "d['pools'][0]['data_used']") && [ "$used" -le 8388608 ] && break
	sleep 0.1
done
[ "$used" -le 8388608 ] || fail "$used bytes are still used"
check_closed tank
stop_server
check_pool tank
