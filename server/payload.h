/*
 * Payload memory: lent to requests in pieces, one budget for all connections of a loop,
 * so that a slow or hostile peer is bounded. Pieces are of power-of-two sizes and are
 * kept for reuse: after a while nothing is allocated any more.
 *
 * Belongs to one loop and its thread.
 */
#ifndef THIN_SERVER_PAYLOAD_H
#define THIN_SERVER_PAYLOAD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/queue.h>
#include <sys/uio.h>

#include "core/base/error.h"
#include "core/base/loop.h"

#define PAYLOAD_PIECE_MIN 4096u       /* bytes; also the alignment of every piece */
#define PAYLOAD_PIECE_MAX (64u << 20) /* bytes */
#define PAYLOAD_CLASSES   15u         /* 4 KiB to 64 MiB */

/*
 * Levels: a request of a client may wait for requests of this server's own, where pools
 * are stacked (stack.h), which must then find memory. Level 0 may use the whole budget,
 * each further one leaves PAYLOAD_LEVEL_BYTES more to those below (all together never more
 * than half); at the top is everyone who is no pool. A request of a pool is smaller.
 */
#define PAYLOAD_LEVELS      32u
#define PAYLOAD_LEVEL_BYTES (1u << 20)
#define PAYLOAD_ORDINARY    PAYLOAD_LEVELS

struct payload;

struct payload_piece {
    struct iovec iov; /* of the length asked for */
    size_t bytes;     /* of the piece */
    unsigned class;
    STAILQ_ENTRY(payload_piece) link;
};

/* Who was told "not now" and wants to be told when to ask again. Embed it. */
struct payload_waiter {
    void (*ready)(struct payload_waiter *waiter); /* from a task of its own */
    bool waiting;
    TAILQ_ENTRY(payload_waiter) link;
};

int payload_create(struct thin_loop *loop, uint64_t budget_bytes, struct payload **ret);
/* All pieces are back. NULL is fine. */
void payload_destroy(struct payload *payload);

/*
 * Lends `len` bytes (1 to PAYLOAD_PIECE_MAX). -THIN_E_WOULD_BLOCK: the level's share of the
 * budget is used up; `waiter` is told once when something came back. -THIN_E_LIMIT: never fits.
 */
int payload_get(struct payload *payload, size_t len, unsigned level,
                struct payload_waiter *waiter, struct payload_piece **ret);
void payload_put(struct payload *payload, struct payload_piece *piece);
void payload_cancel(struct payload *payload, struct payload_waiter *waiter);

void payload_get_stats(const struct payload *payload, uint64_t *ret_budget,
                       uint64_t *ret_lent);

#endif
