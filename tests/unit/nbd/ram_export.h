/*
 * An owner for tests: a RAM disk with holes, buffers in odd pieces out of a small budget,
 * answers at once or when the test wants, and a client's side that builds bytes.
 */
#ifndef THIN_TESTS_NBD_RAM_EXPORT_H
#define THIN_TESTS_NBD_RAM_EXPORT_H

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/bytes.h"
#include "core/base/checked.h"
#include "proto/nbd/nbd_server.h"
#include "proto/nbd/nbd_wire.h"

#define RAM_BLOCK  4096u
#define RAM_BLOCKS 512u
#define RAM_SIZE   (RAM_BLOCK * RAM_BLOCKS)
#define RAM_PIECE  5003u /* not a round number, on purpose */

#define RAM_ID_ALLOCATION 7001
#define RAM_ID_DEPTH      7002
#define RAM_ID_DELTA      7003

struct ram {
    struct nbd_conn *conn;
    uint8_t *disk; /* RAM_SIZE bytes, and for each block whether it is mapped */
    bool *mapped;
    bool shares_disk; /* they are somebody else's */
    uint64_t size;    /* as told, at most RAM_SIZE */
    unsigned flags;
    uint32_t min_block;
    unsigned nr_exports; /* "e0", "e1", ...; "" is e0 */

    bool defer; /* answers wait for ram_answer_one() */
    struct nbd_request *waiting[256];
    unsigned nr_waiting;
    bool open_waits;
    int open_code;

    size_t budget, lent; /* bytes of buffers; budget 0: no limit */
    int buffer_code;     /* what get_buffer says instead, if not 0 */
    bool starved;        /* get_buffer said "not now" */
    unsigned nr_buffers, nr_opened, nr_closed, nr_wakes, nr_idle;
    unsigned nr_seen[NBD_OP_BLOCK_STATUS + 1];
    unsigned last_flags, last_contexts;
    int next_code; /* outcome of the next request, then 0 again */
};

struct ram_buffer {
    unsigned nr;
    struct iovec iov[];
};

static inline int
ram_get_buffer(void *arg, size_t len, struct nbd_buffer *ret)
{
    struct ram *ram = arg;
    unsigned i, nr = (unsigned)((len + RAM_PIECE - 1) / RAM_PIECE);
    struct ram_buffer *b;

    if (ram->buffer_code)
        return ram->buffer_code;
    if (ram->budget && ram->lent > 0 && ram->lent + len > ram->budget) {
        ram->starved = true;
        return -THIN_E_WOULD_BLOCK;
    }
    b = calloc(1, sizeof(*b) + nr * sizeof(b->iov[0]));
    if (!b)
        return -ENOMEM;
    b->nr = nr;
    for (i = 0; i < nr; i++) {
        b->iov[i].iov_len = min_u64(RAM_PIECE, len - (size_t)i * RAM_PIECE);
        b->iov[i].iov_base = malloc(b->iov[i].iov_len);
        THIN_ASSERT(b->iov[i].iov_base != NULL);
        memset(b->iov[i].iov_base, 0xee, b->iov[i].iov_len);
    }
    *ret = (struct nbd_buffer){b->iov, nr, len, b};
    ram->lent += len;
    ram->nr_buffers++;
    return 0;
}

static inline void
ram_put_buffer(void *arg, struct nbd_buffer *buffer)
{
    struct ram *ram = arg;
    struct ram_buffer *b = buffer->owner;
    unsigned i;

    for (i = 0; i < b->nr; i++)
        free(b->iov[i].iov_base);
    free(b);
    ram->lent -= buffer->len;
    ram->nr_buffers--;
}

static inline void
ram_list(void *arg, struct nbd_conn *conn, const char *after)
{
    struct ram *ram = arg;
    unsigned i = after ? (unsigned)atoi(after + 1) + 1 : 0;
    char name[32];

    for (; i < ram->nr_exports; i++) {
        snprintf(name, sizeof(name), "e%u", i);
        if (!nbd_export_listed(conn, name, i % 2 ? "odd" : NULL))
            break;
    }
    nbd_list_done(conn, 0);
}

static inline void
ram_answer_open(struct ram *ram)
{
    struct nbd_export e = {
        .handle = ram,
        .size = ram->size,
        .flags = ram->flags,
        .min_block = ram->min_block,
        .pref_block = 4096,
        .name = "e0",
        .description = "a RAM disk",
    };

    ram->open_waits = false;
    nbd_export_opened(ram->conn, ram->open_code, &e, "not today");
}

static inline bool
ram_knows(const char *name)
{
    return name[0] == 0 || strcmp(name, "e0") == 0;
}

