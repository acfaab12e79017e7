/*
 * A device on any NBD server, by libnbd, over TCP or a unix socket, with or without TLS.
 *
 * What becomes of a lost connection: as long as every write is covered by a successful
 * flush and none is in flight, it is made again with growing pauses, and reads, flushes
 * and writes that had not been sent wait for it. Otherwise the server may have come back
 * without something that was acknowledged, or may still carry out what it had taken in:
 * the device is `lost`, and everything fails with -THIN_E_LOST until it is opened anew.
 * Whoever opens it anew after that must know that a write which was in flight may still
 * land, for as long as the old server lives and holds it.
 *
 * A server that says nothing at all for `answer_timeout_ms` while it owes an answer
 * counts as gone. A request that has waited as long for a connection ends with
 * -THIN_E_TIMED_OUT.
 *
 * A FLUSH or FUA write that the server fails makes each later one fail too, until the
 * device is opened anew. FUA is a write and a flush where the server does not know it.
 *
 * GROW only takes notice: 0 up to what the server has. Beyond what it had at the last
 * connect a connection of its own looks anew, and if the export is larger, all others are
 * made anew, after a flush; requests wait meanwhile. -THIN_E_UNSUPPORTED if the export is
 * smaller than that, other codes if nobody answers. ALLOCATE is -THIN_E_UNSUPPORTED.
 *
 * Everything on the loop. One short-lived thread for each attempt to connect, since
 * looking up a name waits. libnbd allocates some 200 bytes for each command.
 */
#ifndef THIN_CORE_DEVICE_DEVICE_NBD_H
#define THIN_CORE_DEVICE_DEVICE_NBD_H

#include "core/device/device.h"

#define DEVICE_NBD_CONNECTIONS_MAX 8u
#define DEVICE_NBD_CONNECT_MS      10000u
#define DEVICE_NBD_ANSWER_MS       60000u

#define DEVICE_NBD_ASK_NAMES_MAX 128u /* names in one answer */
#define DEVICE_NBD_ASK_NAME_MAX  96u  /* bytes of one, with NUL */

/*
 * A question to the server, put at every connection before the export is opened: which
 * meta contexts does it list for `query`? No names from a server that does not know
 * the question.
 */
struct device_nbd_ask {
    const char *query; /* NULL: nothing is asked. Copied */
    /* On the loop. 0, or negative with words: then the export is not opened, and a device
       that was open is lost. -THIN_E_LIMIT is said by the device for too many names. */
    int (*answered)(void *arg, const char *const *names, unsigned nr,
                    struct thin_error *err);
    void (*gone)(
        void *arg); /* last call, if device_nbd_open gave 0: the device is freed */
    void *arg;
};

struct device_nbd_params {
    /*
     * nbd://HOST[:PORT]/EXPORT, nbds:// with TLS, nbd+unix:///EXPORT?socket=PATH. For
     * nbds the server must prove who it is: by the system's authorities, or by those in
     * the folder that ?tls-certificates=DIR names (ca-cert.pem, and client-cert.pem and
     * client-key.pem for the server); or ?tls-psk-file=FILE.
     */
    const char *uri; /* borrowed until device_nbd_open returns */
    bool read_only;
    unsigned connections;        /* 0: 1. More than one only if the server allows it */
    unsigned connect_timeout_ms; /* 0: DEVICE_NBD_CONNECT_MS */
    unsigned answer_timeout_ms;  /* 0: DEVICE_NBD_ANSWER_MS */
    struct device_nbd_ask ask;
};

/* `dev` is NULL when `result` is negative; `err` lives until this returns. */
typedef void device_nbd_opened_fn(void *arg, struct device *dev, int result,
                                  const struct thin_error *err);

/*
 * Starts to connect; one attempt. 0: `opened` follows once, on the loop, never inside
 * this call, at the latest after connect_timeout_ms. Negative: not started, no `opened`:
 *   -THIN_E_INVALID  no URI, or too many connections
 *   -ENOMEM
 * To `opened`:
 *   -THIN_E_TIMED_OUT
 *   -THIN_E_READ_ONLY    to be written, but the server does not allow it
 *   -THIN_E_UNSUPPORTED  to be written, but the server cannot flush, or takes no
 *                        requests of 512 bytes (read-only this is bridged)
 *   -THIN_E_DISCONNECTED, -errno  what libnbd met, in words
 */
MUST_CHECK int device_nbd_open(struct thin_loop *loop,
                               const struct device_nbd_params *params,
                               device_nbd_opened_fn *opened, void *arg,
                               struct thin_error *err);

/* The waiting form, for tools and tests: runs the loop until it is open. */
MUST_CHECK int device_nbd_open_wait(struct thin_loop *loop,
                                    const struct device_nbd_params *params,
                                    struct device **ret_dev, struct thin_error *err);

#endif
