/*
 * Replies: simple, structured or extended, one style for a whole connection. A reply is
 * complete before its first byte goes out, so that an error never follows a success.
 */
#include "proto/nbd/nbd_private.h"

#include <string.h>

#include "core/base/bytes.h"
#include "core/base/checked.h"

#define EXTENT_BYTES          8u
#define EXTENDED_EXTENT_BYTES 16u

uint32_t
nbd_error_of(int code)
{
    switch (thin_error_errno(code)) {
    case 0:
        return 0;
    case EPERM:
    case EACCES:
    case EROFS:
        return NBD_WIRE_EPERM;
    case ENOMEM:
        return NBD_WIRE_ENOMEM;
    case EINVAL:
        return NBD_WIRE_EINVAL;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return NBD_WIRE_ENOSPC;
    case EOVERFLOW:
        return NBD_WIRE_EOVERFLOW;
    case EOPNOTSUPP:
        return NBD_WIRE_ENOTSUP;
    case ESHUTDOWN:
        return NBD_WIRE_ESHUTDOWN;
    default:
        return NBD_WIRE_EIO;
    }
}

/* ---- bytes in the owner's buffer --------------------------------------------------- */

/* Stores `bytes` (NULL: zeros) at `off` of the buffer. */
static void
buffer_store(const struct nbd_buffer *b, uint64_t off, const uint8_t *bytes, uint64_t len)
{
    unsigned i;

    for (i = 0; i < b->iovcnt && len > 0; i++) {
        const struct iovec *v = &b->iov[i];
        size_t n;

        if (off >= v->iov_len) {
            off -= v->iov_len;
            continue;
        }
        n = min_u64(v->iov_len - off, len);
        if (bytes) {
            memcpy((uint8_t *)v->iov_base + off, bytes, n);
            bytes += n;
        } else {
            memset((uint8_t *)v->iov_base + off, 0, n);
        }
        len -= n;
        off = 0;
    }
}

/* ---- pieces ------------------------------------------------------------------------ */

/* A chunk's head for `length` bytes behind it, which the caller adds. */
static struct nbd_piece *
piece_add(struct nbd_slot *slot, uint16_t type, uint64_t length)
{
    const struct nbd_conn *conn = slot->req.conn;
    struct nbd_piece *p;
    uint8_t *h;

    THIN_ASSERT(slot->nr_pieces < NBD_PIECES);
    p = &slot->pieces[slot->nr_pieces++];
    h = p->head;
    p->data_len = 0;
    p->data_off = 0;
    store_be32(h, conn->extended ? NBD_EXTENDED_REPLY_MAGIC : NBD_STRUCTURED_REPLY_MAGIC);
    store_be16(h + 4, 0);
    store_be16(h + 6, type);
    memcpy(h + 8, &slot->cookie, sizeof(slot->cookie));
    if (conn->extended) {
        store_be64(h + 16, slot->req.offset);
        store_be64(h + 24, length);
        p->head_len = NBD_EXTENDED_CHUNK_BYTES;
    } else {
        store_be32(h + 16, (uint32_t)length);
        p->head_len = NBD_CHUNK_BYTES;
    }
    return p;
}

static void
piece_put64(struct nbd_piece *p, uint64_t v)
{
    store_be64(p->head + p->head_len, v);
    p->head_len += 8;
}

static void
piece_put32(struct nbd_piece *p, uint32_t v)
{
    store_be32(p->head + p->head_len, v);
    p->head_len += 4;
}

static void
piece_put16(struct nbd_piece *p, uint16_t v)
{
    store_be16(p->head + p->head_len, v);
    p->head_len += 2;
}

/* The last chunk says so; then the reply waits for the socket. */
static void
queue(struct nbd_slot *slot)
{
    struct nbd_conn *conn = slot->req.conn;
    const bool was_empty = !nbd_conn_has_output(conn);
    unsigned i;

    if (conn->structured)
        store_be16(slot->pieces[slot->nr_pieces - 1].head + 4, NBD_CHUNK_FLAG_DONE);
    for (i = 0; i < slot->nr_pieces; i++)
        slot->reply_len += (uint64_t)slot->pieces[i].head_len + slot->pieces[i].data_len;
    slot->state = NBD_SLOT_REPLY;
    STAILQ_INSERT_TAIL(&conn->replies, slot, link);
    if (was_empty)
        nbd_wake(conn);
}

static struct nbd_piece *
simple_piece(struct nbd_slot *slot, uint32_t error)
{
    struct nbd_piece *p = &slot->pieces[0];

    slot->nr_pieces = 1;
    store_be32(p->head, NBD_SIMPLE_REPLY_MAGIC);
    store_be32(p->head + 4, error);
    memcpy(p->head + 8, &slot->cookie, sizeof(slot->cookie));
    p->head_len = NBD_SIMPLE_REPLY_BYTES;
    p->data_len = 0;
    p->data_off = 0;
    return p;
}

