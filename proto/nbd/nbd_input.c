#include "proto/nbd/nbd_input.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

bool
nbd_input_takes(const struct nbd_input *in)
{
    enum nbd_phase phase = nbd_conn_phase(in->conn);

    return (phase == NBD_PHASE_HANDSHAKE || phase == NBD_PHASE_TRANSMISSION) &&
           nbd_conn_wants_input(in->conn);
}

bool
nbd_input_give(struct nbd_input *in)
{
    while (in->kept_from < in->kept_len && nbd_input_takes(in)) {
        size_t n = nbd_conn_input(in->conn, in->kept + in->kept_from,
                                  in->kept_len - in->kept_from);

        in->kept_from += n;
        if (n == 0)
            break;
    }
    if (in->kept_from < in->kept_len)
        return false;
    nbd_input_drop(in);
    return true;
}

bool
nbd_input_wants(const struct nbd_input *in)
{
    return !in->kept && nbd_input_takes(in);
}

ssize_t
nbd_input_read(struct nbd_input *in, void *place, size_t len, nbd_read_fn read, void *arg)
{
    struct iovec payload;
    ssize_t got;
    size_t used;

    if (nbd_conn_want(in->conn, &payload, 1) > 0) {
        got = read(arg, payload.iov_base, payload.iov_len);
        if (got > 0)
            nbd_conn_received(in->conn, (size_t)got);
        return got;
    }
    got = read(arg, place, len);
    if (got <= 0)
        return got;
    used = nbd_conn_input(in->conn, place, (size_t)got);
    if (used == (size_t)got || nbd_conn_phase(in->conn) == NBD_PHASE_WANT_TLS)
        return got;
    in->kept = malloc((size_t)got - used);
    if (!in->kept)
        return -ENOMEM;
    in->kept_from = 0;
    in->kept_len = (size_t)got - used;
    memcpy(in->kept, (const uint8_t *)place + used, in->kept_len);
    return got;
}

void
nbd_input_drop(struct nbd_input *in)
{
    free(in->kept);
    in->kept = NULL;
    in->kept_from = in->kept_len = 0;
}
