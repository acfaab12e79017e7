#!/usr/bin/env bash
# thinmeta against the official tools, on pools that the kernel made: the same XML, lists
# and differences; each accepts what the other writes; damage is found and repaired; and
# the C library by way of its example.
. "$(dirname "$0")/lib.sh"
need_tools thin_check thin_dump thin_restore thin_ls thin_delta thin_rmap thin_metadata_size xz python3
POOLS=$SRC/tests/data/pools
for t in check dump restore repair delta ls rmap trim metadata_size metadata_pack metadata_unpack; do
	mkdir -p "$W/compat"
	ln -s "$BUILD/thinmeta" "$W/compat/thin_$t"
done
ours() { local t=$1; shift; "$W/compat/$t" "$@"; }
compare() { # tool, arguments: the same output and exit code under the same name
	local a=0 b=0
	"$@" >"$W/official.out" 2>/dev/null || a=$?
	ours "$@" >"$W/ours.out" 2>/dev/null || b=$?
	same "$b" "$a" "exit code of $*"
	cmp "$W/official.out" "$W/ours.out" || fail "$* differs"
}
compare_sorted() {
	"$@" 2>/dev/null | sort >"$W/official.out"
	ours "$@" 2>/dev/null | sort >"$W/ours.out"
	cmp "$W/official.out" "$W/ours.out" || fail "$* differs"
}
blank() { # FILE SIZE
	rm -f "$1"
	truncate -s "$2" "$1"
}
to_full() { thinmeta "$@" >/dev/full; }
FIELDS=DEV,MAPPED_BLOCKS,EXCLUSIVE_BLOCKS,SHARED_BLOCKS,MAPPED_SECTORS,EXCLUSIVE_BYTES,MAPPED,EXCLUSIVE,SHARED,TRANSACTION,CREATE_TIME,SNAP_TIME

