/*
 * The way of an NBD peer's bytes from wherever they come into its state machine: large
 * payloads straight into their place, the rest through one place that all connections
 * may share, and what the machine does not take yet kept until it does.
 *
 * The thread of the connection. The memory kept is at most what one read brought.
 */
#ifndef THIN_PROTO_NBD_NBD_INPUT_H
#define THIN_PROTO_NBD_NBD_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "proto/nbd/nbd_server.h"

struct nbd_input {
    struct nbd_conn *conn; /* set by the owner; the rest is zeroed */
    uint8_t *kept;
    size_t kept_from, kept_len;
};

/* Bytes into `place`: how many, or a code <= 0, which is handed on. */
typedef ssize_t (*nbd_read_fn)(void *arg, void *place, size_t len);

/* True if the machine takes bytes now: kept ones, or such as are still to be read. */
bool nbd_input_takes(const struct nbd_input *in);

/* Hands in what was kept; true when nothing is left of it, so that more may be read. */
bool nbd_input_give(struct nbd_input *in);

/* True if more bytes are to be read now: nothing is kept, and the machine wants some. */
bool nbd_input_wants(const struct nbd_input *in);

/*
 * One call of `read`, while nbd_input_wants; what it brought is handed in. `place`, `len`:
 * where bytes may stand until this returns. Plain bytes behind a STARTTLS are thrown
 * away. Returns what `read` did, or -ENOMEM, which ends the connection.
 */
ssize_t nbd_input_read(struct nbd_input *in, void *place, size_t len, nbd_read_fn read,
                       void *arg);

/* Forgets what is kept. */
void nbd_input_drop(struct nbd_input *in);

#endif
