/*
 * A connection's bytes, whatever they mean: the channel (plain or TLS) on its loop,
 * reading while wanted, sending what its owner has, once for each turn of the loop, and
 * noticing peers that hang. The two faces (conn.c, nbd_face.c) are its owners.
 *
 * Home loop only. Callbacks come from the loop, never from inside a call of this
 * header; `broken` comes once, after which the owner only calls stream_fini.
 */
#ifndef THIN_SERVER_STREAM_H
#define THIN_SERVER_STREAM_H

#include <sys/types.h>
#include <sys/uio.h>

#include "core/base/loop.h"
#include "proto/channel.h"

#define STREAM_IOV_MAX      128u
#define STREAM_STALL_MS     60000u /* a peer that owes bytes or takes none is given up */
#define STREAM_BYTES_A_TURN (8u << 20) /* then others have their turn */

struct stream;

struct stream_ops {
    /* The handshake is over: channel_identity is known. */
    void (*ready)(struct stream *stream);
    /* There may be bytes: call stream_read until it says -EAGAIN or enough is read. */
    void (*readable)(struct stream *stream);
    /* Fills at most `max` pieces of what is to be sent; the same ones until `sent`. */
    unsigned (*output)(struct stream *stream, struct iovec *iov, unsigned max);
    void (*sent)(struct stream *stream, size_t bytes);
    /* True while the peer owes the rest of something. */
    bool (*owes)(struct stream *stream);
    /* 0: the peer's orderly end. Words are borrowed. */
    void (*broken)(struct stream *stream, int code, const struct thin_error *err);
};

struct stream {
    const struct stream_ops *ops;
    struct thin_loop *loop;
    struct channel *channel;
    bool shaking; /* the handshake runs */
    bool want_read;
    bool write_blocked;
    bool is_broken;
    bool more_to_read; /* decrypted bytes may wait unseen */
    bool drained;      /* the last read met the end: nothing until the descriptor tells */
    int broken_code;
    uint64_t last_progress_ns;
    uint64_t handshake_until_ns;
    struct thin_watch watch;
    struct thin_task task; /* reads what waits, sends what there is */
    struct thin_timer stall;
    struct thin_error err;
};

/*
 * Starts on `fd`, taken on success; `tls` NULL: plain. The handshake must end within
 * `handshake_ms`. -ENOMEM, -THIN_E_TLS.
 */
int stream_init(struct stream *stream, const struct stream_ops *ops,
                struct thin_loop *loop, int fd, struct channel_tls *tls,
                unsigned handshake_ms, struct thin_error *err);

/* A plain stream whose output is all sent goes on as TLS; `ready` comes again. */
int stream_start_tls(struct stream *stream, struct channel_tls *tls,
                     unsigned handshake_ms, struct thin_error *err);

/* Closes the descriptor. Harmless on a zeroed stream. */
void stream_fini(struct stream *stream);

/* Bytes, -EAGAIN, or -ENOTCONN after which `broken` follows (also for the orderly end). */
ssize_t stream_read(struct stream *stream, void *bytes, size_t len_bytes);

void stream_want_read(struct stream *stream, bool on);
/* There is output, or input is wanted again: looked after on the next turn. */
void stream_kick(struct stream *stream);

#endif
