/* What conn.c (life and output) and conn_in.c (input) share. */
#ifndef THIN_SERVER_CONN_PRIVATE_H
#define THIN_SERVER_CONN_PRIVATE_H

#include "server/conn.h"
#include "server/request.h"
#include "server/stream.h"

#define CONN_RECV_BYTES     (256u << 10) /* read from the socket at once */
#define CONN_OUT_FRAMES_MAX 4096u /* queued replies, however small; then reading pauses */
#define CONN_SPARE_MAX      64u   /* kept for reuse */

/* Something to be sent: memory of its own, or a request's head and payload. */
struct out_frame {
    struct request *rq; /* NULL: `memory` */
    void (*sent)(struct request *rq);
    void *memory;
    unsigned nr_iov;
    struct iovec iov[1 + CONN_PIECES];
    TAILQ_ENTRY(out_frame) link;
};

TAILQ_HEAD(out_list, out_frame);
TAILQ_HEAD(conn_list, conn);

struct conn {
    struct server *server;
    struct stream stream;
    struct session *session; /* NULL before hello */
    struct auth_peer peer;
    char peer_text[128];
    bool local;
    bool counted_handshake;
    bool closing;  /* no more input, output dropped */
    bool ending;   /* no more input; closes when the output is sent */
    uint8_t *kept; /* bytes not parsed yet */
    size_t kept_len, kept_size;
    struct request *receiving; /* whose payload comes now */
    uint64_t payload_left;     /* of the frame being received */
    struct request *waiting;   /* whose payload waits for memory */
    struct payload_waiter waiter;
    struct out_list out, spare;
    unsigned nr_out, nr_spare;
    uint64_t out_bytes;
    uint64_t last_heard_ns;
    struct thin_timer silence;
    struct thin_task end_task;
    TAILQ_ENTRY(conn) link;
};

/* The peer does not take its replies. */
static inline bool
conn_is_full(const struct conn *c)
{
    return c->out_bytes >= CONN_OUT_MAX || c->nr_out >= CONN_OUT_FRAMES_MAX;
}

/* Closes on a turn of its own; input and output end here. */
void conn_start_end(struct conn *c);

/* True while frames may be taken: the other side has credit left and reads its replies. */
bool conn_may_parse(const struct conn *c);
/* Reads and parses what there is. `recv`: a place of CONN_RECV_BYTES, empty between
   turns. */
void conn_parse(struct conn *c, uint8_t *recv);
/* There is memory for the payload that waited for it. */
void conn_memory_ready(struct payload_waiter *waiter);

#endif
