/*
 * Requests: read the head, check everything, borrow a buffer, take the payload, submit.
 * An error found on the way does not stop the payload from being read.
 */
#include "proto/nbd/nbd_private.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/checked.h"

/* ---- request objects --------------------------------------------------------------- */

#define SLOT_ALIGN 64u

/* All objects in one piece; those never used are never touched. -ENOMEM. */
int
nbd_slots_create(struct nbd_conn *conn)
{
    const size_t extra = conn->config.request_extra_bytes;
    uint64_t stride;

    conn->slot_extra_at = round_up_u64(sizeof(struct nbd_slot), SLOT_ALIGN);
    if (!checked_add_u64(conn->slot_extra_at, extra, &stride) ||
        !checked_add_u64(stride, SLOT_ALIGN - 1, &stride))
        return -ENOMEM;
    conn->slot_stride = round_down_u64(stride, SLOT_ALIGN);
    conn->slots = calloc(conn->config.limits.max_requests, conn->slot_stride);
    return conn->slots ? 0 : -ENOMEM;
}

bool
nbd_slot_free_is_left(const struct nbd_conn *conn)
{
    return !STAILQ_EMPTY(&conn->free_slots) ||
           conn->slots_used < conn->config.limits.max_requests;
}

static struct nbd_slot *
slot_take(struct nbd_conn *conn)
{
    struct nbd_slot *slot = STAILQ_FIRST(&conn->free_slots);

    THIN_ASSERT(nbd_slot_free_is_left(conn));
    if (slot) /* the one used last: its memory is warm */
        STAILQ_REMOVE_HEAD(&conn->free_slots, link);
    else
        slot = (struct nbd_slot *)(void *)(conn->slots +
                                           conn->slot_stride * conn->slots_used++);
    THIN_ASSERT(slot->state == NBD_SLOT_FREE);
    slot->state = NBD_SLOT_TAKEN;
    slot->req.conn = conn;
    slot->req.handle = conn->handle;
    slot->req.buffer = (struct nbd_buffer){0};
    slot->req.nr_contexts = 0;
    slot->req.contexts = NULL;
    slot->error = 0;
    slot->has_buffer = false;
    slot->u.holes.nr = 0;
    slot->nr_pieces = 0;
    slot->reply_len = 0;
    return slot;
}

void
nbd_slot_put_buffer(struct nbd_slot *slot)
{
    struct nbd_conn *conn = slot->req.conn;

    if (!slot->has_buffer)
        return;
    slot->has_buffer = false;
    conn->config.ops->put_buffer(conn->config.arg, &slot->req.buffer);
}

void
nbd_slot_release(struct nbd_slot *slot)
{
    struct nbd_conn *conn = slot->req.conn;

    nbd_slot_put_buffer(slot);
    slot->state = NBD_SLOT_FREE;
    STAILQ_INSERT_HEAD(&conn->free_slots, slot, link);
}

void *
nbd_request_extra(struct nbd_request *req)
{
    return (uint8_t *)nbd_slot_of(req) + req->conn->slot_extra_at;
}

struct nbd_request *
nbd_request_of_extra(const struct nbd_conn *conn, void *extra)
{
    return (struct nbd_request *)(void *)((uint8_t *)extra - conn->slot_extra_at);
}

/* ---- checks ------------------------------------------------------------------------ */

#define CHANGES  1u /* refused on a read-only export */
#define PAYLOAD  2u /* length is bounded by the largest payload */
#define NO_SPACE 4u /* beyond the end is "no space", not "wrong" */

/* What each command is: what it needs of the export, and which flags beside FUA it takes. */
static const struct command {
    enum nbd_op op;
    unsigned needs;
    unsigned flags;
    unsigned kind;
} commands[] = {
    [NBD_CMD_READ] = {NBD_OP_READ, 0, NBD_CMD_FLAG_DF, PAYLOAD},
    [NBD_CMD_WRITE] = {NBD_OP_WRITE, 0, 0, CHANGES | PAYLOAD | NO_SPACE},
    [NBD_CMD_FLUSH] = {NBD_OP_FLUSH, NBD_EXPORT_FLUSH, 0, 0},
    [NBD_CMD_TRIM] = {NBD_OP_TRIM, NBD_EXPORT_TRIM, 0, CHANGES},
    [NBD_CMD_CACHE] = {NBD_OP_CACHE, NBD_EXPORT_CACHE, 0, 0},
    [NBD_CMD_WRITE_ZEROES] = {NBD_OP_WRITE_ZEROES, NBD_EXPORT_ZEROES,
                              NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO,
                              CHANGES | NO_SPACE},
    [NBD_CMD_BLOCK_STATUS] = {NBD_OP_BLOCK_STATUS, 0, NBD_CMD_FLAG_REQ_ONE, 0},
};

