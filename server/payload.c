#include "server/payload.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"

STAILQ_HEAD(piece_list, payload_piece);
TAILQ_HEAD(waiter_list, payload_waiter);

struct payload {
    struct thin_loop *loop;
    uint64_t budget;
    uint64_t lent; /* bytes with requests */
    uint64_t kept; /* bytes in the free lists */
    struct piece_list free_pieces[PAYLOAD_CLASSES];
    struct waiter_list waiters;
    struct thin_task wake;
};

static void
wake_waiters(struct thin_task *task)
{
    struct payload *p = container_of(task, struct payload, wake);
    struct payload_waiter end = {.waiting = true};
    struct payload_waiter *w;

    /* Whoever finds nothing again queues behind `end` and waits for the next time. It is
       one of our own, since who is told may cancel any other. */
    TAILQ_INSERT_TAIL(&p->waiters, &end, link);
    while ((w = TAILQ_FIRST(&p->waiters)) != &end) {
        TAILQ_REMOVE(&p->waiters, w, link);
        w->waiting = false;
        w->ready(w);
    }
    TAILQ_REMOVE(&p->waiters, &end, link);
}

int
payload_create(struct thin_loop *loop, uint64_t budget_bytes, struct payload **ret)
{
    struct payload *p = calloc(1, sizeof(*p));

    if (!p)
        return -ENOMEM;
    p->loop = loop;
    p->budget = budget_bytes;
    for (unsigned i = 0; i < PAYLOAD_CLASSES; i++)
        STAILQ_INIT(&p->free_pieces[i]);
    TAILQ_INIT(&p->waiters);
    p->wake.run = wake_waiters;
    *ret = p;
    return 0;
}

static void
free_piece(struct payload_piece *piece)
{
    free(piece->iov.iov_base);
    free(piece);
}

/* Frees kept pieces until `need` more bytes fit the budget; largest first. */
static bool
make_room(struct payload *p, uint64_t need)
{
    for (unsigned c = PAYLOAD_CLASSES; c-- > 0 && p->lent + p->kept + need > p->budget;) {
        struct payload_piece *piece;

        while (p->lent + p->kept + need > p->budget &&
               (piece = STAILQ_FIRST(&p->free_pieces[c]))) {
            STAILQ_REMOVE_HEAD(&p->free_pieces[c], link);
            p->kept -= piece->bytes;
            free_piece(piece);
        }
    }
    return p->lent + p->kept + need <= p->budget;
}

void
payload_destroy(struct payload *p)
{
    if (!p)
        return;
    THIN_ASSERT(p->lent == 0);
    loop_defer_cancel(p->loop, &p->wake);
    make_room(p, p->budget);
    free(p);
}

static unsigned
class_of(size_t len)
{
    unsigned c = 0;

    while (((size_t)PAYLOAD_PIECE_MIN << c) < len)
        c++;
    return c;
}

static void
wait_for_room(struct payload *p, struct payload_waiter *waiter)
{
    if (waiter->waiting)
        return;
    waiter->waiting = true;
    TAILQ_INSERT_TAIL(&p->waiters, waiter, link);
}

int
payload_get(struct payload *p, size_t len, unsigned level, struct payload_waiter *waiter,
            struct payload_piece **ret)
{
    uint64_t step = min_u64(PAYLOAD_LEVEL_BYTES, p->budget / 2 / PAYLOAD_LEVELS);
    uint64_t share = p->budget - level * step;
    struct payload_piece *piece;
    size_t bytes;
    unsigned c;

    THIN_ASSERT(level <= PAYLOAD_LEVELS);
    if (len == 0 || len > PAYLOAD_PIECE_MAX)
        return -THIN_E_LIMIT;
    c = class_of(len);
    bytes = (size_t)PAYLOAD_PIECE_MIN << c;
    if (bytes > share)
        return -THIN_E_LIMIT;
    if (p->lent + bytes > share) {
        wait_for_room(p, waiter);
        return -THIN_E_WOULD_BLOCK;
    }
    piece = STAILQ_FIRST(&p->free_pieces[c]);
    if (piece) {
        STAILQ_REMOVE_HEAD(&p->free_pieces[c], link);
        p->kept -= bytes;
    } else {
        if (!make_room(p, bytes)) {
            wait_for_room(p, waiter);
            return -THIN_E_WOULD_BLOCK;
        }
        piece = calloc(1, sizeof(*piece));
        if (piece)
            piece->iov.iov_base = aligned_alloc(PAYLOAD_PIECE_MIN, bytes);
        if (!piece || !piece->iov.iov_base) {
            free(piece);
            if (p->lent == 0)
                return -ENOMEM;
            wait_for_room(p, waiter);
            return -THIN_E_WOULD_BLOCK;
        }
        piece->class = c;
        piece->bytes = bytes;
    }
    piece->iov.iov_len = len;
    p->lent += bytes;
    *ret = piece;
    return 0;
}

void
payload_put(struct payload *p, struct payload_piece *piece)
{
    p->lent -= piece->bytes;
    p->kept += piece->bytes;
    STAILQ_INSERT_HEAD(&p->free_pieces[piece->class], piece, link);
    if (!TAILQ_EMPTY(&p->waiters))
        loop_defer(p->loop, &p->wake);
}

void
payload_cancel(struct payload *p, struct payload_waiter *waiter)
{
    if (!waiter->waiting)
        return;
    TAILQ_REMOVE(&p->waiters, waiter, link);
    waiter->waiting = false;
}

void
payload_get_stats(const struct payload *p, uint64_t *ret_budget, uint64_t *ret_lent)
{
    *ret_budget = p->budget;
    *ret_lent = p->lent;
}
