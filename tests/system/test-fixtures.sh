#!/usr/bin/env bash
# Pools that the real kernel made are imported, read back as the kernel read them, take
# new writes, and pass the official tools afterwards.
. "$(dirname "$0")/lib.sh"
need_tools thin_check nbdcopy xz
pools=$SRC/tests/data/pools
[ -d "$pools" ] || fail "tests/data/pools is missing"
start_server
for p in "$pools"/*/; do
	name=$(basename "$p")
	data=$p/data.img.xz
	[ "$name" != tools-restored ] || data=$pools/few-thins/data.img.xz
	[ -f "$data" ] || continue
	echo "pool $name"
	xz -dc "$p/meta.img.xz" >"$W/$name.meta"
	xz -dc "$data" | dd of="$W/$name.data" bs=64k conv=sparse status=none
	truncate -s ">$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["data_image_bytes"])' "$p/manifest.json")" "$W/$name.data"
	thin_dump "$W/$name.meta" >"$W/before.xml"
	cp "$W/$name.meta" "$W/untouched"
	python3 - "$p/manifest.json" >"$W/devices" <<-'END'
		import json, sys
		m = json.load(open(sys.argv[1]))
		for d in m["devices"]:
		    if d.get("external_origin") or "sha256" not in d:
		        continue
		    print(d["id"], d["sectors"], d["sha256"])
	END
	sizes=()
	while read -r id sectors _; do sizes+=(--size "$id=$((sectors * 512))"); done <"$W/devices"
	thincli pool import "$name" --data "$W/$name.data" --metadata "$W/$name.meta" "${sizes[@]}"
	while read -r id sectors sum; do
		got=$(nbdcopy "$(uri "$name/thin-$id")" - | sha256sum | cut -d' ' -f1)
		same "$got" "$sum" "$name device $id"
	done <"$W/devices"
	thincli pool close "$name"
	cmp "$W/$name.meta" "$W/untouched" || fail "import and reading wrote to the metadata of $name"
	thincli pool open "$name"
	mode=$(thincli --json pool show "$name" | field "d['pools'][0]['mode']")
	case $name in
	needs-check) [ "$mode" = read-only ] || fail "mode $mode" ;;
	*) [ "$mode" = write ] || [ "$mode" = out-of-data-space ] || fail "mode $mode" ;;
	esac
	if [ "$mode" = write ] && [ "$name" != out-of-data ]; then
		thincli volume create "$name/new" 1M
		nbdsh -u "$(uri "$name/new")" -c 'h.pwrite(b"new!" * 16384, 65536); h.flush()'
		same "$(nbdsh -u "$(uri "$name/new")" -c 'print(h.pread(8, 65536) == b"new!new!")')" True
		thincli pool close "$name"
		check_pool "$name"
		thincli pool open "$name"
		while read -r id sectors sum; do
			got=$(nbdcopy "$(uri "$name/thin-$id")" - | sha256sum | cut -d' ' -f1)
			same "$got" "$sum" "$name device $id after new writes"
		done <"$W/devices"
	fi
	thincli pool close "$name"
	thincli pool forget "$name"
	rm -f "$W/$name.data" "$W/$name.meta"
done
stop_server