static inline void
ram_open(void *arg, struct nbd_conn *conn, const struct nbd_open *wish)
{
    struct ram *ram = arg;

    ram->conn = conn;
    ram->last_contexts = wish->nr_contexts;
    if (!ram_knows(wish->name)) {
        nbd_export_opened(conn, -THIN_E_NOT_FOUND, NULL, "secret words");
        return;
    }
    if (ram->open_code == 0 && !wish->info)
        ram->nr_opened++;
    if (ram->defer)
        ram->open_waits = true;
    else
        ram_answer_open(ram);
}

static inline void
ram_contexts(void *arg, struct nbd_conn *conn, const struct nbd_context_wish *wish)
{
    static const struct {
        const char *name;
        uint64_t id;
    } table[] = {{"base:allocation", RAM_ID_ALLOCATION},
                 {"qemu:allocation-depth", RAM_ID_DEPTH},
                 {"thin:delta:monday", RAM_ID_DELTA}};
    size_t i;

    (void)arg;
    if (!ram_knows(wish->name)) {
        nbd_contexts_done(conn, -THIN_E_NOT_FOUND);
        return;
    }
    for (i = 0; i < 3; i++)
        if (nbd_context_wanted(wish, table[i].name))
            nbd_context_found(conn, table[i].name, table[i].id);
    nbd_contexts_done(conn, 0);
}

static inline void
ram_close_export(void *arg, void *handle)
{
    struct ram *ram = arg;

    THIN_ASSERT(handle == ram);
    ram->nr_closed++;
}

static inline void
ram_wake(void *arg)
{
    ((struct ram *)arg)->nr_wakes++;
}

static inline void
ram_idle(void *arg)
{
    ((struct ram *)arg)->nr_idle++;
}

/* Copies between disk and buffer; `in` towards the buffer. Holes are announced. */
static inline void
ram_copy(struct ram *ram, struct nbd_request *req, bool in)
{
    uint64_t off = req->offset;
    unsigned i;

    for (i = 0; i < req->buffer.iovcnt; i++) {
        const struct iovec *v = &req->buffer.iov[i];

        if (in)
            memcpy(v->iov_base, ram->disk + off, v->iov_len);
        else
            memcpy(ram->disk + off, v->iov_base, v->iov_len);
        off += v->iov_len;
    }
}

static inline uint64_t
ram_run(const struct ram *ram, uint64_t off, uint64_t end)
{
    uint64_t b = off / RAM_BLOCK, e = b + 1;

    while (e * RAM_BLOCK < end && ram->mapped[e] == ram->mapped[b])
        e++;
    return min_u64(e * RAM_BLOCK, end) - off;
}

static inline void
ram_read(struct ram *ram, struct nbd_request *req)
{
    uint64_t off = req->offset, end = req->offset + req->len, n;
    unsigned i;

    for (; off < end; off += n) {
        n = ram_run(ram, off, end);
        if (!ram->mapped[off / RAM_BLOCK])
            nbd_read_hole(req, off - req->offset, n);
    }
    /* Garbage where a hole was announced: it must never reach the client. */
    off = req->offset;
    for (i = 0; i < req->buffer.iovcnt; i++) {
        const struct iovec *v = &req->buffer.iov[i];
        size_t k;

        for (k = 0; k < v->iov_len; k++, off++)
            if (ram->mapped[off / RAM_BLOCK])
                ((uint8_t *)v->iov_base)[k] = ram->disk[off];
    }
}

static inline void
ram_map(struct ram *ram, uint64_t off, uint64_t len, bool mapped)
{
    uint64_t b;

    for (b = off / RAM_BLOCK; b * RAM_BLOCK < off + len; b++)
        ram->mapped[b] = mapped;
}

static inline void
ram_trim(struct ram *ram, const struct nbd_request *req)
{
    uint64_t b = div_up_u64(req->offset, RAM_BLOCK);

    for (; (b + 1) * RAM_BLOCK <= req->offset + req->len; b++) {
        ram->mapped[b] = false;
        memset(ram->disk + b * RAM_BLOCK, 0, RAM_BLOCK);
    }
}

static inline void
ram_status(struct ram *ram, struct nbd_request *req)
{
    unsigned c;

    for (c = 0; c < req->nr_contexts; c++) {
        uint64_t off = req->offset, n;
        bool more = true;

        for (; off < ram->size && more; off += n) {
            bool m = ram->mapped[off / RAM_BLOCK];

            n = min_u64(RAM_BLOCK - off % RAM_BLOCK, ram->size - off);
            if (req->contexts[c] == RAM_ID_ALLOCATION)
                more =
                    nbd_extent_add(req, c, n, m ? 0 : NBD_STATUS_HOLE | NBD_STATUS_ZERO);
            else
                more = nbd_extent_add(req, c, n, m);
        }
    }
}

