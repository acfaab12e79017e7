#!/usr/bin/env bash
# Copies of the metadata and kept superblocks: made at intervals, at open and before what
# is risky, rotated, and good for getting a pool back.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh thin_check
write_config </dev/null
sed -i 's/^\[server\]$/[server]\nbackup_interval = 1s\nbackup_keep = 3/' "$W/thinsrv.conf"
start_server
new_pool tank 256M --commit-interval 100ms
folder=$W/state/backups/tank
thincli volume create tank/a 64M
thincli volume create tank/b 64M
fill() { # VOLUME BYTE
	nbdsh -u "$(uri "tank/$1")" -c "
h.set_strict_mode(0)
for i in range(0, 64 << 20, 1 << 20): h.pwrite(bytes([$2]) * (1 << 20), i)
h.flush()"
}
holds() { # VOLUME BYTE
	nbdsh -u "$(uri "tank/$1")" -c "
for i in range(0, 64 << 20, 1 << 20): assert h.pread(1 << 20, i) == bytes([$2]) * (1 << 20), i" ||
		fail "volume $1 does not hold $2"
}
wait_for() { # COUNT PATTERN
	local _
	for _ in $(seq 600); do
		[ "$(ls "$folder"/$2 2>/dev/null | wc -l)" -ge "$1" ] && return 0
		sleep 0.1
	done
	ls -la "$folder" >&2
	fail "no $1 files $2"
}
fill a 17
fill b 34

# Rotation: of each kind the newest three.
for i in 1 2 3 4 5 6; do
	thincli volume create "tank/x$i" 1M
	sleep 1.1
done
wait_for 3 '*-regular.pack'
same "$(ls "$folder"/*-regular.pack | wc -l)" 3 "copies kept"
wait_for 1 '*-create.pack'
# What has not changed is not copied again: there comes a time without a new copy.
newest=
quiet() {
	newest=$(ls "$folder"/*-regular.pack | tail -n 1)
	sleep 2.5
	[ "$(ls "$folder"/*-regular.pack | tail -n 1)" = "$newest" ]
}
wait_until 30 "an idle pool is copied again and again" quiet

# Before it grows, when it opens, before it is handed over.
thincli pool grow tank --data 300M
wait_for 1 '*-grow.pack'
thincli pool close tank
thincli pool open tank
wait_for 1 '*-open.pack'
thincli pool handover tank >/dev/null
wait_for 1 '*-handover.pack'
[ "$(stat -c %s "$folder/superblocks")" -gt 4096 ] || fail "no superblocks were kept"
cp "$W/tank.meta" "$W/good.meta"

# All copies are sound, whatever was written meanwhile.
for p in "$folder"/*.pack; do
	rm -f "$W/u.meta"
	thinmeta unpack -i "$p" -o "$W/u.meta"
	thin_check -q "$W/u.meta" || fail "thin_check of $p"
	thinmeta check -q "$W/u.meta" || fail "check of $p"
done

# The metadata is gone: the newest copy brings it back.
dd if=/dev/urandom of="$W/tank.meta" bs=1M count=16 conv=notrunc status=none
must_fail 1 . thincli pool open tank
thinmeta unpack -i "$(ls "$folder"/*-handover.pack | tail -n 1)" -o "$W/tank.meta"
thincli pool open tank
holds a 17
holds b 34
check_closed tank
fill b 51

# Only the superblock is gone: the kept one is as new as the last commit.
thincli volume snapshot tank/b last
thincli pool close tank
thinmeta dump "$W/tank.meta" >"$W/dump.before"
dd if=/dev/zero of="$W/tank.meta" bs=4096 count=1 conv=notrunc status=none
cp "$W/tank.meta" "$W/broken.meta"
truncate -s 16M "$W/new.meta"
must_fail 1 "superblock is lost" thinmeta repair -i "$W/tank.meta" -o "$W/new.meta"
thinmeta repair --dry-run --superblocks "$folder/superblocks" -i "$W/tank.meta" >"$W/plan"
grep -q "one that was kept" "$W/plan" || fail "the plan does not tell of the kept superblock"
thinmeta repair --superblocks "$folder/superblocks" -i "$W/tank.meta" -o "$W/new.meta" >/dev/null
cmp "$W/tank.meta" "$W/broken.meta" || fail "repair has written to its input"
thinmeta dump "$W/new.meta" >"$W/dump.after"
cmp "$W/dump.before" "$W/dump.after" || fail "the repaired pool is another one"
cp "$W/new.meta" "$W/tank.meta"
thincli pool open tank
holds a 17
holds b 51
holds last 51
check_closed tank

# A killed server has kept the superblock of a moment ago as well.
thincli volume create tank/late 1M
superblock_is_kept() {
	python3 -c 'import sys; sys.exit(open(sys.argv[1], "rb").read(4096) not in open(sys.argv[2], "rb").read())' \
		"$W/tank.meta" "$folder/superblocks"
}
wait_until 30 "the last superblock is not kept" superblock_is_kept
kill_server
dd if=/dev/zero of="$W/tank.meta" bs=4096 count=1 conv=notrunc status=none
truncate -s 0 "$W/new.meta"
truncate -s 16M "$W/new.meta"
thinmeta repair --superblocks "$folder/superblocks" -i "$W/tank.meta" -o "$W/new.meta" >/dev/null
cp "$W/new.meta" "$W/tank.meta"
start_server
thincli volume show tank/late >/dev/null || fail "the last change is not in the kept superblock"
holds a 17
check_closed tank

# A copy that cannot be made is told, and stops nothing. (A closed pool makes none, so
# nothing is written into the folder while it goes.)
thincli pool close tank
rm -rf "$folder"
: >"$folder"
thincli pool open tank
thincli volume create tank/more 1M
told() { thincli server events | grep_q backup-failed; }
wait_until 30 "no event tells of a copy that failed" told
thincli pool grow tank --data 310M
stop_server
