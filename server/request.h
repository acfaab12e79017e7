/*
 * One request of our own protocol, from its decoded message to its reply. The reply
 * goes to the connection that it came on (or, after a resume, to the one that asked
 * again); if there is none any more, it is dropped, and what the request did stands.
 * Main loop only.
 */
#ifndef THIN_SERVER_REQUEST_H
#define THIN_SERVER_REQUEST_H

#include "core/pool/pool.h"
#include "proto/frame.h"
#include "server/session.h"

#define REQUEST_REPLY_BYTES 1024u /* a data request's encoded reply: built in place */
#define REQUEST_ARENA_MAX   (1u << 20) /* bytes of a management request's decoded form */
#define REQUEST_EXTENTS     (2 * PROTO_HOLES_MAX + 1)

struct request {
    struct server *server;
    struct session *session;
    struct conn *conn; /* the receiver; NULL: gone */
    uint32_t slot;     /* 0: hello and its like, no slot */
    uint64_t seq;
    Thin__Request__BodyCase kind;
    uint64_t credit_bytes;
    bool repeatable;  /* changes nothing: carried out again rather than kept */
    bool receiving;   /* its payload is not whole yet */
    bool in_pieces;   /* a piece of the answer has gone out, or had nowhere to go */
    bool pieces_lost; /* the receiver is another one since: it lacks what went before */
    bool cancelled;   /* the client has lost interest */
    /* Called once when the peer has taken what was queued for it, or is gone. */
    void (*room)(struct request *rq);

    /* Data requests. */
    struct session_volume *volume;
    struct payload_piece *piece;
    size_t piece_filled; /* of a write being received */
    bool want_crc, has_crc;
    uint32_t payload_crc;
    uint32_t max_extents;
    uint64_t epoch;
    bool counted; /* by attach_begin */
    struct payload_waiter waiter;
    struct volume_io io;
    struct volume_extent extents[REQUEST_EXTENTS];

    /* Management requests: the message lives in `arena`. */
    void *arena;
    Thin__Request *message;
    void *work; /* the handler's; freed with the request */

    /* The reply on its way out. */
    uint8_t reply[REQUEST_REPLY_BYTES];
    TAILQ_ENTRY(request) link;
};

/* Whoever begins a request ends it with exactly one of request_reply*, or of these two
   after any number of request_reply_more. */
/* Success or failure without a body; words may be NULL. */
void request_reply_code(struct request *rq, int code, const struct thin_error *err);
/* With a body set in `reply` (slot, seq are filled in); borrowed for the call. */
void request_reply(struct request *rq, Thin__Reply *reply);
/* One of several; more follow. `payload` is copied. A receiver that changed in between is
   told in the end that its answer is not whole, never that all is well. */
void request_reply_more(struct request *rq, Thin__Reply *reply, const void *payload,
                        size_t payload_bytes);
/* The reply of a data request: the payload is what `piece` holds in `iov`s. */
void request_reply_data(struct request *rq, Thin__Reply *reply, const struct iovec *iov,
                        unsigned nr_iov);

/*
 * Between the replies of a long answer: `room` when the next one may be queued, so that
 * a peer who does not read is owed a bounded number of bytes. Maybe at once.
 * `room` asks request_is_wanted: false when its receiver is gone or has cancelled it, and
 * then ends it with request_reply_code.
 */
void request_wait_room(struct request *rq, void (*room)(struct request *rq));
bool request_is_wanted(const struct request *rq);
/* The connection has sent much of what it had. */
void requests_room(struct session *session, const struct conn *conn);

/* The asker has `right` on `object`, or words for why not (auth_check). */
int request_may(const struct request *rq, const char *object, enum auth_right right,
                struct thin_error *err);

/*
 * From conn.c. A message that passed frame_check: begins its request, answers it, or
 * (with a payload) gives it in *ret_receiving to be filled. Negative: close.
 */
int request_arrived(struct conn *conn, const void *bytes, size_t len,
                    uint32_t payload_bytes, struct request **ret_receiving,
                    struct thin_error *err);
/* Its payload needs memory (rq->piece); else it is thrown away while it comes. */
bool request_wants_piece(const struct request *rq);
void request_refuse(struct request *rq, int code); /* answered so once it is whole */
void request_received(struct request *rq);
/* The rest will not come, or it is as if it had not: no answer, the number is free. */
void request_abandon(struct request *rq);
void requests_forget_conn(struct session *session, const struct conn *conn);
void requests_forget_all(struct session *session);
void requests_fini(void);

/* dispatch.c: runs the handler of a decoded request. */
void dispatch_request(struct request *rq);
/* True for the kinds that the data path handles (ops_data.c). */
bool dispatch_is_data(Thin__Request__BodyCase kind);

/* ops_data.c */
/* Takes what it needs of the message. 0, or a code to answer with (a payload is received
   and thrown away then). */
int ops_data_prepare(struct request *rq, const Thin__Request *message,
                     uint32_t payload_bytes);
void ops_data_submit(struct request *rq);

/* ops_volume.c: the last request of a volume that is being closed has ended. */
void ops_volume_quiet(struct session_volume *volume);

#endif
