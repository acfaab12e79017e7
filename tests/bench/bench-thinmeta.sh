#!/usr/bin/env bash
# thinmeta beside thin-provisioning-tools (thin_* in PATH) in one run, on the same images,
# page cache warm (theirs read with O_DIRECT, warm or not): medians of elapsed time of
# whole processes, their ratios, and the ratios that are the goal. Outputs are compared.
# At the end check from the disk: the image's pages are dropped from the cache before each
# run, and the time is held against what the disk needs for the used blocks alone. And the
# most memory that each verb took.
#   BENCH_MAPPINGS  mappings of the large image (default 10000000)
#   BENCH_ROUNDS    default 3
#   BENCH_ONLY      a regular expression: only lines whose name matches
#   BENCH_DIR       where the images are made, and kept for the next run (default: nowhere)
set -euo pipefail
: "${BUILD:?}"
mappings=${BENCH_MAPPINGS:-10000000} rounds=${BENCH_ROUNDS:-3} only=${BENCH_ONLY:-.}
meta=$BUILD/thinmeta
for t in thin_check thin_dump thin_restore thin_ls thin_delta thin_rmap python3 fincore; do
	command -v $t >/dev/null || { echo "bench-thinmeta: $t is missing" >&2; exit 1; }
done
if [ -n "${BENCH_DIR:-}" ]; then
	W=$BENCH_DIR
	mkdir -p "$W"
else
	W=$(mktemp -d "${TMPDIR:-/tmp}/thinmeta-bench.XXXXXX")
	trap 'rm -rf "$W"' EXIT
fi

# ---- images -----------------------------------------------------------------------------
# Pools as XML: devices of short runs with gaps, data blocks handed out in rising order
# with a jump after each run.
xml() { # devices, mappings of each, further data blocks
	python3 - "$@" <<-'PY'
		import random, sys
		devices, each, more = map(int, sys.argv[1:])
		rng = random.Random(1)
		print(f'<superblock uuid="" time="0" transaction="1" flags="0" version="2" data_block_size="128" nr_data_blocks="{devices * each * 3 // 2 + more + 64}">')
		data = 0
		for d in range(devices):
		    lines = [f'  <device dev_id="{d}" mapped_blocks="{each}" transaction="0" creation_time="0" snap_time="0">']
		    virt, left = 0, each
		    while left:
		        n = min(left, rng.choice((1, 2, 3, 6)))
		        if n == 1:
		            lines.append(f'    <single_mapping origin_block="{virt}" data_block="{data}" time="0"/>')
		        else:
		            lines.append(f'    <range_mapping origin_begin="{virt}" data_begin="{data}" length="{n}" time="0"/>')
		        virt += n + (rng.random() < 0.25)
		        data += n + 1
		        left -= n
		    lines.append('  </device>')
		    print('\n'.join(lines))
		print('</superblock>')
	PY
}
blank() { # file, mappings
	rm -f "$1"
	truncate -s "$(($2 / 10000 + 64))M" "$1"
}
image() { # name, devices, mappings of each, further data blocks, mappings written in all
	xml "$2" "$3" "$4" >"$W/$1.xml"
	blank "$W/$1" "$5"
	"$meta" restore -i "$W/$1.xml" -o "$W/$1" >/dev/null
}
drop() { # file: none of it is in the page cache afterwards
	dd of="$1" oflag=nocache conv=notrunc,fdatasync count=0 status=none
	[ "$(fincore -n -o PAGES "$1" | tr -d ' ')" = 0 ] || { echo "bench-thinmeta: $1 stays in the page cache" >&2; exit 1; }
}
shared=$((mappings / 20)) near=$((mappings / 2))
if [ ! -e "$W/made-$mappings" ]; then
	image big 10 $((mappings / 10)) 0 "$mappings"
	image shared 1 $shared $((64 * shared / 10)) $((8 * shared))
	"$BUILD/tests/bench/make_image" "$W/shared" 64 $((shared / 2500 + 1)) 8
	image near 1 $near $((near / 100)) $near
	"$BUILD/tests/bench/make_image" "$W/near" 1 $((near / 250000 + 1)) 250
	touch "$W/made-$mappings"
	sync
fi
for i in big shared near; do
	thin_check -q "$W/$i" || { echo "bench-thinmeta: thin_check finds faults in $i" >&2; exit 1; }
	drop "$W/$i" # so that it comes into the cache in one and the same way
	cat "$W/$i" >/dev/null
done

# ---- measuring --------------------------------------------------------------------------
lap() { # command: microseconds
	local begin=${EPOCHREALTIME/[.,]/} end
	eval "$1" || { echo "bench-thinmeta: failed: $1" >&2; exit 1; }
	end=${EPOCHREALTIME/[.,]/}
	echo $((end - begin))
}
median() { sort -n | awk '{ a[NR] = $1 } END { print a[int((NR + 1) / 2)] }'; }
against() { # name, goal, their command, ours: shell words; $W/theirs, $W/ours compared if there
	local name=$1 goal=$2 r theirs ours
	[[ $name =~ $only ]] || return 0
	: >"$W/a"; : >"$W/b"
	rm -f "$W/theirs" "$W/ours"
	eval "$4"
	for r in $(seq "$rounds"); do
		lap "$3" >>"$W/a"
		lap "$4" >>"$W/b"
	done
	theirs=$(median <"$W/a") ours=$(median <"$W/b")
	awk -v n="$name" -v a="$theirs" -v b="$ours" -v g="$goal" 'BEGIN {
		printf "%-34s %9.3f %9.3f   %7.1f x   goal %4d x%s\n", n, a / 1e6, b / 1e6, a / b, g, (a / b >= g) ? "" : "   MISSED" }'
	if [ -e "$W/theirs" ] && [ -e "$W/ours" ]; then
		cmp "$W/theirs" "$W/ours" || { echo "bench-thinmeta: $name: outputs differ" >&2; exit 1; }
	fi
}
printf '%-34s %9s %9s   (seconds, page cache warm)\n' "$mappings mappings" "thin_*" thinmeta
for i in big shared; do
	against "check, $i" 25 "thin_check -q $W/$i" "$meta check -q $W/$i"
	against "dump to /dev/null, $i" 15 "thin_dump $W/$i >/dev/null" "$meta dump $W/$i >/dev/null"
