#!/usr/bin/env bash
# What `make install` puts down is enough to build against and to run.
. "$(dirname "$0")/lib.sh"
need_tools make pkg-config
make -s -C "$BUILD/.." install DESTDIR="$W/dest" prefix=/usr/local >"$W/out" 2>&1 || {
	tail "$W/out"
	fail "make install"
}
D=$W/dest/usr/local
export PKG_CONFIG_PATH=$D/lib/pkgconfig PKG_CONFIG_SYSROOT_DIR=$W/dest LD_LIBRARY_PATH=$D/lib
cc=${CC:-cc}
flags=(-std=c99 -Wall -Wextra -Wpedantic -Werror "${sanitizer_flags[@]}")

start_server
new_pool tank 256M
thincli volume create tank/v 16M

for how in "" --static; do
	echo "examples, linked through pkg-config ${how:-shared}"
	for example in "write-read libthinclient" "list-volumes libthinmeta"; do
		read -r name lib <<<"$example"
		read -ra cflags <<<"$(pkg-config --cflags "$lib")"
		read -ra libs <<<"$(pkg-config $how --libs "$lib")"
		# Ours from the archive, the others' as they come.
		[ -z "$how" ] || libs=("${libs[@]/#-l"${lib#lib}"/-l:$lib.a}")
		"$cc" "${flags[@]}" -o "$W/$name" "${cflags[@]}" "$SRC/tests/examples/$name.c" "${libs[@]}"
		[ -z "$how" ] || ! ldd "$W/$name" | grep_q "$lib" || fail "$name is not static"
	done
	same "$("$W/write-read" "$THIN_SERVER" tank/v)" "thin volumes are made of written blocks only"
	must_fail 1 "no such volume" "$W/write-read" "$THIN_SERVER" tank/none
	thincli pool close tank
	"$W/list-volumes" "$W/tank.meta" | grep_q "^volume 1: 1 blocks" || fail "list-volumes"
	thincli pool open tank
done

echo "nothing but the interface is exported"
for lib in thinclient thinmeta; do
	nm -D --defined-only "$D/lib/lib$lib.so" | awk '$2 != "A" { print $3 }' |
		grep -v "^thin_client_\|^thinmeta_" >"$W/others" && fail "lib$lib.so exports $(head -n 3 "$W/others")"
done

echo "what was installed runs"
"$D/bin/thincli" --server "$THIN_SERVER" server status | grep_q "^version"
same "$("$D/sbin/thinsrv" --version)" "$(thinsrv --version)"
stop_server
check_pool tank