void
nbd_reply_error(struct nbd_slot *slot, uint32_t error)
{
    struct nbd_piece *p;

    nbd_slot_put_buffer(slot);
    slot->nr_pieces = 0;
    if (slot->req.conn->structured) {
        p = piece_add(slot, NBD_CHUNK_ERROR, 6);
        piece_put32(p, error);
        piece_put16(p, 0); /* no text: words stay on our side */
    } else {
        simple_piece(slot, error);
    }
    queue(slot);
}

/* Success without a payload. */
void
nbd_reply_ok(struct nbd_slot *slot)
{
    nbd_slot_put_buffer(slot);
    if (slot->req.conn->structured)
        piece_add(slot, NBD_CHUNK_NONE, 0);
    else
        simple_piece(slot, 0);
    queue(slot);
}

/* ---- read -------------------------------------------------------------------------- */

static void
fill_holes(struct nbd_slot *slot)
{
    unsigned i;

    for (i = 0; i < slot->u.holes.nr; i++)
        buffer_store(&slot->req.buffer, slot->u.holes.at[i].offset, NULL,
                     slot->u.holes.at[i].len);
    slot->u.holes.nr = 0;
}

void
nbd_read_hole(struct nbd_request *req, uint64_t offset, uint64_t len)
{
    struct nbd_slot *slot = nbd_slot_of(req);
    struct nbd_hole *last = NULL;
    unsigned nr = slot->u.holes.nr;

    THIN_ASSERT(slot->state == NBD_SLOT_SUBMITTED);
    THIN_ASSERT(req->op == NBD_OP_READ);
    THIN_ASSERT(range_inside(offset, len, req->len));
    if (len == 0)
        return;
    if (nr > 0) {
        last = &slot->u.holes.at[nr - 1];
        THIN_ASSERT(offset >= last->offset + last->len);
    }
    if (last && last->offset + last->len == offset) {
        last->len += len;
        return;
    }
    /* One too small to be worth a chunk makes room for the next. */
    if (last && last->len < NBD_HOLE_MIN) {
        buffer_store(&req->buffer, last->offset, NULL, last->len);
        nr--;
    }
    if (nr == NBD_HOLES_PER_READ) {
        buffer_store(&req->buffer, offset, NULL, len);
        slot->u.holes.nr = nr;
        return;
    }
    slot->u.holes.at[nr] = (struct nbd_hole){offset, len};
    slot->u.holes.nr = nr + 1;
}

static void
data_chunk(struct nbd_slot *slot, uint64_t from, uint64_t to)
{
    struct nbd_piece *p;

    if (from == to)
        return;
    p = piece_add(slot, NBD_CHUNK_OFFSET_DATA, 8 + (to - from));
    piece_put64(p, slot->req.offset + from);
    p->data_off = from;
    p->data_len = (uint32_t)(to - from); /* at most max_payload */
}

static void
hole_chunk(struct nbd_slot *slot, const struct nbd_hole *hole)
{
    struct nbd_piece *p = piece_add(slot, NBD_CHUNK_OFFSET_HOLE, 12);

    piece_put64(p, slot->req.offset + hole->offset);
    piece_put32(p, (uint32_t)hole->len);
}

static void
reply_read(struct nbd_slot *slot)
{
    const uint64_t len = slot->req.len;
    const struct nbd_hole *h = slot->u.holes.at;
    unsigned i, nr = slot->u.holes.nr;
    uint64_t at = 0;

    if (!slot->req.conn->structured) {
        fill_holes(slot);
        simple_piece(slot, 0)->data_len = (uint32_t)len;
        queue(slot);
        return;
    }
    /* Only the last can still be small; and one chunk means: a hole or data, not both. */
    if (nr > 0 && h[nr - 1].len < NBD_HOLE_MIN && h[nr - 1].len < len) {
        buffer_store(&slot->req.buffer, h[nr - 1].offset, NULL, h[nr - 1].len);
        nr = --slot->u.holes.nr;
    }
    if ((slot->req.flags & NBD_REQ_DF) && !(nr == 1 && h[0].len == len)) {
        fill_holes(slot);
        nr = 0;
    }
    for (i = 0; i < nr; i++) {
        data_chunk(slot, at, h[i].offset);
        hole_chunk(slot, &h[i]);
        at = h[i].offset + h[i].len;
    }
    data_chunk(slot, at, len);
    if (nr == 1 && h[0].len == len)
        nbd_slot_put_buffer(slot); /* nobody needs it while the reply waits */
    queue(slot);
}