for dir in "$POOLS"/*/; do
	pool=$(basename "$dir")
	m=$W/$pool.img
	xz -dc "$dir/meta.img.xz" >"$m"
	xz -dc "$dir/dump.xml.xz" >"$W/dump.xml"
	size=$(stat -c %s "$m")
	echo "$pool"

	thinmeta check -q "$m" || fail "check of $pool"
	thinmeta dump "$m" | cmp - "$W/dump.xml"
	compare thin_dump -f human_readable "$m"
	compare thin_dump --skip-mappings "$m"
	compare thin_dump --dev-id 1 "$m"
	compare thin_dump --dev-id 1 --dev-id 3 --dev-id 2 "$m"
	compare thin_dump -m "$m"
	compare thin_dump --repair -m "$m"
	compare thin_dump --repair --skip-mappings "$m"
	compare thin_dump --repair --dev-id 1 "$m"
	compare thin_dump --transaction-id 7 --data-block-size 256 --nr-data-blocks 5000 "$m"
	compare thin_dump --repair --nr-data-blocks 5000 -f human_readable "$m"
	compare thin_ls "$m"
	compare thin_ls -m "$m"
	compare thin_ls -m5 "$m"
	compare thin_ls --no-headers -o "$FIELDS" "$m"
	for odd in DEV, "" ,DEV DEV,,MAPPED DEV,DEV; do compare thin_ls -o "$odd" "$m"; done
	compare_sorted thin_rmap --region 0..60 --region 100..5000 "$m"
	read -r -d '' -a ids < <(thin_ls --no-headers -o DEV "$m" | head -n 4) || true
	for a in "${ids[@]}"; do
		for b in "${ids[@]}"; do
			compare thin_delta --thin1 "$a" --thin2 "$b" "$m"
			compare thin_delta --verbose --snap1 "$a" --snap2 "$b" "$m"
		done
	done
	if [ ${#ids[@]} -gt 1 ]; then
		thin_delta --thin1 "${ids[0]}" --thin2 "${ids[1]}" "$m" | grep -v '<same ' >"$W/official.out"
		thinmeta delta --differences-only --thin1 "${ids[0]}" --thin2 "${ids[1]}" "$m" >"$W/ours.out"
		cmp "$W/official.out" "$W/ours.out" || fail "the differences in $pool"
	fi
	thinmeta dump -f json "$m" | python3 -c 'import json, sys; json.load(sys.stdin)'
	thinmeta ls --json "$m" | python3 -c 'import json, sys; json.load(sys.stdin)'
	thinmeta check --json "$m" | python3 -c 'import json, sys; json.load(sys.stdin)'

	# What one restores the other accepts, and says the same of.
	blank "$W/r.img" "$size"
	thinmeta restore -i "$W/dump.xml" -o "$W/r.img"
	thin_check -q "$W/r.img" || fail "thin_check of our restore of $pool"
	thin_dump "$W/r.img" | cmp - "$W/dump.xml"
	thinmeta check --strict -q "$W/r.img" || fail "check of our restore of $pool"
	blank "$W/r.img" "$size"
	if thin_restore -q -i "$W/dump.xml" -o "$W/r.img" 2>/dev/null; then
		thinmeta check -q "$W/r.img" || fail "check of thin_restore's $pool"
		thinmeta check --auto-repair "$W/r.img" >/dev/null
		thinmeta check --strict -q "$W/r.img" || fail "auto-repair of thin_restore's $pool"
		thin_check -q "$W/r.img" || fail "thin_check after auto-repair of $pool"
		thinmeta dump "$W/r.img" | cmp - <(sed '1s/flags="1"/flags="0"/' "$W/dump.xml")
	fi

	# There and back.
	thinmeta pack -i "$m" -o "$W/pack"
	rm -f "$W/u.img"
	thinmeta unpack -i "$W/pack" -o "$W/u.img"
	thinmeta check -q "$W/u.img" || fail "check of unpacked $pool"
	thinmeta dump "$W/u.img" | cmp - "$W/dump.xml"

	# Whatever single block is lost, the rest is saved, and thin_repair saves no more.
	blank "$W/r.img" "$size"
	ours thin_repair -i "$m" -o "$W/r.img"
	thin_dump "$W/r.img" | cmp - "$W/dump.xml"
	thin_check -q "$W/r.img" || fail "thin_check of repaired $pool"
done

seed=${SEED:-$(date +%s)}
echo "a large random pool, SEED=$seed"
python3 - "$seed" >"$W/random.xml" <<'END'
import random, sys
rng = random.Random(int(sys.argv[1]))
nr_data, time = 400000, 9
print(f'<superblock uuid="" time="{time}" transaction="{rng.randrange(1 << 40)}" flags="0" version="2" data_block_size="{128 * rng.randrange(1, 9)}" nr_data_blocks="{nr_data}">')
for dev in sorted(rng.sample(range(1 << 24), rng.randrange(3, 9))):
    runs, virt, mapped = [], rng.randrange(1 << rng.randrange(1, 40)), 0
    for _ in range(rng.choice((0, 1, 100, 20000))):
        n = rng.choice((1, 1, 1, 2, 5, rng.randrange(1, 600)))
        data = rng.randrange(nr_data - n)
        runs.append((virt, data, n, rng.randrange(time + 1)))
        virt += n + rng.choice((0, 0, 1, rng.randrange(1 << 20)))
        mapped += n
    print(f'  <device dev_id="{dev}" mapped_blocks="{mapped}" transaction="{rng.randrange(99)}" creation_time="{rng.randrange(time)}" snap_time="{rng.randrange(time + 1)}">')
    for virt, data, n, t in runs:
        if n == 1:
            print(f'    <single_mapping origin_block="{virt}" data_block="{data}" time="{t}"/>')
        else:
            print(f'    <range_mapping origin_begin="{virt}" data_begin="{data}" length="{n}" time="{t}"/>')
    print('  </device>')
print('</superblock>')
END
for by in thinmeta thin_restore; do
	blank "$W/random.img" 256M
	if [ $by = thinmeta ]; then
		thinmeta restore -i "$W/random.xml" -o "$W/random.img"
		thinmeta check --strict -q "$W/random.img" || fail "check of our restore of a random pool"
	else
		thin_restore -q -i "$W/random.xml" -o "$W/random.img" >/dev/null
		thinmeta check -q "$W/random.img" || fail "check of thin_restore's random pool"
	fi
	thin_check -q "$W/random.img" || fail "thin_check of a random pool by $by"
	compare thin_dump "$W/random.img"
	compare thin_dump -f human_readable "$W/random.img"
	compare thin_ls --no-headers -o "$FIELDS" "$W/random.img"
	read -r -d '' -a ids < <(thin_ls --no-headers -o DEV "$W/random.img" | head -n 3) || true
	compare thin_delta --thin1 "${ids[0]}" --thin2 "${ids[1]}" "$W/random.img"
	compare thin_delta --verbose --thin1 "${ids[1]}" --thin2 "${ids[2]}" "$W/random.img"
done
rm -f "$W/random.img" "$W/random.xml"

echo "damage"
m=$W/few-thins.img
cp "$m" "$W/bad.img"
# Block 35 holds device 1's mappings, as the top-level leaf says.
root=$(python3 - "$W/bad.img" <<'END'
import struct, sys
f = open(sys.argv[1], 'r+b')
d = f.read()
top = struct.unpack_from('<Q', d, 320)[0]
leaf = struct.unpack_from('<Q', d, top * 4096 + 2048)[0]
f.seek(leaf * 4096 + 1000)
f.write(b'damage')
print(leaf)
END
)
rc=0
thinmeta check "$W/bad.img" >"$W/out" || rc=$?
same $rc 1 "exit code of check with damage"
grep -q "affected: device 1, .*(metadata block $root)" "$W/out" || fail "the volume is not named"
cmp -s "$W/bad.img" "$m" && fail "no damage was done"
must_fail 1 "damaged" thinmeta dump "$W/bad.img"
cp "$W/bad.img" "$W/before.img"
thinmeta repair -i "$W/bad.img" --dry-run >"$W/plan"
grep -q "lost: device 1" "$W/plan" || fail "the plan does not say what is lost"
blank "$W/r.img" 4M
thinmeta repair -i "$W/bad.img" -o "$W/r.img" >/dev/null
cmp "$W/bad.img" "$W/before.img" || fail "repair has written to its input"
thin_check -q "$W/r.img" || fail "thin_check of the repaired pool"
thinmeta check -q "$W/r.img" || fail "check of the repaired pool"
thinmeta dump -r "$W/bad.img" >"$W/lenient.xml"
[ "$(grep -c '_mapping' "$W/lenient.xml")" = "$(thin_dump "$W/r.img" | grep -c _mapping)" ] ||
	fail "dump -r and repair differ"
must_fail 1 "same device" thinmeta repair -i "$m" -o "$m"

echo "needs_check"
cp "$W/needs-check.img" "$W/n.img"
thinmeta check "$W/n.img" | grep_q "needs_check is set" || fail "needs_check is not told"
thinmeta check --clear-needs-check-flag "$W/n.img" >/dev/null
thin_dump "$W/n.img" | grep_q 'flags="0"' || fail "needs_check is not cleared"

# What thin_check refuses, and what it does to the flag.
for args in --auto-repair --clear-needs-check-flag "--ignore-non-fatal-errors --auto-repair" "--skip-mappings --auto-repair" \
	"-m --auto-repair" "--override-mapping-root 5" "--override-mapping-root 99999" "--override-mapping-root 5 --auto-repair"; do
	for pool in needs-check held-root; do
		a=0 b=0
		cp "$W/$pool.img" "$W/a.img"
		cp "$W/$pool.img" "$W/b.img"
		# shellcheck disable=SC2086
		thin_check -q $args "$W/a.img" 2>/dev/null || a=$?
		# shellcheck disable=SC2086
		ours thin_check -q $args "$W/b.img" 2>/dev/null || b=$?
		same $b $a "exit code of thin_check $args on $pool"
		same "$(thin_dump "$W/b.img" | head -n 1)" "$(thin_dump "$W/a.img" | head -n 1)" "superblock after thin_check $args"
	done
done
root=$(python3 -c "import struct; print(struct.unpack_from('<Q', open('$m', 'rb').read(), 320)[0])")
thinmeta check -q --override-mapping-root "$root" "$m" || fail "its own mapping root is no good"

echo "progress and interruption"
truncate -s 64M "$W/int.img"
python3 - "$BUILD/thinmeta" "$W/int.img" <<'END'
import fcntl, os, pty, signal, struct, subprocess, sys, termios, time
tool, image = sys.argv[1:]

def lines(begin, n):
    return ''.join(f'<single_mapping origin_block="{2 * i}" data_block="{i}" time="0"/>\n' for i in range(begin, begin + n)).encode()

def status(p, key):
    return next(l.split()[1] for l in open(f'/proc/{p.pid}/status') if l.startswith(key))

def unread(pipe):
    return struct.unpack('i', fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)))[0]

def wait_for(truth, words):
    end = time.time() + 60
    while not truth():
        assert time.time() < end, words
        time.sleep(0.02)

def all_of(terminal):
    """What was written to it, once nobody has it open any more: it comes in pieces."""
    text = b''
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:
            return text.decode()
        text += piece

def restore(terminal, parts):
    """Fed in parts, with pauses; interrupted at the end of the last. What is on stderr."""
    master, slave = pty.openpty()
    p = subprocess.Popen([tool, 'restore', '-i', '-', '-o', image], stdin=subprocess.PIPE,
                         stderr=slave if terminal else subprocess.PIPE)
    os.close(slave)
    wait_for(lambda: int(status(p, 'SigCgt'), 16) & 1 << signal.SIGINT - 1, 'it does not catch the signal')
    for part in parts:
        p.stdin.write(part)
        p.stdin.flush()
        wait_for(lambda: unread(p.stdin) == 0, 'it does not read')
        time.sleep(0.5)
    p.send_signal(signal.SIGINT)
    p.wait(120)
    assert p.returncode == 1, p.returncode
    return all_of(master) if terminal else p.stderr.read().decode()

head = (b'<superblock uuid="" time="0" transaction="1" flags="0" version="2" data_block_size="128" nr_data_blocks="900000">\n'
        b'<device dev_id="1" mapped_blocks="400000" transaction="0" creation_time="0" snap_time="0">\n')
words = restore(False, [b''])
assert words == 'thinmeta restore: interrupted; nothing was changed\n', words
words = restore(False, [head + lines(0, 200000), lines(200000, 200000)])
assert words.count('\n') == 1 and '\r' not in words, words
assert 'metadata blocks written; what is on the output is no pool' in words, words
words = restore(True, [head + lines(0, 200000), lines(200000, 200000)])
assert '\rmetadata blocks written: ' in words and 'interrupted after' in words, words
END
must_fail 1 "thin metadata" thinmeta dump "$W/int.img"

echo "format, size, trim"
thinmeta format --data-size 1G "$W/f.img"
thin_check -q "$W/f.img"
thinmeta check --strict -q "$W/f.img"
must_fail 1 "not empty" thinmeta format --data-size 1G "$W/f.img"
for args in "-b 64k -s 1g -m 10" "-b 64k -s 10t -m 1000 -u k" "-b 128 -s 2097152 -m 1k -u b" \
	"-b 64k -s 1g -m 10 -u kilobytes" "-b 64k -s 1g -m 10 -u gib" \
	"-b 64k -s 1p -m 10 --unit exabytes -nlong" "-b 64k -s 1g -m 10 -u bogus" "-b 64k -s 1g -m 0" "-b 64k -s 4t -m 1000 -u t -nshort" "-b 64k -s 4t -m 1000 -u G -nlong" "-b 64k -s 1g -m 10 -n"; do
	# shellcheck disable=SC2086
	compare thin_metadata_size $args
done
for version in 1 2; do # stays what the XML says
	sed "s/version=\"2\"/version=\"$version\"/" "$W/dump.xml" >"$W/version.xml"
	blank "$W/f.img" 4M
	thinmeta restore -i "$W/version.xml" -o "$W/f.img" >/dev/null
	thin_dump "$W/f.img" | cmp - "$W/version.xml"
	thin_check -q "$W/f.img"
done
sed 's/ version="2"//' "$W/dump.xml" >"$W/version.xml" # and so does what it does not say
for by in thin_restore thinmeta; do
	blank "$W/f.img" 4M
	if [ $by = thin_restore ]; then
		thin_restore -q -i "$W/version.xml" -o "$W/f.img" >/dev/null
	else
		thinmeta restore -i "$W/version.xml" -o "$W/f.img" >/dev/null
	fi
	thin_dump "$W/f.img" | cmp - <(sed '1s/version="2"/version="1"/' "$W/dump.xml")
done
python3 -c "open('$W/data', 'wb').write(b'x' * (40 << 20))"
thinmeta trim --metadata-dev "$m" --data-dev "$W/data" >/dev/null
same "$(python3 -c "
d = open('$W/data', 'rb').read()
print(sum(1 for i in range(640) if d[i * 65536] == 120))")" 107 "data blocks kept by trim"
# Block devices: exactly the mapped blocks are left, also the last one; thin_trim 0.9
# discards that. And nothing is done while somebody has one of them.
python3 -c "open('$W/data', 'wb').write(b'x' * (1600 << 16))"
LOOPS=()
trap 'rc=$?; for l in "${LOOPS[@]}"; do losetup -d "$l" || true; done; finish $rc' EXIT
for f in discards.img data; do
	l=$(losetup --find --show "$W/$f") || fail "no loop devices here"
	LOOPS+=("$l")
done
for busy in "${LOOPS[@]}"; do
	python3 -c "
import os, subprocess, sys
os.open('$busy', os.O_RDONLY | os.O_EXCL)
r = subprocess.run(['$BUILD/thinmeta', 'trim', '--metadata-dev', '${LOOPS[0]}', '--data-dev', '${LOOPS[1]}'], capture_output=True, text=True)
assert r.returncode == 1 and '$busy' in r.stderr and 'in use' in r.stderr, r"
done
same "$(tr -d x <"$W/data" | wc -c)" 0 "bytes discarded while a device is in use"
thinmeta trim --metadata-dev "${LOOPS[0]}" --data-dev "${LOOPS[1]}" >/dev/null
sync "$W/data"
thinmeta dump "$W/discards.img" >"$W/discards.xml"
python3 - "$W/data" "$W/discards.xml" <<'END'
import re, sys
data, xml = open(sys.argv[1], 'rb').read(), open(sys.argv[2]).read()
used = {int(b) for b in re.findall(r'data_block="(\d+)"', xml)}
for begin, n in re.findall(r'data_begin="(\d+)" length="(\d+)"', xml):
    used |= set(range(int(begin), int(begin) + int(n)))
blocks = [data[i << 16:(i + 1) << 16] for i in range(1600)]
assert {i for i, b in enumerate(blocks) if b == b'x' * 65536} == used
assert all(b == bytes(65536) for i, b in enumerate(blocks) if i not in used)
assert len(used) == 606
END

echo "locks and wrong usage"
python3 - "$m" "$BUILD/thinmeta" <<'END'
import fcntl, struct, subprocess, sys
f = open(sys.argv[1], 'r+b')
F_OFD_SETLK = 37
fcntl.fcntl(f, F_OFD_SETLK, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))
r = subprocess.run([sys.argv[2], 'check', sys.argv[1]], capture_output=True, text=True)
assert r.returncode == 1 and 'in use' in r.stderr, r
END
# An output that takes nothing: each verb says so, and that it is the output.
for words in "dump $m" "dump --format json $m" "rmap --region 0..500 $m" "delta --thin1 1 --thin2 2 $m" \
	"check $m" "check --json $m" "ls $m" "ls --json $m" "size -b 64k -s 1g -m 1" "--version" "--help"; do
	# shellcheck disable=SC2086
	must_fail 1 "write the .*: No space left on device" to_full $words
done
must_fail 1 "write /dev/full: No space left on device" thinmeta dump -o /dev/full "$m"
must_fail 2 "" thinmeta
must_fail 2 "" thinmeta frobnicate
must_fail 2 "" thinmeta check
must_fail 2 "" thinmeta check --no-such-option "$m"
must_fail 1 "no such file" thinmeta check "$W/none"
must_fail 1 "thin metadata" thinmeta dump "$BUILD/thinmeta"
must_fail 1 "neither" thinmeta check /dev/null
must_fail 1 "line 1" thinmeta restore -i "$BUILD/thinmeta" -o "$W/f.img"

echo "a bad input costs the output nothing"
cp "$m" "$W/kept.img"
thinmeta dump "$m" >"$W/whole.xml"
head -c "$(($(stat -c %s "$W/whole.xml") / 2))" "$W/whole.xml" >"$W/half.xml"
sed 's/nr_data_blocks="[0-9]*"/nr_data_blocks="3"/' "$W/whole.xml" >"$W/narrow.xml"
must_fail 1 "half.xml: line" thinmeta restore -i "$W/half.xml" -o "$W/kept.img"
must_fail 1 "narrow.xml" thinmeta restore -i "$W/narrow.xml" -o "$W/kept.img"
python3 - >"$W/much.xml" <<'END'
print('<superblock uuid="" time="0" transaction="1" flags="0" version="2" data_block_size="128" nr_data_blocks="9000">')
print('<device dev_id="1" mapped_blocks="9000" transaction="0" creation_time="0" snap_time="0">')
for i in range(9000):
    print(f'<single_mapping origin_block="{2 * i}" data_block="{i}" time="0"/>')
print('</device></superblock>')
END
blank "$W/small.img" 96k
thinmeta format --data-size 1M "$W/small.img"
cp "$W/small.img" "$W/small.before"
must_fail 1 "too small" thinmeta restore -i "$W/much.xml" -o "$W/small.img"
cmp "$W/small.img" "$W/small.before" || fail "a restore that has no room changed the output"
thinmeta pack -i "$m" -o "$W/pack"
python3 -c "
d = bytearray(open('$W/pack', 'rb').read())
d[len(d) // 2] ^= 1
open('$W/bent.pack', 'wb').write(d)
open('$W/short.pack', 'wb').write(d[:len(d) // 3])"
for pack in bent short; do
	must_fail 1 "$pack.pack: the pack" thinmeta unpack -i "$W/$pack.pack" -o "$W/kept.img"
	must_fail 1 "$pack.pack: the pack" thinmeta unpack -i "$W/$pack.pack" -o "$W/never.img"
	[ ! -e "$W/never.img" ] || fail "an unpack that failed left its output"
done
cmp "$m" "$W/kept.img" || fail "a bad input changed the output"
unpack_pipe() {
	cat "$W/pack" | thinmeta unpack -i /dev/stdin -o "$1"
}
must_fail 1 "must exist" unpack_pipe "$W/never.img"
unpack_pipe "$W/kept.img"
thinmeta dump "$W/kept.img" | cmp - "$W/whole.xml" || fail "a pack through a pipe"

echo "the library's example"
cc -std=c11 -Wall -Werror "${sanitizer_flags[@]}" -I"$SRC/core/offline" -o "$W/list" "$SRC/tests/examples/list-volumes.c" \
	-L"$BUILD" -lthinmeta -Wl,-rpath,"$BUILD"
ln -sf "$BUILD/libthinmeta.so" "$W/libthinmeta.so.0"
LD_LIBRARY_PATH=$W "$W/list" "$m" >"$W/out"
grep -q '^volume 7: 27 blocks, 27 of them its own$' "$W/out" || fail "the example's list"
same "$(grep -c ' at ' "$W/out")" "$(thin_dump "$m" | grep -c _mapping)" "ranges of the example"
