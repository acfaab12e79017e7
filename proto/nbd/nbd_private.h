/* The inside of struct nbd_conn, shared by the files of this folder. */
#ifndef THIN_PROTO_NBD_PRIVATE_H
#define THIN_PROTO_NBD_PRIVATE_H

#include <errno.h>
#include <sys/queue.h>

#include "core/base/assert.h"
#include "proto/nbd/nbd_server.h"
#include "proto/nbd/nbd_wire.h"

/* With more unsent than this, no further option is looked at. */
#define NBD_HANDSHAKE_OUT_SOFT (64u << 10)

/* Data, hole, data ... : one piece for each hole and one around each. */
#define NBD_PIECES (2 * NBD_HOLES_PER_READ + 1)

_Static_assert(NBD_PIECES >= NBD_MAX_CONTEXTS, "a block status has a piece per context");

/* One header and what follows it out of the request's buffer. */
struct nbd_piece {
    uint8_t head[48]; /* longest: an extended OFFSET_HOLE, 44 bytes */
    uint32_t head_len;
    uint32_t data_len;
    uint64_t data_off;
};

/* What has been said of one context: the last extent may still grow. */
struct nbd_said {
    uint64_t covered; /* bytes, with the last extent */
    uint64_t last_len;
    uint32_t last_status;
    uint32_t nr;
};

struct nbd_hole {
    uint64_t offset, len;
};

enum nbd_slot_state { NBD_SLOT_FREE, NBD_SLOT_TAKEN, NBD_SLOT_SUBMITTED, NBD_SLOT_REPLY };

/* A request object; the owner sees `req`, and his extra bytes behind all of it. */
struct nbd_slot {
    struct nbd_request req;
    enum nbd_slot_state state;
    STAILQ_ENTRY(nbd_slot) link; /* of the free list, or of the replies */
    uint64_t cookie;             /* as it stood on the wire */
    uint32_t error;              /* NBD's; found before submit */
    bool has_buffer;
    union {
        struct {
            unsigned nr;
            struct nbd_hole at[NBD_HOLES_PER_READ];
        } holes;
        struct {
            uint32_t max; /* extents for which the buffer has room, of each context */
            struct nbd_said of[NBD_MAX_CONTEXTS];
        } said;
    } u;
    unsigned nr_pieces;
    uint64_t reply_len; /* of all pieces */
    struct nbd_piece pieces[NBD_PIECES];
};

STAILQ_HEAD(nbd_slot_list, nbd_slot);

/* Option replies wait in small blocks that never move once filled. */
struct nbd_out_block {
    STAILQ_ENTRY(nbd_out_block) link;
    size_t len, sent;
    uint8_t bytes[4064];
};

STAILQ_HEAD(nbd_out_list, nbd_out_block);

/*
 * What is expected next from the peer.
 *
 *     CLIENT_FLAGS -> OPTION_HEAD -> OPTION_DATA -> (WAIT_ANSWER) -> OPTION_HEAD
 *                                \-> OPTION_SKIP ->               \-> REQUEST_HEAD
 *     REQUEST_HEAD -> (WAIT_BUFFER) -> PAYLOAD -> REQUEST_HEAD
 *                  \-> PAYLOAD_SKIP ----------/
 */
enum nbd_in_state {
    NBD_IN_CLIENT_FLAGS,
    NBD_IN_OPTION_HEAD,
    NBD_IN_OPTION_DATA, /* kept, to be parsed when complete */
    NBD_IN_OPTION_SKIP, /* thrown away, but the option is answered at its end */
    NBD_IN_WAIT_ANSWER, /* of the owner: open, list, contexts */
    NBD_IN_REQUEST_HEAD,
    NBD_IN_WAIT_BUFFER,
    NBD_IN_PAYLOAD,
    NBD_IN_PAYLOAD_SKIP, /* `current` has its error already */
    NBD_IN_STOPPED,      /* everything is thrown away */
};

enum nbd_wait { NBD_WAIT_NONE, NBD_WAIT_LIST, NBD_WAIT_OPEN, NBD_WAIT_CONTEXTS };

/* Needed only until transmission starts. */
struct nbd_handshake {
    uint32_t option;
    uint32_t option_len;
    uint32_t option_have;
    uint8_t *option_data; /* option_len bytes and one more */
    bool too_big;         /* longer than allowed: said, then closed */

    struct nbd_open wish;
    unsigned info_asked; /* bit n: NBD_INFO n */
    struct nbd_context_wish contexts_wish;
    struct nbd_query queries[NBD_MAX_QUERIES];