static inline int
ram_perform(struct ram *ram, struct nbd_request *req)
{
    int code = ram->next_code;

    ram->next_code = 0;
    if (code)
        return code;
    switch (req->op) {
    case NBD_OP_READ:
        ram_read(ram, req);
        break;
    case NBD_OP_WRITE:
        ram_copy(ram, req, false);
        ram_map(ram, req->offset, req->len, true);
        break;
    case NBD_OP_WRITE_ZEROES:
        memset(ram->disk + req->offset, 0, req->len);
        if (req->flags & NBD_REQ_NO_HOLE)
            ram_map(ram, req->offset, req->len, true);
        else
            ram_trim(ram, req);
        break;
    case NBD_OP_TRIM:
        ram_trim(ram, req);
        break;
    case NBD_OP_BLOCK_STATUS:
        ram_status(ram, req);
        break;
    case NBD_OP_FLUSH:
    case NBD_OP_CACHE:
        break;
    }
    return 0;
}

static inline void
ram_submit(void *arg, struct nbd_request *req)
{
    struct ram *ram = arg;

    THIN_ASSERT(req->handle == ram);
    ram->nr_seen[req->op]++;
    ram->last_flags = req->flags;
    *(uint64_t *)nbd_request_extra(req) += 1;
    THIN_ASSERT(nbd_request_of_extra(req->conn, nbd_request_extra(req)) == req);
    if (ram->defer) {
        THIN_ASSERT(ram->nr_waiting < 256);
        ram->waiting[ram->nr_waiting++] = req;
    } else {
        nbd_request_done(req, ram_perform(ram, req));
    }
}

/* Answers the `i`-th of those that wait. */
static inline void
ram_answer_one(struct ram *ram, unsigned i)
{
    struct nbd_request *req = ram->waiting[i];

    ram->waiting[i] = ram->waiting[--ram->nr_waiting];
    nbd_request_done(req, ram_perform(ram, req));
}

static const struct nbd_ops ram_ops = {
    .list = ram_list,
    .open = ram_open,
    .contexts = ram_contexts,
    .close_export = ram_close_export,
    .get_buffer = ram_get_buffer,
    .put_buffer = ram_put_buffer,
    .submit = ram_submit,
    .wake = ram_wake,
    .idle = ram_idle,
};

#define RAM_ALL_FLAGS                                                              \
    (NBD_EXPORT_MULTI_CONN | NBD_EXPORT_FLUSH | NBD_EXPORT_FUA | NBD_EXPORT_TRIM | \
     NBD_EXPORT_ZEROES | NBD_EXPORT_FAST_ZERO | NBD_EXPORT_CACHE)

static inline void
ram_make_disk(struct ram *ram)
{
    ram->disk = calloc(1, RAM_SIZE);
    ram->mapped = calloc(RAM_BLOCKS, sizeof(bool));
    THIN_ASSERT(ram->disk != NULL);
    THIN_ASSERT(ram->mapped != NULL);
    ram->size = RAM_SIZE;
    ram->flags = RAM_ALL_FLAGS;
    ram->nr_exports = 3;
}

static inline struct ram *
ram_create(enum nbd_tls_policy tls, uint32_t max_requests)
{
    struct ram *ram = calloc(1, sizeof(*ram));
    struct nbd_config config = {
        .ops = &ram_ops,
        .arg = ram,
        .tls = tls,
        .limits.max_requests = max_requests,
        .request_extra_bytes = sizeof(uint64_t),
    };

    THIN_ASSERT(ram != NULL);
    ram_make_disk(ram);
    THIN_ASSERT(nbd_conn_create(&config, &ram->conn, NULL) == 0);
    return ram;
}

/* Ends the connection, answering what waits; nothing may be left over. */
static inline void
ram_destroy(struct ram *ram)
{
    if (!nbd_conn_close(ram->conn)) {
        if (ram->open_waits)
            ram_answer_open(ram);
        while (ram->nr_waiting > 0)
            ram_answer_one(ram, 0);
        THIN_ASSERT(ram->nr_idle == 1);
    }
    nbd_conn_destroy(ram->conn);
    THIN_ASSERT(ram->nr_buffers == 0);
    THIN_ASSERT(ram->lent == 0);
    THIN_ASSERT(ram->nr_opened == ram->nr_closed);
    if (!ram->shares_disk) {
        free(ram->disk);
        free(ram->mapped);
    }
    free(ram);
}

/* ---- the client's side ------------------------------------------------------------- */

/* Bytes that grow. */
struct bytes {
    uint8_t *p;
    size_t len, cap;
};

static inline void
put(struct bytes *b, const void *p, size_t len)
{
    if (len == 0)
        return;
    if (b->len + len > b->cap) {
        b->cap = (b->len + len) * 2;
        b->p = realloc(b->p, b->cap);
        THIN_ASSERT(b->p != NULL);
    }
    memcpy(b->p + b->len, p, len);
    b->len += len;
}

static inline void
put16(struct bytes *b, uint16_t v)
{
    v = htobe16(v);
    put(b, &v, 2);
}