done
against "dump to a file, big" 8 "thin_dump $W/big -o $W/theirs" "$meta dump $W/big -o $W/ours"
rm -f "$W/theirs" "$W/ours"
against "restore, big" 8 "blank $W/out $mappings; thin_restore -i $W/big.xml -o $W/out >/dev/null" \
	"blank $W/out $mappings; $meta restore -i $W/big.xml -o $W/out >/dev/null"
if [ -e "$W/out" ]; then thin_check -q "$W/out"; fi
rm -f "$W/out"
f=DEV,MAPPED,EXCLUSIVE,SHARED
against "ls, exclusive and shared, big" 12 "thin_ls -o $f $W/big >/dev/null" "$meta ls -o $f $W/big >/dev/null"
against "ls, exclusive and shared, shared" 60 "thin_ls -o $f $W/shared >/dev/null" "$meta ls -o $f $W/shared >/dev/null"
d="--thin1 0 --thin2 1"
against "delta, 0.1 % differ" 10 "thin_delta $d $W/near >$W/theirs" "$meta delta $d $W/near >$W/ours"
rm -f "$W/theirs" "$W/ours"
against "delta, differences only" 100 "thin_delta $d $W/near >/dev/null" "$meta delta --differences-only $d $W/near >/dev/null"
region=0..$((mappings / 10))
against "rmap of a tenth, big" 6 "thin_rmap --region $region $W/big >$W/theirs" "$meta rmap --region $region $W/big >$W/ours"

# ---- from the disk ------------------------------------------------------------------------
# Two measures of the disk: read_used, the fastest reader that we could make, and what fio
# needs for as many bytes in a row, without its own start and end.
fio_reads() { # file, bytes: microseconds
	fio --name=disk --filename="$1" --rw=read --bs=512k --direct=1 --ioengine=io_uring --iodepth=16 --size="$2" --minimal |
		awk -F ';' '{ print $9 * 1000 }'
}
printf '\n%-34s %9s %9s   (seconds, page cache dropped)\n' "from the disk" "the disk" thinmeta
for i in big shared near; do
	[[ "from the disk, check, $i" =~ $only ]] || continue
	: >"$W/a"; : >"$W/b"; : >"$W/c"
	for r in $(seq "$rounds"); do
		drop "$W/$i"
		"$BUILD/tests/bench/read_used" "$W/$i" >"$W/used"
		cut -d ' ' -f 1 "$W/used" >>"$W/a"
		drop "$W/$i"
		lap "$meta check -q $W/$i" >>"$W/b"
		drop "$W/$i"
		fio_reads "$W/$i" "$(cut -d ' ' -f 2 "$W/used")" >>"$W/c"
	done
	awk -v n="check, $i" -v a="$(median <"$W/a")" -v b="$(median <"$W/b")" -v u="$(cut -d ' ' -f 2 "$W/used")" 'BEGIN {
		printf "%-34s %9.3f %9.3f   %7.2f x   goal at most 1.3 x   (%d MB, %.2f GB/s)%s\n", n, a / 1e6, b / 1e6, b / a, u / 1e6, u / a / 1e3,
			(b <= 1.3 * a) ? "" : "   MISSED" }'
	awk -v c="$(median <"$W/c")" -v b="$(median <"$W/b")" 'BEGIN {
		printf "%-34s %9.3f %9.3f   %7.2f x   goal at most 1.3 x%s\n", "  as fio reads so many bytes", c / 1e6, b / 1e6, b / c,
			(b <= 1.3 * c) ? "" : "   MISSED" }'
done

# ---- memory -------------------------------------------------------------------------------
rss() { # name, arguments: most resident memory, MiB
	[[ "memory, $1" =~ $only ]] || return 0
	python3 - "$@" <<-'PY'
		import resource, subprocess, sys
		subprocess.run(sys.argv[2:], stdout=subprocess.DEVNULL, check=True)
		print(f'{sys.argv[1]:34} {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:9.1f} MiB')
	PY
}
printf '\nmost memory\n'
for i in big shared; do
	rss "check, $i" "$meta" check -q "$W/$i"
	rss "dump, $i" "$meta" dump "$W/$i"
	rss "ls, $i" "$meta" ls -o $f "$W/$i"
done
if [[ "memory, restore, big" =~ $only ]]; then
	blank "$W/out" "$mappings"
	rss "restore, big" "$meta" restore -i "$W/big.xml" -o "$W/out"
	rss "repair, big" "$meta" repair -i "$W/big" -o "$W/out"
	rm -f "$W/out"
fi
rss "delta, near" "$meta" delta --thin1 0 --thin2 1 "$W/near"
rss "rmap, big" "$meta" rmap --region "$region" "$W/big"
