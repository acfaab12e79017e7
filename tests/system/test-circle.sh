#!/usr/bin/env bash
# Circles through a server that knows nothing of pools on pools: an nbdkit between two
# daemons passes on bytes and no questions. They cannot be seen from outside; what must hold
# is that nobody waits for ever, and that there is a word.
. "$(dirname "$0")/lib.sh"
need_tools nbdsh nbdcopy nbdkit thin_check
. "$SRC/tests/system/nodes.sh"
for n in one two; do start_node $n; done
on one pool create a --data "$W/a.data:128M" --metadata "$W/a.meta:16M" --on-full error
on one volume create a/v 128M
on two pool create b --data "$(node_uri one a/v)" --metadata "$W/b.meta:16M" --on-full error
on two volume create b/w 128M
nbdkit -U "$W/proxy.sock" -f nbd "$(node_uri two b/w)" >"$W/proxy.log" 2>&1 &
ALSO_KILL="$ALSO_KILL $!"
disown
wait_until 30 "nbdkit does not start" test -S "$W/proxy.sock"
proxy="nbd+unix:///?socket=$W/proxy.sock"
nbdsh -u "$(node_uri two b/w)" -c 'h.pwrite(b"x" * 4194304, 0); h.flush()'

echo "an origin that stands on its own pool by way of another server: read to its end"
must_fail 1 "itself" on one volume create a/x 16M --origin "$(node_uri two b/w)"
on one volume create a/x 16M --origin "$proxy"
same "$(timeout 120 nbdcopy "$(node_uri one a/x)" - | wc -c)" 16777216
timeout 120 env PATH="/usr/bin:$PATH" nbdsh -u "$(node_uri one a/x)" -c '
import os
data = os.urandom(1 << 20)
for i in range(16):
    h.pwrite(data[:4097], i << 20)
h.flush()
assert h.pread(4097, 3 << 20) == data[:4097]
assert h.pread(4096, (3 << 20) + 8192) == b"x" * 4096
' || fail "writes over such an origin"
on one volume delete a/x

echo "a data device that stands on its own pool in such a way: refused in bounded time"
on one pool close a --force
on one pool forget a
began=$SECONDS
must_fail 1 "read the catalogue.*stands on this pool" timeout 200 "$BUILD/thincli" --server "$(node_socket one)" pool import a --data "$proxy" --metadata "$W/a.meta"
echo "refused after $((SECONDS - began)) s"
same "$(on one --json pool list | field "len(d['pools'])")" 0
on one pool import a --data "$W/a.data" --metadata "$W/a.meta"
wait_open "$(node_socket one)" a
# What b had not flushed is lost to it, or not: it is opened anew.
on two pool close b --force || true
on two pool open b || true
wait_open "$(node_socket two)" b
nbdsh -u "$(node_uri two b/w)" -c 'assert h.pread(4194304, 0) == b"x" * 4194304'
for n in two one; do stop_node $n; done
for p in a b; do check_pool $p; done
