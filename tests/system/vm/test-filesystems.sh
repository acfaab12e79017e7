#!/usr/bin/env bash
# ext4 and xfs of a real kernel on our volumes: made, written, overwritten beside snapshots,
# trimmed by `discard` and by fstrim. What is left in the pool is what the file systems hold.
. "$(dirname "$0")/../lib.sh"
need_tools qemu-system-x86_64 nbdcopy mkfs.ext4 mkfs.xfs e2fsck dumpe2fs xfs_repair xfs_db cpio xz
start_server
new_pool tank 4G
for fs in ext4 xfs; do
	for v in plain shared trimmed; do
		truncate -s 512M "$W/img"
		case $fs in
		ext4) mkfs.ext4 -q -F -E lazy_itable_init=0,lazy_journal_init=0 "$W/img" ;;
		xfs) mkfs.xfs -q -f "$W/img" ;;
		esac
		thincli volume create tank/$fs-$v 512M
		nbdcopy --flush "$W/img" "$(uri tank/$fs-$v)"
		rm "$W/img"
	done
	thincli volume snapshot tank/$fs-shared $fs-snap
done

cat >"$W/guest.sh" <<'END'
mkdir -p /mnt /snap
files() { # DIR FROM TO: of many sizes, with their sums
	awk -v a="$2" -v b="$3" 'BEGIN { srand(a); for (i = a; i < b; i++) print i, int(rand() * rand() * 400) + 1 }' | while read -r i kib; do
		dd if=/dev/urandom of="$1/f$i" bs=1024 count="$kib" 2>/dev/null || exit 1
	done
}
sums() { (cd "$1" && sha256sum f* | sha256sum | cut -c1-64); }
go() { # FS DISK-PLAIN DISK-SHARED DISK-SNAP DISK-TRIMMED
	fs=$1 opt=
	[ $fs != xfs ] || opt=,nouuid
	# Made and removed at random, on the way and in the end, with `discard`.
	for round in 1 2; do
		mount -t $fs -o discard$opt $2 /mnt || exit 10
		files /mnt $((round * 1000)) $((round * 1000 + 250)) || exit 11
		sync
		for f in /mnt/f*; do case $(md5sum <$f) in [0-3]*) ;; *) rm $f ;; esac; done
		sync
		echo "@@$fs plain $(sums /mnt)"
		umount /mnt || exit 12
	done
	# The origin and its snapshot, each with writes of its own; then each overwritten.
	mount -t $fs -o rw$opt $3 /mnt && mount -t $fs -o rw$opt $4 /snap || exit 13
	files /mnt 1 100 && files /snap 200 300 || exit 14
	a=$(sums /mnt) b=$(sums /snap)
	umount /mnt && umount /snap || exit 15
	mount -t $fs -o rw$opt $3 /mnt && mount -t $fs -o rw$opt $4 /snap || exit 16
	[ "$(sums /mnt)" = $a ] && [ "$(sums /snap)" = $b ] || exit 17
	for f in /mnt/f5*; do dd if=/dev/urandom of=$f bs=4096 count=1 conv=notrunc 2>/dev/null || exit 18; done
	sync
	[ "$(sums /snap)" = $b ] || exit 19
	echo "@@$fs shared $(sums /mnt)"
	echo "@@$fs snap $b"
	umount /mnt && umount /snap || exit 20
	# Removed without `discard`, then fstrim.
	mount -t $fs -o rw$opt $5 /mnt || exit 21
	files /mnt 1 200 || exit 22
	sync
	rm /mnt/f1*
	sync
	fstrim /mnt || exit 23
	echo "@@$fs trimmed $(sums /mnt)"
	umount /mnt || exit 24
}
go ext4 /dev/vda /dev/vdb /dev/vdc /dev/vdd
go xfs /dev/vde /dev/vdf /dev/vdg /dev/vdh
END
disks=()
for fs in ext4 xfs; do for v in plain shared snap trimmed; do disks+=("$(uri tank/$fs-$v)"); done; done
"$SRC/tests/system/vm/boot.sh" -t 1000 "$W/guest.sh" "${disks[@]}" >"$W/console" || {
	rc=$?
	tail -n 30 "$W/console"
	fail "the guest: exit $rc"
}
same "$(grep -c '^@@ext4\|^@@xfs' "$W/console")" 10 "lines of the guest"

mapped() { thincli --json volume show "$1" | field "d['volumes'][0]['mapped']"; }
close_to() { # WHAT HELD MAPPED: within 5 % and 4 MiB of what the file system counts
	echo "$1: the file system holds $2 bytes, mapped are $3"
	[ "$3" -le $(($2 * 105 / 100 + 4194304)) ] || fail "$1: much more is mapped than held"
}
thincli pool close tank
check_pool tank
thincli pool open tank
for v in plain shared snap trimmed; do
	nbdcopy "$(uri tank/ext4-$v)" "$W/img"
	e2fsck -fn "$W/img" >"$W/fsck" 2>&1 || { cat "$W/fsck"; fail "ext4-$v is damaged"; }
	held=$(dumpe2fs -h "$W/img" 2>/dev/null | awk '/^Block count/ { n = $3 } /^Free blocks/ { f = $3 } /^Block size/ { s = $3 } END { print (n - f) * s }')
	[ $v = shared ] || [ $v = snap ] || close_to "ext4-$v" "$held" "$(mapped tank/ext4-$v)"
	rm "$W/img"
	nbdcopy "$(uri tank/xfs-$v)" "$W/img"
	xfs_repair -n "$W/img" >"$W/fsck" 2>&1 || { cat "$W/fsck"; fail "xfs-$v is damaged"; }
	held=$(xfs_db -r -c 'sb 0' -c 'p blocksize dblocks fdblocks' "$W/img" | awk '{ v[$1] = $3 } END { print (v["dblocks"] - v["fdblocks"]) * v["blocksize"] }')
	[ $v = shared ] || [ $v = snap ] || close_to "xfs-$v" "$held" "$(mapped tank/xfs-$v)"
	rm "$W/img"
done
thincli volume delete tank/ext4-plain tank/ext4-shared tank/ext4-snap tank/ext4-trimmed
check_closed tank
stop_server
