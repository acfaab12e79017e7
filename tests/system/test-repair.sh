#!/usr/bin/env bash
# Damage of all kinds, repaired by thinmeta and by thin_repair: tests/system/repair-corpus.py
# says what must hold. The same cases each time; THIN_TEST_LONG=1 takes many more, from a
# seed that is printed, or SEED.
. "$(dirname "$0")/lib.sh"
need_tools thin_check thin_dump thin_repair xz python3
if [ -n "${THIN_TEST_LONG:-}" ]; then
	cases=${CASES:-600} seed=${SEED:-$(date +%s)}
else
	cases=${CASES:-64} seed=${SEED:-1}
fi

# A pool with snapshots, and the same pool before the last of them.
python3 - >"$W/p.xml" <<'END'
import random
rng = random.Random(5)
print('<superblock uuid="" time="0" transaction="1" flags="0" version="2" data_block_size="128" nr_data_blocks="40000">')
print('<device dev_id="0" mapped_blocks="8000" transaction="0" creation_time="0" snap_time="0">')
virt = data = nr = 0
while nr < 8000:
    n = min(8000 - nr, rng.choice((1, 1, 2, 3, 6)))
    if n == 1:
        print(f'<single_mapping origin_block="{virt}" data_block="{data}" time="0"/>')
    else:
        print(f'<range_mapping origin_begin="{virt}" data_begin="{data}" length="{n}" time="0"/>')
    virt += n + (rng.random() < 0.3)
    data += n + 1
    nr += n
print('</device></superblock>')
END
truncate -s 8M "$W/made"
thinmeta restore -i "$W/p.xml" -o "$W/made"
"$BUILD/tests/bench/make_image" "$W/made" 4 10 4
cp "$W/made" "$W/older"
"$BUILD/tests/bench/make_image" "$W/made" 2 60 4 7 5

pools=("$W/made:$W/older")
for p in few-thins snapshots many-thins held-root discards crash tools-restored big-tree grown-metadata; do
	xz -dc "$SRC/tests/data/pools/$p/meta.img.xz" >"$W/$p"
	[ $p = big-tree ] && [ -z "${THIN_TEST_LONG:-}" ] || pools+=("$W/$p")
done
corpus() { python3 "$(dirname "$0")/repair-corpus.py" "$BUILD/thinmeta" "$@"; }
[ -z "${VERBOSE:-}" ] || export VERBOSE
corpus "$cases" "$seed" "${pools[@]}" || fail "repair; SEED=$seed repeats it"

# Where it once saved less: one bitmap of several is lost, with the way to the devices; all
# of a superblock, both roots and much below them is lost.
for known in "1079 grown-metadata" "1179 grown-metadata" "1269 grown-metadata" "1278 big-tree"; do
	corpus 1 "${known% *}" "$W/${known#* }" >"$W/out" || fail "$(cat "$W/out")"
done

# A lost superblock: the newest state is taken, also where an older one held more.
start_server
new_pool tank 256M --commit-interval 100ms
thincli volume create tank/v 64M
nbdsh -u "$(uri tank/v)" -c 'h.pwrite(b"o" * (30 << 20), 0); h.flush()'
thincli volume snapshot tank/v s
nbdsh -u "$(uri tank/v)" -c 'h.pwrite(b"n" * 65536 * 3, 65536 * 10); h.trim(65536 * 4, 65536 * 100); h.flush()'
thincli pool close tank
thinmeta dump "$W/tank.meta" | tail -n +2 >"$W/right"
dd if=/dev/zero of="$W/tank.meta" bs=4096 count=1 conv=notrunc status=none
truncate -s "${META_SIZE:-16M}" "$W/mended"
thinmeta repair -i "$W/tank.meta" -o "$W/mended" --transaction-id 0 --data-block-size 128 --nr-data-blocks 4096 >/dev/null
thinmeta dump "$W/mended" | tail -n +2 | cmp - "$W/right" || fail "an older state was taken"

# The same after a history of writes, trims, snapshots and deletes: no size and no time tells
# which state is the last, the order in which blocks were handed out does.
new_pool past 256M --commit-interval 100ms
thincli volume create past/v 128M
python3 - >"$W/history" <<'END'
import random
rng = random.Random(11)
for i in range(60):
    at, n = rng.randrange(1500), rng.randrange(1, 120)
    if rng.random() < 0.5:
        print(f'h.pwrite(b"x" * 65536 * {n}, 65536 * {at})')
    else:
        print(f'h.trim(65536 * {n * 3}, 65536 * {at})')
    print('h.flush()')
END
split -n l/3 "$W/history" "$W/history."
for part in aa ab ac; do
	nbdsh -u "$(uri past/v)" -c "$(cat "$W/history.$part")"
	thincli volume snapshot past/v "s-$part"
done
thincli volume delete past/s-ac
thincli volume delete past/s-aa
nbdsh -u "$(uri past/v)" -c 'h.trim(65536 * 300, 0); h.flush()'
thincli pool close past
thinmeta dump "$W/past.meta" | tail -n +2 >"$W/right"
dd if=/dev/zero of="$W/past.meta" bs=4096 count=1 conv=notrunc status=none
truncate -s "${META_SIZE:-16M}" "$W/mended.past"
thinmeta repair -i "$W/past.meta" -o "$W/mended.past" --transaction-id 0 --data-block-size 128 --nr-data-blocks 4096 >/dev/null
thinmeta dump "$W/mended.past" | tail -n +2 | cmp - "$W/right" || fail "a state of the past was taken"