    char *list_after; /* the last export listed */
    bool list_cut;    /* that one filled the output */

    char *contexts_for; /* the export for which contexts are chosen, or NULL */
    size_t contexts_for_len;
};

struct nbd_conn {
    struct nbd_config config;
    enum nbd_phase phase; /* never FINISHED: that is DRAINING and quiet */
    const char *why;
    unsigned depth; /* inside a call that shows its effects when it returns */
    bool shutting_down;
    bool told_idle;

    /* negotiated */
    bool fixed_newstyle, no_zeroes, tls_on, structured, extended;

    /* input */
    enum nbd_in_state in_state;
    uint8_t head[NBD_EXTENDED_REQUEST_BYTES];
    uint32_t head_have;
    struct nbd_slot *current; /* WAIT_BUFFER, PAYLOAD, PAYLOAD_SKIP */
    uint64_t payload_left;
    unsigned payload_iov; /* where the next byte goes: piece, and offset in it */
    size_t payload_off;

    /* output */
    struct nbd_out_list out;
    struct nbd_out_block *out_last; /* of a list that is not empty */
    size_t out_len;                 /* unsent bytes in `out` */
    struct nbd_slot_list replies;
    uint64_t reply_sent; /* of the first reply */

    enum nbd_wait wait;
    struct nbd_handshake *hs; /* NULL in transmission */

    /* transmission */
    bool export_open;
    void *handle;
    uint64_t size;
    unsigned export_flags;
    uint32_t min_block; /* enforced; 1 if the client was told none */
    uint32_t max_payload;
    uint64_t contexts[NBD_MAX_CONTEXTS];
    unsigned nr_contexts;
    uint8_t *slots;
    size_t slot_stride, slot_extra_at;
    uint32_t slots_used; /* those beyond were never touched */
    struct nbd_slot_list free_slots;
    unsigned in_flight;
};

/* nbd_conn.c */
void nbd_drain(struct nbd_conn *conn, const char *why);
void nbd_wake(struct nbd_conn *conn);
void nbd_maybe_idle(struct nbd_conn *conn);
bool nbd_runs(const struct nbd_conn *conn);

/* nbd_output.c: false when out of memory or over the limit: the connection drains then. */
bool nbd_out_put(struct nbd_conn *conn, const void *bytes, size_t len);
void nbd_out_drop(struct nbd_conn *conn);

/* nbd_handshake.c */
bool nbd_option_reply(struct nbd_conn *conn, uint32_t type, const void *bytes,
                      size_t len);
void nbd_option_error(struct nbd_conn *conn, uint32_t type, const char *text);
void nbd_option_next(struct nbd_conn *conn);
void nbd_option_head(struct nbd_conn *conn);
void nbd_option_complete(struct nbd_conn *conn);
void nbd_client_flags(struct nbd_conn *conn);
uint32_t nbd_option_error_of(int code);
bool nbd_name_valid(const uint8_t *name, size_t len);
void nbd_handshake_free(struct nbd_conn *conn);

/* nbd_export.c */
void nbd_option_export_name(struct nbd_conn *conn);
void nbd_option_info(struct nbd_conn *conn, bool go);
void nbd_option_list(struct nbd_conn *conn);
void nbd_list_more(struct nbd_conn *conn);

/* nbd_context.c */
void nbd_option_contexts(struct nbd_conn *conn, bool list);
void nbd_contexts_forget(struct nbd_conn *conn);

/* nbd_request.c */
MUST_CHECK int nbd_slots_create(struct nbd_conn *conn);
bool nbd_slot_free_is_left(const struct nbd_conn *conn);
void nbd_slot_release(struct nbd_slot *slot);
void nbd_slot_put_buffer(struct nbd_slot *slot);
uint32_t nbd_request_head_bytes(const struct nbd_conn *conn);
void nbd_request_head(struct nbd_conn *conn);
void nbd_try_buffer(struct nbd_conn *conn);
void nbd_payload_put(struct nbd_conn *conn, const uint8_t *bytes, size_t len);
void nbd_payload_complete(struct nbd_conn *conn);

/* nbd_reply.c: builds the pieces and queues them. */
void nbd_reply_error(struct nbd_slot *slot, uint32_t error);
void nbd_reply_ok(struct nbd_slot *slot);
uint32_t nbd_extent_bytes(const struct nbd_conn *conn);

static inline struct nbd_slot *
nbd_slot_of(struct nbd_request *req)
{
    return (struct nbd_slot *)(void *)req; /* `req` is the first member */
}

#endif