static const struct command *
command_of(uint16_t type)
{
    if (type >= sizeof(commands) / sizeof(commands[0]) || type == NBD_CMD_DISC)
        return NULL;
    return &commands[type];
}

/* NOLINTBEGIN(misc-redundant-expression): that both are the same is what it says. */
_Static_assert(NBD_REQ_FUA == NBD_CMD_FLAG_FUA &&
                   NBD_REQ_NO_HOLE == NBD_CMD_FLAG_NO_HOLE &&
                   NBD_REQ_DF == NBD_CMD_FLAG_DF && NBD_REQ_ONE == NBD_CMD_FLAG_REQ_ONE &&
                   NBD_REQ_FAST_ZERO == NBD_CMD_FLAG_FAST_ZERO,
               "the owner's flags are those on the wire");
/* NOLINTEND(misc-redundant-expression) */

static bool
flags_allowed(const struct nbd_conn *conn, const struct command *c, unsigned flags)
{
    unsigned known = c->flags;

    if (conn->export_flags & NBD_EXPORT_FUA)
        known |= NBD_CMD_FLAG_FUA;
    if (!conn->structured)
        known &= ~NBD_CMD_FLAG_DF;
    if (!(conn->export_flags & NBD_EXPORT_FAST_ZERO))
        known &= ~NBD_CMD_FLAG_FAST_ZERO;
    return (flags & ~known) == 0;
}

/* NBD's error for what cannot be served, or 0. */
static uint32_t
check(const struct nbd_conn *conn, const struct command *c, const struct nbd_request *req)
{
    if (conn->shutting_down)
        return NBD_WIRE_ESHUTDOWN;
    if ((c->kind & CHANGES) && (conn->export_flags & NBD_EXPORT_READ_ONLY))
        return NBD_WIRE_EPERM;
    if (!flags_allowed(conn, c, req->flags))
        return NBD_WIRE_EINVAL;
    if (c->needs && !(conn->export_flags & c->needs))
        return NBD_WIRE_EINVAL;
    if (req->op == NBD_OP_FLUSH)
        return req->offset || req->len ? NBD_WIRE_EINVAL : 0;
    if (req->op == NBD_OP_BLOCK_STATUS && (conn->nr_contexts == 0 || req->len == 0))
        return NBD_WIRE_EINVAL;
    if ((c->kind & PAYLOAD) && req->len > conn->max_payload)
        return NBD_WIRE_EINVAL;
    if (!range_inside(req->offset, req->len, conn->size))
        return c->kind & NO_SPACE ? NBD_WIRE_ENOSPC : NBD_WIRE_EINVAL;
    if (req->offset % conn->min_block || req->len % conn->min_block)
        return NBD_WIRE_EINVAL;
    return 0;
}

/* ---- the head ---------------------------------------------------------------------- */

uint32_t
nbd_request_head_bytes(const struct nbd_conn *conn)
{
    return conn->extended ? NBD_EXTENDED_REQUEST_BYTES : NBD_REQUEST_BYTES;
}

/* The slot goes on to its payload, or is answered at once, with what `error` says. */
static void
refuse(struct nbd_conn *conn, struct nbd_slot *slot, uint32_t error, uint64_t payload)
{
    conn->in_state = NBD_IN_REQUEST_HEAD;
    if (payload == 0) {
        conn->current = NULL;
        if (error)
            nbd_reply_error(slot, error);
        else
            nbd_reply_ok(slot);
        return;
    }
    slot->error = error;
    conn->current = slot;
    conn->payload_left = payload;
    conn->in_state = NBD_IN_PAYLOAD_SKIP;
}

static void
submit(struct nbd_conn *conn, struct nbd_slot *slot)
{
    conn->current = NULL;
    conn->in_state = NBD_IN_REQUEST_HEAD;
    slot->state = NBD_SLOT_SUBMITTED;
    conn->in_flight++;
    conn->config.ops->submit(conn->config.arg, &slot->req);
}

/* Bytes of the owner's memory that the request needs. */
static size_t
buffer_bytes(const struct nbd_conn *conn, struct nbd_slot *slot)
{
    switch (slot->req.op) {
    case NBD_OP_READ:
    case NBD_OP_WRITE:
        return slot->req.len; /* at most max_payload */
    case NBD_OP_BLOCK_STATUS:
        slot->u.said.max = (uint32_t)min_u64(NBD_EXTENTS_PER_REPLY, slot->req.len);
        return (size_t)slot->u.said.max * nbd_extent_bytes(conn) * conn->nr_contexts;
    default:
        return 0;
    }
}

