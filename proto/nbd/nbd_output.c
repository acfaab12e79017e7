/* What is to be sent: option replies first, then the replies of requests in their order. */
#include "proto/nbd/nbd_private.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"

bool
nbd_out_put(struct nbd_conn *conn, const void *bytes, size_t len)
{
    const uint8_t *p = bytes;

    if (conn->phase == NBD_PHASE_CLOSED || conn->phase == NBD_PHASE_DRAINING)
        return false;
    if (len > NBD_HANDSHAKE_OUT_MAX - conn->out_len) {
        nbd_drain(conn, "too many unsent option replies");
        return false;
    }
    while (len > 0) {
        struct nbd_out_block *b = STAILQ_EMPTY(&conn->out) ? NULL : conn->out_last;
        size_t n;

        if (!b || b->len == sizeof(b->bytes)) {
            b = calloc(1, sizeof(*b));
            if (!b) {
                nbd_drain(conn, "out of memory for option replies");
                return false;
            }
            STAILQ_INSERT_TAIL(&conn->out, b, link);
            conn->out_last = b;
        }
        n = min_u64(len, sizeof(b->bytes) - b->len);
        memcpy(b->bytes + b->len, p, n);
        b->len += n;
        conn->out_len += n;
        p += n;
        len -= n;
    }
    return true;
}

void
nbd_out_drop(struct nbd_conn *conn)
{
    struct nbd_out_block *b;

    while ((b = STAILQ_FIRST(&conn->out))) {
        STAILQ_REMOVE_HEAD(&conn->out, link);
        free(b);
    }
    conn->out_len = 0;
}

bool
nbd_conn_has_output(const struct nbd_conn *conn)
{
    return conn->out_len > 0 || !STAILQ_EMPTY(&conn->replies);
}

/* An iovec array being filled, with bytes to be left out at its beginning. */
struct gather {
    struct iovec *iov;
    unsigned n, max;
    uint64_t skip;
};

static void
gather_add(struct gather *g, void *base, size_t len)
{
    if (g->skip >= len) {
        g->skip -= len;
        return;
    }
    g->iov[g->n].iov_base = (uint8_t *)base + g->skip;
    g->iov[g->n].iov_len = len - g->skip;
    g->skip = 0;
    g->n++;
}

/* `len` bytes of the buffer from `off` on. */
static void
gather_buffer(struct gather *g, const struct nbd_buffer *b, uint64_t off, uint64_t len)
{
    unsigned i;

    for (i = 0; i < b->iovcnt && len > 0 && g->n < g->max; i++) {
        const struct iovec *v = &b->iov[i];
        size_t n;

        if (off >= v->iov_len) {
            off -= v->iov_len;
            continue;
        }
        n = min_u64(v->iov_len - off, len);
        gather_add(g, (uint8_t *)v->iov_base + off, n);
        len -= n;
        off = 0;
    }
}

static void
gather_reply(struct gather *g, struct nbd_slot *slot)
{
    unsigned i;

    for (i = 0; i < slot->nr_pieces && g->n < g->max; i++) {
        struct nbd_piece *p = &slot->pieces[i];

        gather_add(g, p->head, p->head_len);
        if (p->data_len > 0 && g->skip >= p->data_len)
            g->skip -= p->data_len;
        else if (p->data_len > 0 && g->n < g->max)
            gather_buffer(g, &slot->req.buffer, p->data_off, p->data_len);
    }
}

unsigned
nbd_conn_output(struct nbd_conn *conn, struct iovec *iov, unsigned max)
{
    struct gather g = {.iov = iov, .max = max};
    struct nbd_out_block *b = NULL;
    struct nbd_slot *slot;

    STAILQ_FOREACH(b, &conn->out, link) {
        if (g.n == max)
            return g.n;
        g.skip = b->sent;
        gather_add(&g, b->bytes, b->len);
    }
    g.skip = conn->reply_sent;
    STAILQ_FOREACH(slot, &conn->replies, link) {
        if (g.n == max)
            break;
        gather_reply(&g, slot);
    }
    return g.n;
}

static size_t
out_sent(struct nbd_conn *conn, size_t len)
{
    while (len > 0 && conn->out_len > 0) {
        struct nbd_out_block *b = STAILQ_FIRST(&conn->out);
        size_t n = min_u64(len, b->len - b->sent);

        b->sent += n;
        conn->out_len -= n;
        len -= n;
        if (b->sent == b->len) {
            STAILQ_REMOVE_HEAD(&conn->out, link);
            free(b);
        }
    }
    return len;
}

void
nbd_conn_sent(struct nbd_conn *conn, size_t len)
{
    if (conn->phase == NBD_PHASE_CLOSED)
        return;
    conn->depth++;
    len = out_sent(conn, len);
    while (len > 0) {
        struct nbd_slot *slot = STAILQ_FIRST(&conn->replies);
        uint64_t left;

        THIN_ASSERT(slot != NULL);
        left = slot->reply_len - conn->reply_sent;
        if (len < left) {
            conn->reply_sent += len;
            break;
        }
        len -= left;
        conn->reply_sent = 0;
        STAILQ_REMOVE_HEAD(&conn->replies, link);
        nbd_slot_release(slot);
    }
    if (conn->hs && conn->out_len == 0)
        nbd_list_more(conn);
    conn->depth--;
}
