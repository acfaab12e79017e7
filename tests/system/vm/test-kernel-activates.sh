#!/usr/bin/env bash
# A pool that we wrote is activated by the real dm-thin, read in full, written to, taken
# down, and served by us again: contents, names and sizes are equal at each step.
. "$(dirname "$0")/../lib.sh"
need_tools qemu-system-x86_64 nbdcopy cpio xz
start_server
new_pool tank 128M --block-size 64k
thincli volume create tank/one 24M
thincli volume create tank/two 16M
head -c 9000000 /dev/urandom >"$W/r"
truncate -s 24M "$W/r"
nbdcopy --flush "$W/r" "$(uri tank/one)"
nbdsh -u "$(uri tank/two)" -c 'h.pwrite(b"x" * 5000, 100000); h.pwrite(b"y" * 512, 8 << 20); h.flush()'
thincli volume snapshot tank/one snap
nbdsh -u "$(uri tank/one)" -c 'h.pwrite(b"after" * 20000, 3 << 20); h.trim(1 << 20, 0); h.flush()'
thincli --json volume list tank >"$W/list"
sum() { nbdcopy "$(uri "tank/$1")" - | sha256sum | cut -d' ' -f1; }
for v in one two snap; do
	id=$(field "[v['dev_id'] for v in d['volumes'] if v['name'] == 'tank/$v'][0]" <"$W/list")
	size=$(field "[v['size'] for v in d['volumes'] if v['name'] == 'tank/$v'][0]" <"$W/list")
	echo "$v $id $((size / 512)) $(sum $v)"
done >"$W/volumes"
thincli pool close tank
check_pool tank
{
	echo 'set -e'
	echo 'thin_check /dev/vda >/dev/null || { echo "thin_check"; exit 10; }'
	echo 'dmsetup create pool --table "0 262144 thin-pool /dev/vda /dev/vdb 128 0"'
	while read -r v id sectors sum; do
		cat <<-END
			dmsetup create t$id --table "0 $sectors thin /dev/mapper/pool $id"
			got=\$(sha256sum </dev/mapper/t$id | cut -c1-64)
			[ "\$got" = $sum ] || { echo "volume $v reads \$got"; exit 11; }
			dmsetup remove t$id
		END
	done <"$W/volumes"
	id=$(awk '$1 == "two" {print $2}' "$W/volumes")
	cat <<-END
		dmsetup create t --table "0 32768 thin /dev/mapper/pool $id"
		printf 'written by the kernel' | dd of=/dev/mapper/t bs=4096 seek=700 conv=fsync,notrunc 2>/dev/null
		dd if=/dev/zero of=/dev/mapper/t bs=64k seek=20 count=10 conv=fsync,notrunc 2>/dev/null
		echo "@@SUM:\$(sha256sum </dev/mapper/t | cut -c1-64)"
		dmsetup remove t
		dmsetup message pool 0 "create_snap 77 $id"
		dmsetup message pool 0 "delete $(awk '$1 == "snap" {print $2}' "$W/volumes")"
		echo "@@STATUS:\$(dmsetup status pool)"
		dmsetup remove pool
		thin_check /dev/vda >/dev/null || exit 12
	END
} >"$W/guest.sh"
"$(dirname "$0")/boot.sh" "$W/guest.sh" "$W/tank.meta" "$W/tank.data" >"$W/console" || {
	rc=$?
	tail -n 20 "$W/console"
	fail "the kernel: exit $rc"
}
kernel_sum=$(sed -n 's/^@@SUM:\([0-9a-f]*\).*/\1/p' "$W/console")
[ -n "$kernel_sum" ] || fail "the guest told no sum"
check_pool tank
thincli pool open tank
same "$(sum one)" "$(awk '$1 == "one" {print $4}' "$W/volumes")" "tank/one after the kernel"
same "$(sum two)" "$kernel_sum" "tank/two as the kernel wrote it"
thincli --json volume list tank >"$W/list"
names=$(field "' '.join(sorted(v['name'] for v in d['volumes']))" <"$W/list")
same "$names" "tank/one tank/thin-77 tank/two" "names after the kernel deleted snap and made 77"
same "$(field "[v['size'] for v in d['volumes'] if v['name'] == 'tank/one'][0]" <"$W/list")" 25165824
thincli volume create tank/three 8M
nbdsh -u "$(uri tank/three)" -c 'h.pwrite(b"z" * 100000, 0); h.flush()'
check_closed tank
stop_server
