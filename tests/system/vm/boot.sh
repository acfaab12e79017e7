#!/usr/bin/env bash
# Boots Debian's cloud kernel with dm-thin under QEMU (software emulation, no KVM) and
# runs a script in it.
#
#   boot.sh [-t SECONDS] [-m MIB] SCRIPT DISK...
#
# SCRIPT is run by busybox sh as root with /dev/vda, /dev/vdb, ... = the disks, the dm
# and nbd modules loaded, and dmsetup, thin_check, thin_dump in PATH. What it prints
# comes out on stdout; its exit code is ours (124: too long, 125: the guest died).
# Packages are fetched once into VM_CACHE (default: a folder in the user's cache).
set -euo pipefail
limit=600 memory=512 # a busy machine takes ten times what a quiet one does
while getopts t:m: o; do
	case $o in
	t) limit=$OPTARG ;;
	m) memory=$OPTARG ;;
	*) exit 2 ;;
	esac
done
shift $((OPTIND - 1))
script=$1
shift
cache=${VM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/thinsrv-vm}
mkdir -p "$cache"
work=$(mktemp -d "${TMPDIR:-/tmp}/thinsrv-vm.XXXXXX")
trap 'rm -rf "$work"' EXIT

# A package and what it depends on, unpacked into a folder.
unpack() { # folder, packages
	local folder=$1 p _
	shift
	mkdir -p "$folder" "$cache/deb"
	for p; do
		for _ in 1 2 3; do # a mirror may fail for a moment
			ls "$cache"/deb/"${p}"_*.deb >/dev/null 2>&1 ||
				(cd "$cache/deb" && apt-get -q download "$p" >/dev/null 2>&1) && break
		done
		ls "$cache"/deb/"${p}"_*.deb >/dev/null 2>&1 || {
			echo "boot.sh: the package $p does not come" >&2
			continue
		}
		dpkg -x "$(ls "$cache"/deb/"${p}"_*.deb | head -n 1)" "$folder"
	done
}
with_dependencies() {
	apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
		--no-replaces --no-enhances --no-pre-depends "$@" | grep -E '^[a-z0-9]' | grep -v ':i386' | sort -u
}
prepare() {
	[ -e "$cache/ready" ] && return
	apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || apt-get -q update >/dev/null
	local image
	image=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image/ {print $2; exit}')
	[ -n "$image" ] || { echo "boot.sh: no kernel package is known" >&2; exit 126; }
	rm -rf "$cache/kernel" "$cache/guest"
	unpack "$cache/kernel" "$image"
	# One folder each for programs and libraries, as on a merged /usr.
	mkdir -p "$cache/guest"/usr/{bin,sbin,lib,lib64}
	for l in bin sbin lib lib64; do ln -s usr/$l "$cache/guest/$l"; done
	unpack "$work/x" $(with_dependencies dmsetup thin-provisioning-tools) busybox-static
	for l in bin sbin lib lib64; do
		for from in "$work/x/$l" "$work/x/usr/$l"; do
			[ -d "$from" ] && cp -a "$from/." "$cache/guest/usr/$l/"
		done
	done
	[ -x "$cache/guest/usr/sbin/dmsetup" ] && [ -x "$cache/guest/usr/bin/busybox" ] &&
		ls "$cache"/kernel/boot/vmlinuz-* >/dev/null || { echo "boot.sh: packages did not arrive" >&2; exit 126; }
	touch "$cache/ready"
}
exec 9>"$cache/lock"
flock 9
prepare
flock -u 9

root=$work/root
mkdir -p "$root"/{proc,sys,dev,tmp,run,modules}
cp -a "$cache/guest/." "$root/"
rm -rf "$root"/usr/lib/*/gconv "$root"/usr/lib/*/perl* "$root/usr/share"
n=10
for m in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci crct10dif_common \
	crct10dif_generic crc-t10dif crc64 crc64-rocksoft_generic crc64-rocksoft t10-pi virtio_blk crc32c_generic \
	crc32c-intel libcrc32c dm-mod dm-bufio dm-bio-prison dm-persistent-data dm-thin-pool nbd \
	xfs; do
	f=$(find "$cache/kernel" -name "$m.ko*" | head -n 1)
	[ -n "$f" ] || continue
	n=$((n + 1))
	cp "$f" "$root/modules/$n-$(basename "$f")"
done
find "$root/modules" -name '*.xz' -exec xz -d {} +
cp "$script" "$root/user-script"
cat >"$root/init" <<'END'
#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin DM_DISABLE_UDEV=1
/bin/busybox --install -s /usr/bin 2>/dev/null
mount -t proc proc /proc; mount -t sysfs sysfs /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/mapper /run/lock
# Twice: then their order does not matter.
for m in /modules/*.ko /modules/*.ko; do insmod $m 2>/dev/null; done
dmsetup mknodes 2>/dev/null
sh /user-script; code=$?; echo; echo "@@EXIT:$code@@"
poweroff -f
END
chmod +x "$root/init"
(cd "$root" && find . | cpio -o -H newc 2>/dev/null | gzip -1) >"$work/initrd"
drives=()
for d; do drives+=(-drive "file=$d,if=virtio,format=raw,cache=writeback,discard=unmap"); done
rc=0
timeout "$limit" qemu-system-x86_64 -accel tcg,thread=multi -cpu max -m "$memory" -nodefaults -display none \
	-serial "file:$work/console" -monitor none -no-reboot -kernel "$(ls "$cache"/kernel/boot/vmlinuz-* | head -n 1)" \
	-initrd "$work/initrd" -append "console=ttyS0 quiet panic=-1" "${drives[@]}" </dev/null || rc=$?
tr -d '\r' <"$work/console"
[ $rc != 124 ] || exit 124
code=$(sed -n 's/.*@@EXIT:\([0-9]*\)@@.*/\1/p' <(tr -d '\r' <"$work/console") | tail -n 1)
exit "${code:-125}"