/* Borrows the buffer of `current`; then its payload is expected, or it is submitted. */
void
nbd_try_buffer(struct nbd_conn *conn)
{
    struct nbd_slot *slot = conn->current;
    const bool write = slot->req.op == NBD_OP_WRITE;
    const size_t len = buffer_bytes(conn, slot);
    int r = 0;

    if (len > 0)
        r = conn->config.ops->get_buffer(conn->config.arg, len, &slot->req.buffer);
    if (r == -THIN_E_WOULD_BLOCK) {
        conn->in_state = NBD_IN_WAIT_BUFFER;
        return;
    }
    if (r < 0) {
        refuse(conn, slot, nbd_error_of(r), write ? slot->req.len : 0);
        return;
    }
    slot->has_buffer = len > 0;
    if (!write) {
        submit(conn, slot);
        return;
    }
    conn->payload_left = slot->req.len;
    conn->payload_iov = 0;
    conn->payload_off = 0;
    conn->in_state = NBD_IN_PAYLOAD;
}

/*
 * Bytes behind the head. In compact form WRITE has as many as it says; in extended form
 * whatever carries the flag does, and WRITE must.
 */
static uint64_t
payload_behind(const struct nbd_conn *conn, const struct nbd_request *req, uint16_t type)
{
    if (conn->extended)
        return req->flags & NBD_CMD_FLAG_PAYLOAD_LEN ? req->len : 0;
    return type == NBD_CMD_WRITE ? req->len : 0;
}

/* The flag belongs to a WRITE in extended form, and to nothing else. */
static bool
payload_flag_fits(const struct nbd_conn *conn, const struct nbd_request *req,
                  uint16_t type)
{
    const bool has = req->flags & NBD_CMD_FLAG_PAYLOAD_LEN;

    return has == (conn->extended && type == NBD_CMD_WRITE);
}

static void
said_nothing_yet(struct nbd_conn *conn, struct nbd_slot *slot)
{
    memset(&slot->u.said, 0, sizeof(slot->u.said));
    slot->req.nr_contexts = conn->nr_contexts;
    slot->req.contexts = conn->contexts;
}

void
nbd_request_head(struct nbd_conn *conn)
{
    const uint8_t *h = conn->head;
    const uint16_t type = load_be16(h + 6);
    const struct command *c = command_of(type);
    struct nbd_slot *slot;
    struct nbd_request *req;
    uint32_t error = NBD_WIRE_EINVAL;
    uint64_t payload;
    bool fits;

    if (load_be32(h) !=
        (conn->extended ? NBD_EXTENDED_REQUEST_MAGIC : NBD_REQUEST_MAGIC)) {
        nbd_drain(conn, "wrong request magic");
        return;
    }
    if (type == NBD_CMD_DISC) {
        nbd_drain(conn, NULL);
        return;
    }
    slot = slot_take(conn);
    req = &slot->req;
    memcpy(&slot->cookie, h + 8, sizeof(slot->cookie));
    req->flags = load_be16(h + 4);
    req->offset = load_be64(h + 16);
    req->len = conn->extended ? load_be64(h + 24) : load_be32(h + 24);
    req->op = c ? c->op : NBD_OP_FLUSH;
    payload = payload_behind(conn, req, type);
    fits = payload_flag_fits(conn, req, type);
    if (conn->extended)
        req->flags &= ~NBD_CMD_FLAG_PAYLOAD_LEN;
    if (c)
        error = check(conn, c, req);
    if (!fits && error == 0)
        error = NBD_WIRE_EINVAL;
    if (error || (req->len == 0 && req->op != NBD_OP_FLUSH)) {
        refuse(conn, slot, error, payload);
        return;
    }
    if (req->op == NBD_OP_BLOCK_STATUS)
        said_nothing_yet(conn, slot);
    conn->current = slot;
    nbd_try_buffer(conn);
}

/* ---- the payload ------------------------------------------------------------------- */

/* `bytes` NULL: they are in their place already. */
void
nbd_payload_put(struct nbd_conn *conn, const uint8_t *bytes, size_t len)
{
    const struct nbd_buffer *b = &conn->current->req.buffer;

    conn->payload_left -= len;
    while (len > 0) {
        const struct iovec *v = &b->iov[conn->payload_iov];
        size_t n = min_u64(len, v->iov_len - conn->payload_off);

        if (bytes) {
            memcpy((uint8_t *)v->iov_base + conn->payload_off, bytes, n);
            bytes += n;
        }
        len -= n;
        conn->payload_off += n;
        if (conn->payload_off == v->iov_len) {
            conn->payload_iov++;
            conn->payload_off = 0;
        }
    }
    if (conn->payload_left == 0)
        nbd_payload_complete(conn);
}

void
nbd_payload_complete(struct nbd_conn *conn)
{
    struct nbd_slot *slot = conn->current;

    if (conn->in_state == NBD_IN_PAYLOAD_SKIP)
        refuse(conn, slot, slot->error, 0);
    else
        submit(conn, slot);
}