/* ---- block status ------------------------------------------------------------------ */

uint32_t
nbd_extent_bytes(const struct nbd_conn *conn)
{
    return conn->extended ? EXTENDED_EXTENT_BYTES : EXTENT_BYTES;
}

/* Where the extents of a context stand in the buffer. */
static uint64_t
extents_at(const struct nbd_slot *slot, unsigned context)
{
    return (uint64_t)context * slot->u.said.max * nbd_extent_bytes(slot->req.conn);
}

static void
store_extent(struct nbd_slot *slot, unsigned context)
{
    const struct nbd_said *s = &slot->u.said.of[context];
    const uint32_t size = nbd_extent_bytes(slot->req.conn);
    uint8_t bytes[EXTENDED_EXTENT_BYTES];

    if (slot->req.conn->extended) {
        store_be64(bytes, s->last_len);
        store_be64(bytes + 8, s->last_status);
    } else {
        store_be32(bytes, (uint32_t)s->last_len);
        store_be32(bytes + 4, s->last_status);
    }
    buffer_store(&slot->req.buffer,
                 extents_at(slot, context) + (uint64_t)(s->nr - 1) * size, bytes, size);
}

bool
nbd_extent_add(struct nbd_request *req, unsigned context, uint64_t len, uint32_t status)
{
    struct nbd_slot *slot = nbd_slot_of(req);
    const uint32_t max = req->flags & NBD_REQ_ONE ? 1 : slot->u.said.max;
    struct nbd_said *s;

    THIN_ASSERT(slot->state == NBD_SLOT_SUBMITTED);
    THIN_ASSERT(req->op == NBD_OP_BLOCK_STATUS);
    THIN_ASSERT(context < req->nr_contexts);
    THIN_ASSERT(len > 0);
    s = &slot->u.said.of[context];
    if (s->covered == req->len)
        return false;
    len = min_u64(len, req->len - s->covered);
    if (s->nr > 0 && s->last_status == status) {
        s->last_len += len;
    } else {
        if (s->nr == max)
            return false;
        s->nr++;
        s->last_len = len;
        s->last_status = status;
    }
    s->covered += len;
    store_extent(slot, context);
    return s->covered < req->len;
}

static void
reply_block_status(struct nbd_slot *slot)
{
    const struct nbd_conn *conn = slot->req.conn;
    const uint32_t size = nbd_extent_bytes(conn);
    struct nbd_piece *p;
    unsigned i;

    for (i = 0; i < slot->req.nr_contexts; i++)
        if (slot->u.said.of[i].nr == 0) {
            nbd_reply_error(slot, NBD_WIRE_EIO);
            return;
        }
    for (i = 0; i < slot->req.nr_contexts; i++) {
        const uint32_t nr = slot->u.said.of[i].nr;

        if (conn->extended) {
            p = piece_add(slot, NBD_CHUNK_BLOCK_STATUS_64, 8 + (uint64_t)nr * size);
            piece_put32(p, i + 1);
            piece_put32(p, nr);
        } else {
            p = piece_add(slot, NBD_CHUNK_BLOCK_STATUS, 4 + (uint64_t)nr * size);
            piece_put32(p, i + 1);
        }
        p->data_off = extents_at(slot, i);
        p->data_len = nr * size;
    }
    queue(slot);
}

/* ---- done -------------------------------------------------------------------------- */

/* ENOTSUP is an answer to FAST_ZERO and to nothing else. */
static uint32_t
error_for(const struct nbd_request *req, int code)
{
    const uint32_t error = nbd_error_of(code);

    if (error == NBD_WIRE_ENOTSUP && !(req->flags & NBD_REQ_FAST_ZERO))
        return NBD_WIRE_EINVAL;
    return error;
}

void
nbd_request_done(struct nbd_request *req, int code)
{
    struct nbd_slot *slot = nbd_slot_of(req);
    struct nbd_conn *conn = req->conn;

    THIN_ASSERT(slot->state == NBD_SLOT_SUBMITTED);
    THIN_ASSERT(conn->in_flight > 0);
    conn->in_flight--;
    slot->state = NBD_SLOT_TAKEN;
    if (conn->phase == NBD_PHASE_CLOSED) {
        nbd_slot_release(slot);
        nbd_maybe_idle(conn);
        return;
    }
    if (code < 0)
        nbd_reply_error(slot, error_for(req, code));
    else if (req->op == NBD_OP_READ)
        reply_read(slot);
    else if (req->op == NBD_OP_BLOCK_STATUS)
        reply_block_status(slot);
    else
        nbd_reply_ok(slot);
}