static inline void
put32(struct bytes *b, uint32_t v)
{
    v = htobe32(v);
    put(b, &v, 4);
}

static inline void
put64(struct bytes *b, uint64_t v)
{
    v = htobe64(v);
    put(b, &v, 8);
}

static inline void
put_option(struct bytes *b, uint32_t option, const void *data, size_t len)
{
    put64(b, NBD_OPTION_MAGIC);
    put32(b, option);
    put32(b, (uint32_t)len);
    put(b, data, len);
}

/* INFO or GO; `infos` ends with 0xffff. */
static inline void
put_go(struct bytes *b, uint32_t option, const char *name, const uint16_t *infos)
{
    struct bytes d = {0};
    uint16_t nr = 0;

    put32(&d, (uint32_t)strlen(name));
    put(&d, name, strlen(name));
    while (infos && infos[nr] != 0xffff)
        nr++;
    put16(&d, nr);
    for (uint16_t i = 0; i < nr; i++)
        put16(&d, infos[i]);
    put_option(b, option, d.p, d.len);
    free(d.p);
}

/* `queries` ends with NULL. */
static inline void
put_contexts(struct bytes *b, uint32_t option, const char *name,
             const char *const *queries)
{
    struct bytes d = {0};
    uint32_t nr = 0;

    put32(&d, (uint32_t)strlen(name));
    put(&d, name, strlen(name));
    while (queries && queries[nr])
        nr++;
    put32(&d, nr);
    for (uint32_t i = 0; i < nr; i++) {
        put32(&d, (uint32_t)strlen(queries[i]));
        put(&d, queries[i], strlen(queries[i]));
    }
    put_option(b, option, d.p, d.len);
    free(d.p);
}

static inline void
put_request(struct bytes *b, uint16_t flags, uint16_t type, uint64_t cookie,
            uint64_t offset, uint32_t len)
{
    put32(b, NBD_REQUEST_MAGIC);
    put16(b, flags);
    put16(b, type);
    put64(b, cookie);
    put64(b, offset);
    put32(b, len);
}

static inline void
put_extended(struct bytes *b, uint16_t flags, uint16_t type, uint64_t cookie,
             uint64_t offset, uint64_t len)
{
    put32(b, NBD_EXTENDED_REQUEST_MAGIC);
    put16(b, flags);
    put16(b, type);
    put64(b, cookie);
    put64(b, offset);
    put64(b, len);
}

static inline void
put_fill(struct bytes *b, uint8_t fill, size_t len)
{
    uint8_t *p = malloc(len + 1);

    THIN_ASSERT(p != NULL);
    memset(p, fill, len);
    put(b, p, len);
    free(p);
}

/* Takes all output there is, `step` bytes at a time (0: everything). */
static inline void
ram_drain_output(struct ram *ram, struct bytes *out, size_t step)
{
    struct iovec iov[5];
    unsigned n, i;

    while ((n = nbd_conn_output(ram->conn, iov, step ? 1 + (unsigned)(step % 5) : 5)) >
           0) {
        size_t sent = 0;

        for (i = 0; i < n; i++) {
            size_t take_bytes = iov[i].iov_len;

            THIN_ASSERT(take_bytes > 0);
            if (step && sent + take_bytes > step)
                take_bytes = step - sent;
            put(out, iov[i].iov_base, take_bytes);
            sent += take_bytes;
        }
        nbd_conn_sent(ram->conn, sent);
    }
    THIN_ASSERT(!nbd_conn_has_output(ram->conn));
}

/*
 * Hands `in` over in cuts of `cut` bytes (0: at once), taking the
 * output as it comes, until nothing moves. Returns the bytes consumed.
 */
static inline size_t
ram_feed(struct ram *ram, const struct bytes *in, size_t cut, struct bytes *out)
{
    size_t at = 0;

    for (;;) {
        size_t n = in->len - at, used;
        struct iovec iov[3];

        if (cut && n > cut)
            n = cut;
        ram_drain_output(ram, out, cut);
        while (ram->starved && ram->nr_waiting == 0) {
            ram->starved = false;
            nbd_conn_resume(ram->conn);
            ram_drain_output(ram, out, cut);
        }
        if (n == 0)
            break;
        /* Every other payload goes the direct way. */
        if (at % 2 && nbd_conn_want(ram->conn, iov, 3) > 0) {
            used = min_u64(n, iov[0].iov_len);
            memcpy(iov[0].iov_base, in->p + at, used);
            nbd_conn_received(ram->conn, used);
        } else {
            used = nbd_conn_input(ram->conn, in->p + at, n);
        }
        at += used;
        if (used == 0 && !nbd_conn_has_output(ram->conn) &&
            !(ram->starved && ram->nr_waiting == 0))
            break;
    }
    return at;
}

#endif
