#include "server/nbd_face.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "proto/limits.h"
#include "proto/message.h"
#include "proto/nbd/nbd_server.h"
#include "proto/socket.h"
#include "server/attach.h"
#include "server/pools.h"
#include "server/stack.h"
#include "server/stream.h"

#define RECV_BYTES           (256u << 10) /* read from the socket at once; also what is kept */
#define READ_EXTENTS         17u          /* data and holes of one read, told apart */
#define STATUS_EXTENTS       64u          /* of one step of a block status */
#define SHUTDOWN_PATIENCE_NS (5 * NS_PER_SEC)
#define CONTEXT_ALLOCATION   1u /* base:allocation */
#define CONTEXT_DEPTH        2u /* qemu:allocation-depth */
#define DEPTH_UNALLOCATED    0u
#define DEPTH_LOCAL          1u
#define DEPTH_ORIGIN         2u

/* Our memory in each request object of the state machine. */
struct nbd_job {
    struct volume_io io;
    struct nbd_client *client;   /* the way back */
    struct attach_waiter waiter; /* of the first change */
    struct volume_extent extents[STATUS_EXTENTS];
};

/*
 * One client. Alive from accept until its stream is closed, its state machine idle and
 * its export given back:
 *
 *   accept ─► stream, state machine ─► open (attach) ─► requests
 *   broken or finished ─► stream closed ─► nbd_conn_close ─► idle ─► freed
 */
struct nbd_client {
    struct server *server;
    uint64_t id;
    struct stream stream;
    struct nbd_conn *conn;
    struct auth_peer peer;
    bool local;
    bool tls_running;
    bool counted_handshake;
    bool closing;
    bool opening;    /* an attach_open is under way */
    bool only_asked; /* for an INFO */
    /* A pool that stands on our volumes (stack.h): its id, and which pool it asked for. */
    char asker[STACK_ID_BYTES];
    bool asker_reads_only;
    char asked_pool[THIN_NAME_MAX + 1];
    char peer_text[128];
    char volume_name[2 * THIN_NAME_MAX + 2];
    uint64_t since_s;
    struct attachment *attachment;
    uint8_t *kept; /* bytes read and not yet taken by the state machine */
    size_t kept_len, kept_from;
    struct payload_waiter waiter;
    struct thin_task end_task;
    TAILQ_ENTRY(nbd_client) link;
};

TAILQ_HEAD(nbd_client_list, nbd_client);

/* All clients of the process's one server. Main loop only. */
static struct {
    struct nbd_client_list clients;
    bool ready;
    bool keeps_pools; /* while it shuts down: those of our own pools go on */
    uint64_t last_id;
    uint8_t
        *recv; /* one place to receive into for all clients: it is empty between turns */
    void (*shutdown_done)(void *arg);
    void *shutdown_arg;
    struct server *server;
    struct thin_timer patience;
} face;

static void start_end(struct nbd_client *c);

/* One of our own pools, which needs it until it is closed itself. */
static bool
goes_on(const struct nbd_client *c)
{
    const struct server_pool *sp = NULL;

    if (!c->asker[0] || !face.keeps_pools)
        return false;
    while ((sp = pools_next(c->server->pools, sp)))
        if (strcmp(sp->stack_id, c->asker) == 0)
            return sp->state == POOLS_OPEN || sp->state == POOLS_CLOSING;
    return false;
}

/* Nobody whose end is awaited is left. */
static bool
all_gone(void)
{
    const struct nbd_client *c;

    TAILQ_FOREACH(c, &face.clients, link)
        if (!goes_on(c))
            return false;
    return true;
}

/* ---- exports --------------------------------------------------------------------------- */

/* What the empty name stands for. */
static const char *
export_name(const struct nbd_client *c, const char *name, size_t len)
{
    if (len == 0)
        return c->server->config.nbd_default_export ? c->server->config.nbd_default_export
                                                    : "";
    return name;
}

/* The next volume that this client may see, after `after`; walks pool after pool. */
static void
op_list(void *arg, struct nbd_conn *conn, const char *after)
{
    struct nbd_client *c = arg;
    struct server_pool *sp = NULL;
    char after_pool[128] = "", after_volume[128] = "";

    if (after)
        message_split_name(after, after_pool, after_volume, NULL);
    while ((sp = pools_next(c->server->pools, sp))) {
        int order = strcmp(sp->name, after_pool);
        struct volume_info info;
        const char *from = order == 0 && after ? after_volume : NULL;

        if (sp->state != POOLS_OPEN || (after && order < 0))
            continue;
        while (pool_volume_next(sp->pool, from, &info)) {
            char name[2 * THIN_NAME_MAX + 2];

            snprintf(name, sizeof(name), "%s/%s", sp->name, info.name);
            snprintf(after_volume, sizeof(after_volume), "%s", info.name);
            from = after_volume;
            if (auth_right_on(c->server->auth, &c->peer, name) < AUTH_READ)
                continue;
            if (!nbd_export_listed(conn, name, NULL)) {
                nbd_list_done(conn, 0);
                return;
            }
        }
    }
    nbd_list_done(conn, 0);
}

static void
describe(const struct nbd_client *c, const char *name, uint64_t size, uint32_t block_size,
         bool read_only, struct nbd_export *ret)
{
    *ret = (struct nbd_export){
        .handle = (void *)(uintptr_t)c,
        .size = size,
        .flags = NBD_EXPORT_MULTI_CONN | NBD_EXPORT_FLUSH | NBD_EXPORT_FUA |
                 NBD_EXPORT_TRIM | NBD_EXPORT_ZEROES | NBD_EXPORT_FAST_ZERO |
                 NBD_EXPORT_CACHE | (read_only ? NBD_EXPORT_READ_ONLY : 0),
        .min_block = 1,
        .pref_block = 4096,
        .name = name,
    };
    (void)block_size;
}

/* NBD cannot tell its client of a new size; requests in the new room are served. */
static void
on_notify(void *arg)
{
    struct nbd_client *c = arg;

    nbd_conn_set_size(c->conn, volume_size(c->attachment->volume));
}

static void
export_opened(void *arg, struct attachment *attachment, int result,
              const struct thin_error *err)
{
    struct nbd_client *c = arg;
    struct nbd_export export;

    c->opening = false;
    if (result < 0) {
        nbd_export_opened(c->conn, result, NULL, thin_error_text(err, result));
        return;
    }
    if (c->only_asked) {
        describe(c, c->volume_name, volume_size(attachment->volume),
                 volume_block_size(attachment->volume), attachment->read_only, &export);
        attach_close(c->server->attachments, attachment);
        nbd_export_opened(c->conn, 0, &export, NULL);
        return;
    }
    c->attachment = attachment;
    volume_set_notify(attachment->volume, on_notify, c);
    describe(c, c->volume_name, volume_size(attachment->volume),
             volume_block_size(attachment->volume), attachment->read_only, &export);
    log_notice("export opened peer=%s identity=%s volume=%s mode=%s", c->peer_text,
               c->peer.identity, c->volume_name, attachment->read_only ? "ro" : "rw");
    nbd_export_opened(c->conn, 0, &export, NULL);
}

/* GO's answer is the same as INFO's: also whether another holder makes it read-only. */
static bool
would_be_read_only(const struct nbd_client *c, const char *pool, const char *volume,
                   const struct volume_info *info, enum auth_right right)
{
    const char *holder = attach_holder(c->server->attachments, pool, volume);

    if (c->asker[0])
        return right < AUTH_WRITE || info->read_only || c->asker_reads_only ||
               (holder[0] &&
                (strncmp(holder, "pool:", 5) != 0 || strcmp(holder + 5, c->asker) != 0));
    return right < AUTH_WRITE || info->read_only ||
           (holder[0] && strcmp(holder, c->peer.identity) != 0);
}

static void
op_open(void *arg, struct nbd_conn *conn, const struct nbd_open *wish)
{
    struct nbd_client *c = arg;
    const char *name = export_name(c, wish->name, wish->name_len);
    char pool_name[128], volume_name[128], pool_holder[STACK_ID_BYTES + 8];
    struct thin_error err;
    struct volume_info info;
    struct attach_request request = {0};
    enum auth_right right;
    struct pool *pool;
    int code;

    thin_error_init(&err);
    code = message_split_name(name, pool_name, volume_name, NULL);
    if (code < 0) {
        nbd_export_opened(
            conn, -THIN_E_NOT_FOUND, NULL,
            name[0] ? "exports are named POOL/VOLUME"
                    : "there is no default export; exports are named POOL/VOLUME");
        return;
    }
    right = auth_right_on(c->server->auth, &c->peer, name);
    pool = right >= AUTH_READ ? pools_find_open(c->server->pools, pool_name, &code, &err)
                              : NULL;
    if (!pool || !pool_volume_peek(pool, volume_name, &info)) {
        nbd_export_opened(conn, -THIN_E_NOT_FOUND, NULL, "no such export");
        return;
    }
    /* Whether an origin has changed shows when the volume is opened. */
    if (wish->info && !info.origin[0]) {
        struct nbd_export export;
        struct pool_info pi;

        pool_get_info(pool, &pi);
        describe(c, name, info.size, pi.block_size,
                 would_be_read_only(c, pool_name, volume_name, &info, right), &export);
        nbd_export_opened(conn, 0, &export, NULL);
        return;
    }
    snprintf(c->volume_name, sizeof(c->volume_name), "%s", name);
    request.pool = pool_name;
    request.volume = volume_name;
    snprintf(pool_holder, sizeof(pool_holder), "pool:%s", c->asker);
    request.holder = c->asker[0] ? pool_holder : c->peer.identity;
    request.read_only = right < AUTH_WRITE || c->asker_reads_only;
    request.fall_back_read_only = true;
    request.lazy = true;
    c->opening = true;
    c->only_asked = wish->info;
    attach_open(c->server->attachments, &request, export_opened, c);
}

/* Another pool asks what this one stands on; from now on it is known. */
static bool
answer_question(struct nbd_client *c, struct nbd_conn *conn,
                const struct nbd_context_wish *wish, const char *pool_name)
{
    const struct server_pool *sp = pools_find(c->server->pools, pool_name);
    const char *ids[STACK_IDS_MAX];
    unsigned nr;

    if (!wish->list || wish->nr_queries != 1 ||
        !stack_parse_question(wish->queries[0].text, wish->queries[0].len, c->asker,
                              &c->asker_reads_only))
        return false;
    snprintf(c->asked_pool, sizeof(c->asked_pool), "%s", pool_name);
    nr = stack_list(sp, ids);
    for (unsigned i = 0; i < nr; i++) {
        char name[sizeof(STACK_CONTEXT) + STACK_ID_BYTES];

        snprintf(name, sizeof(name), "%s%s", STACK_CONTEXT, ids[i]);
        nbd_context_found(conn, name, 0);
    }
    nbd_contexts_done(conn, 0);
    return true;
}

static void
op_contexts(void *arg, struct nbd_conn *conn, const struct nbd_context_wish *wish)
{
    struct nbd_client *c = arg;
    const char *name = export_name(c, wish->name, wish->name_len);
    char pool_name[128], volume_name[128];
    struct volume_info info;
    struct thin_error err;
    struct pool *pool = NULL;
    int code = 0;

    if (message_split_name(name, pool_name, volume_name, NULL) == 0 &&
        auth_right_on(c->server->auth, &c->peer, name) >= AUTH_READ)
        pool = pools_find_open(c->server->pools, pool_name, &code, &err);
    if (!pool || !pool_volume_peek(pool, volume_name, &info)) {
        nbd_contexts_done(conn, -THIN_E_NOT_FOUND);
        return;
    }
    if (answer_question(c, conn, wish, pool_name))
        return;
    if (nbd_context_wanted(wish, "base:allocation"))
        nbd_context_found(conn, "base:allocation", CONTEXT_ALLOCATION);
    if (nbd_context_wanted(wish, "qemu:allocation-depth"))
        nbd_context_found(conn, "qemu:allocation-depth", CONTEXT_DEPTH);
    nbd_contexts_done(conn, 0);
}

static void
op_close_export(void *arg, void *handle)
{
    struct nbd_client *c = arg;

    (void)handle;
    if (c->attachment)
        attach_close(c->server->attachments, c->attachment);
    c->attachment = NULL;
}

/* ---- requests -------------------------------------------------------------------------- */

/* Who waits for a pool further below leaves memory to it. */
static unsigned
payload_level(const struct nbd_client *c)
{
    const struct server_pool *sp =
        c->asker[0] ? pools_find(c->server->pools, c->asked_pool) : NULL;

    return sp ? stack_height(sp) : PAYLOAD_ORDINARY;
}

static int
op_get_buffer(void *arg, size_t len, struct nbd_buffer *ret)
{
    struct nbd_client *c = arg;
    struct payload_piece *piece;
    int r = payload_get(c->server->payload, len, payload_level(c), &c->waiter, &piece);

    if (r < 0)
        return r;
    ret->iov = &piece->iov;
    ret->iovcnt = 1;
    ret->len = len;
    ret->owner = piece;
    return 0;
}

static void
op_put_buffer(void *arg, struct nbd_buffer *buffer)
{
    struct nbd_client *c = arg;

    payload_put(c->server->payload, buffer->owner);
}

static void
buffer_ready(struct payload_waiter *waiter)
{
    struct nbd_client *c = container_of(waiter, struct nbd_client, waiter);

    nbd_conn_resume(c->conn);
    stream_kick(&c->stream);
}

static void
read_done(struct nbd_job *job, struct nbd_request *req, int result)
{
    uint64_t at = 0;

    for (unsigned i = 0; result == 0 && i < job->io.ret_nr_extents; i++) {
        const struct volume_extent *e = &job->extents[i];

        if (e->flags & VOLUME_EXTENT_HOLE)
            nbd_read_hole(req, at, e->len);
        at += e->len;
    }
    nbd_request_done(req, result);
}

static uint32_t
status_of(uint64_t context, uint32_t flags)
{
    if (context == CONTEXT_DEPTH)
        return flags & VOLUME_EXTENT_ORIGIN ? DEPTH_ORIGIN
               : flags & VOLUME_EXTENT_HOLE ? DEPTH_UNALLOCATED
                                            : DEPTH_LOCAL;
    /* What comes from an origin is data to whoever copies. */
    if (flags & VOLUME_EXTENT_ORIGIN)
        return 0;
    return (flags & VOLUME_EXTENT_HOLE ? NBD_STATUS_HOLE | NBD_STATUS_ZERO : 0) |
           (flags & VOLUME_EXTENT_ZERO ? NBD_STATUS_ZERO : 0);
}

/* One step of a block status is through: on with the next, or the end. */
static void
status_step(struct nbd_job *job, struct nbd_request *req, int result)
{
    struct nbd_client *c = req->handle;
    uint64_t covered = job->io.offset - req->offset;
    bool more = false;

    for (unsigned i = 0; result == 0 && i < job->io.ret_nr_extents; i++) {
        const struct volume_extent *e = &job->extents[i];

        more = false;
        covered += e->len;
        for (unsigned ctx = 0; ctx < req->nr_contexts; ctx++)
            more |=
                nbd_extent_add(req, ctx, e->len, status_of(req->contexts[ctx], e->flags));
        if (!more)
            break;
    }
    if (result < 0 || !more || covered >= req->len || job->io.ret_nr_extents == 0) {
        nbd_request_done(req, result);
        return;
    }
    job->io.offset = req->offset + covered;
    job->io.len = req->len - covered;
    job->io.max_extents = STATUS_EXTENTS;
    volume_submit(c->attachment->volume, &job->io);
}

static void
io_done(struct volume_io *io, int result)
{
    struct nbd_job *job = container_of(io, struct nbd_job, io);
    struct nbd_client *c = job->client;
    struct nbd_request *req = nbd_request_of_extra(c->conn, job);

    if (io->op == VOLUME_WRITE || io->op == VOLUME_DISCARD ||
        io->op == VOLUME_WRITE_ZEROES)
        attach_end(c->attachment);
    if (io->op == VOLUME_READ)
        read_done(job, req, result);
    else if (io->op == VOLUME_STATUS)
        status_step(job, req, result);
    else
        nbd_request_done(req, result);
}

static enum volume_op
volume_op_of(enum nbd_op op)
{
    static const enum volume_op ops[] = {
        [NBD_OP_READ] = VOLUME_READ,
        [NBD_OP_WRITE] = VOLUME_WRITE,
        [NBD_OP_FLUSH] = VOLUME_FLUSH,
        [NBD_OP_TRIM] = VOLUME_DISCARD,
        [NBD_OP_CACHE] = VOLUME_PREFETCH,
        [NBD_OP_WRITE_ZEROES] = VOLUME_WRITE_ZEROES,
        [NBD_OP_BLOCK_STATUS] = VOLUME_STATUS,
    };

    return ops[op];
}

static bool
is_change(enum nbd_op op)
{
    return op == NBD_OP_WRITE || op == NBD_OP_TRIM || op == NBD_OP_WRITE_ZEROES;
}

static void
submit(struct nbd_client *c, struct nbd_job *job, struct nbd_request *req)
{
    struct volume_io *io = &job->io;

    memset(io, 0, sizeof(*io));
    io->op = volume_op_of(req->op);
    io->flags = (is_change(req->op) && req->flags & NBD_REQ_FUA ? VOLUME_FUA : 0) |
                (req->flags & NBD_REQ_NO_HOLE ? VOLUME_NO_HOLE : 0) |
                (req->flags & NBD_REQ_FAST_ZERO ? VOLUME_ONLY_FAST : 0) |
                (req->flags & NBD_REQ_ONE ? VOLUME_ONE_EXTENT : 0);
    io->offset = req->offset;
    io->len = req->len;
    io->done = io_done;
    if (req->op == NBD_OP_READ || req->op == NBD_OP_WRITE) {
        io->iov = (struct iovec *)(uintptr_t)req->buffer.iov;
        io->nr_iov = req->buffer.iovcnt;
    }
    if (req->op == NBD_OP_READ) {
        io->extents = job->extents;
        io->max_extents = READ_EXTENTS;
    } else if (req->op == NBD_OP_BLOCK_STATUS) {
        io->extents = job->extents;
        io->max_extents = STATUS_EXTENTS;
    }
    volume_submit(c->attachment->volume, io);
}

static void
epoch_raised(struct attach_waiter *waiter, int result)
{
    struct nbd_job *job = container_of(waiter, struct nbd_job, waiter);
    struct nbd_client *c = job->client;
    struct nbd_request *req = nbd_request_of_extra(c->conn, job);

    if (result == 0)
        result = attach_begin(c->attachment, ATTACH_OWN_EPOCH);
    if (result < 0)
        nbd_request_done(req,
                         volume_pool(c->attachment->volume) ? result : -THIN_E_SHUTDOWN);
    else
        submit(c, job, req);
}

static void
op_submit(void *arg, struct nbd_request *req)
{
    struct nbd_client *c = arg;
    struct nbd_job *job = nbd_request_extra(req);
    int r = is_change(req->op) ? attach_begin(c->attachment, ATTACH_OWN_EPOCH) : 0;

    job->client = c;
    if (r == -THIN_E_WOULD_BLOCK) {
        job->waiter.done = epoch_raised;
        attach_raise(c->server->attachments, c->attachment, &job->waiter);
    } else if (r < 0) {
        /* Nobody took the volume over: its pool was closed under it. */
        nbd_request_done(req, volume_pool(c->attachment->volume) ? r : -THIN_E_SHUTDOWN);
    } else {
        submit(c, job, req);
    }
}

/* ---- bytes -------------------------------------------------------------------------------- */

static void
op_wake(void *arg)
{
    struct nbd_client *c = arg;

    if (!c->closing)
        stream_kick(&c->stream);
}

/* Keeps what the state machine did not take, for when it wants more. */
static bool
keep(struct nbd_client *c, const uint8_t *bytes, size_t len)
{
    if (len == 0)
        return true;
    c->kept = malloc(len);
    if (!c->kept)
        return false;
    memcpy(c->kept, bytes, len);
    c->kept_len = len;
    c->kept_from = 0;
    return true;
}

/* Hands in what was kept; true when nothing is left of it. */
static bool
give_kept(struct nbd_client *c)
{
    if (!c->kept)
        return true;
    while (c->kept_from < c->kept_len && nbd_conn_wants_input(c->conn)) {
        size_t n =
            nbd_conn_input(c->conn, c->kept + c->kept_from, c->kept_len - c->kept_from);

        c->kept_from += n;
        if (n == 0)
            break;
    }
    if (c->kept_from < c->kept_len)
        return false;
    free(c->kept);
    c->kept = NULL;
    return true;
}

static bool
phase_takes_input(const struct nbd_client *c)
{
    enum nbd_phase phase = nbd_conn_phase(c->conn);

    return phase == NBD_PHASE_HANDSHAKE || phase == NBD_PHASE_TRANSMISSION;
}

/* One read from the socket, into a payload's own place if one is being received. */
static bool
read_once(struct nbd_client *c)
{
    struct iovec iov[4];
    unsigned nr = nbd_conn_want(c->conn, iov, 4);
    ssize_t got;
    size_t used;

    if (nr > 0) {
        got = stream_read(&c->stream, iov[0].iov_base, iov[0].iov_len);
        if (got > 0)
            nbd_conn_received(c->conn, (size_t)got);
        return got > 0;
    }
    got = stream_read(&c->stream, face.recv, RECV_BYTES);
    if (got <= 0)
        return false;
    used = nbd_conn_input(c->conn, face.recv, (size_t)got);
    if (nbd_conn_phase(c->conn) == NBD_PHASE_WANT_TLS)
        return false; /* what came in plain behind STARTTLS is thrown away */
    if (!keep(c, face.recv + used, (size_t)got - used)) {
        log_warning("connection closed: out of memory peer=%s", c->peer_text);
        start_end(c);
        return false;
    }
    return c->kept == NULL;
}

/* After input, and after output: an export may have been opened behind the last input. */
static void
look_at_handshake(struct nbd_client *c)
{
    if (!c->counted_handshake || nbd_conn_in_handshake(c->conn))
        return;
    c->counted_handshake = false;
    c->server->handshakes--;
    c->stream.handshake_until_ns = 0;
}

static void
after_input(struct nbd_client *c)
{
    if (c->closing)
        return;
    look_at_handshake(c);
    stream_want_read(&c->stream,
                     phase_takes_input(c) && !c->kept && nbd_conn_wants_input(c->conn));
    stream_kick(&c->stream);
}

static void
on_readable(struct stream *stream)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);
    unsigned turns = 0;

    if (c->closing || !give_kept(c))
        return;
    /* A bounded number of reads a turn: others have theirs. */
    while (!c->closing && phase_takes_input(c) && nbd_conn_wants_input(c->conn) &&
           turns++ < 4 && read_once(c))
        ;
    after_input(c);
}

static bool
start_tls(struct nbd_client *c)
{
    struct thin_error err;
    int r = stream_start_tls(&c->stream, c->server->nbd_tls, PROTO_HANDSHAKE_MS, &err);

    if (r < 0) {
        log_warning("connection closed: %s peer=%s", thin_error_text(&err, r),
                    c->peer_text);
        return false;
    }
    free(c->kept);
    c->kept = NULL;
    return true;
}

static unsigned
on_output(struct stream *stream, struct iovec *iov, unsigned max)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);
    unsigned nr;

    if (c->closing)
        return 0;
    if (c->kept && nbd_conn_wants_input(c->conn)) {
        give_kept(c);
        after_input(c);
    }
    nr = nbd_conn_output(c->conn, iov, max);
    if (nr > 0)
        return nr;
    switch (nbd_conn_phase(c->conn)) {
    case NBD_PHASE_WANT_TLS:
        if (!stream->shaking && !start_tls(c))
            start_end(c);
        break;
    case NBD_PHASE_FINISHED:
        if (nbd_conn_why(c->conn))
            log_notice("connection closed: %s peer=%s identity=%s", nbd_conn_why(c->conn),
                       c->peer_text, c->peer.identity);
        start_end(c);
        break;
    default:
        if (c->server->stopping && !goes_on(c) && nbd_conn_is_quiet(c->conn)) {
            start_end(c);
            break;
        }
        stream_want_read(stream, phase_takes_input(c) && !c->kept &&
                                     nbd_conn_wants_input(c->conn));
        break;
    }
    return 0;
}

static void
on_sent(struct stream *stream, size_t bytes)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);

    nbd_conn_sent(c->conn, bytes);
    look_at_handshake(c);
}

static bool
on_owes(struct stream *stream)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);

    /* Waiting for memory is ours, not the peer's, doing. */
    return !c->closing && !c->waiter.waiting && nbd_conn_wants_input(c->conn) &&
           nbd_conn_mid_request(c->conn);
}

static void
on_stream_ready(struct stream *stream)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);
    const char *identity = channel_identity(stream->channel);

    if (!identity[0])
        return; /* plain: the identity is known since accept */
    auth_peer_cert(&c->peer, identity);
    c->peer.local = c->local;
    c->tls_running = true;
    nbd_conn_tls_started(c->conn);
}

static void
on_broken(struct stream *stream, int code, const struct thin_error *err)
{
    struct nbd_client *c = container_of(stream, struct nbd_client, stream);

    if (code < 0 && code != -ECONNRESET && code != -EPIPE)
        log_notice("connection closed: %s peer=%s identity=%s",
                   thin_error_text(err, code), c->peer_text, c->peer.identity);
    start_end(c);
}

/* ---- life --------------------------------------------------------------------------------- */

static void
free_client(struct nbd_client *c)
{
    struct server *server = c->server;

    if (c->attachment)
        attach_close(server->attachments, c->attachment);
    nbd_conn_destroy(c->conn);
    payload_cancel(server->payload, &c->waiter);
    free(c->kept);
    TAILQ_REMOVE(&face.clients, c, link);
    server->connections--;
    free(c);
    if (face.shutdown_done && all_gone()) {
        void (*done)(void *) = face.shutdown_done;

        face.shutdown_done = NULL;
        loop_timer_cancel(server->thin_loop, &face.patience);
        done(face.shutdown_arg);
    }
}

static void
op_idle(void *arg)
{
    struct nbd_client *c = arg;

    loop_defer(c->server->thin_loop, &c->end_task);
}

/* The second half of the end, on a turn of its own: nobody is inside a callback of ours. */
static void
end_task(struct thin_task *task)
{
    struct nbd_client *c = container_of(task, struct nbd_client, end_task);

    stream_fini(&c->stream);
    if (nbd_conn_close(c->conn))
        free_client(c);
    /* Else `idle` comes when the last request has ended, and then this runs again. */
}

static void
start_end(struct nbd_client *c)
{
    if (c->closing)
        return;
    c->closing = true;
    if (c->counted_handshake)
        c->server->handshakes--;
    c->counted_handshake = false;
    loop_defer(c->server->thin_loop, &c->end_task);
}

static const struct nbd_ops export_ops = {
    .list = op_list,
    .open = op_open,
    .contexts = op_contexts,
    .close_export = op_close_export,
    .get_buffer = op_get_buffer,
    .put_buffer = op_put_buffer,
    .submit = op_submit,
    .wake = op_wake,
    .idle = op_idle,
};

static const struct stream_ops client_stream_ops = {
    .ready = on_stream_ready,
    .readable = on_readable,
    .output = on_output,
    .sent = on_sent,
    .owes = on_owes,
    .broken = on_broken,
};

static enum nbd_tls_policy
tls_policy(const struct server *server, bool local)
{
    switch (server->config.nbd_tls) {
    case CONFIG_NBD_TLS_OFF:
        return NBD_TLS_OFF;
    case CONFIG_NBD_TLS_ALLOWED:
        return NBD_TLS_ALLOWED;
    case CONFIG_NBD_TLS_REQUIRED:
        return NBD_TLS_REQUIRED;
    default:
        return local ? NBD_TLS_OFF : NBD_TLS_REQUIRED;
    }
}

static bool
prepare_face(struct server *server)
{
    if (face.ready)
        return true;
    TAILQ_INIT(&face.clients);
    face.server = server;
    face.recv = malloc(RECV_BYTES);
    face.ready = face.recv != NULL;
    return face.ready;
}

void
nbd_face_accept(struct server *server, int fd, bool local)
{
    struct nbd_client *c = prepare_face(server) ? calloc(1, sizeof(*c)) : NULL;
    struct nbd_config config = {.ops = &export_ops,
                                .arg = c,
                                .tls = tls_policy(server, local),
                                .request_extra_bytes = sizeof(struct nbd_job)};
    struct socket_credentials cred;
    struct thin_error err;
    int r = -ENOMEM;

    if (c) {
        c->server = server;
        c->id = ++face.last_id;
        c->local = local;
        c->since_s = (uint64_t)time(NULL);
        c->waiter.ready = buffer_ready;
        c->end_task.run = end_task;
        socket_peer_text(fd, c->peer_text, sizeof(c->peer_text));
        if (local && socket_peer_credentials(fd, &cred) == 0)
            auth_peer_local(&c->peer, cred.uid, cred.gid);
        else
            /* Plain TCP, where configuration allows it: rules for `*` do not apply. */
            snprintf(c->peer.identity, sizeof(c->peer.identity), "%s", "");
        r = nbd_conn_create(&config, &c->conn, &err);
    }
    if (r == 0)
        r = stream_init(&c->stream, &client_stream_ops, server->thin_loop, fd, NULL,
                        PROTO_HANDSHAKE_MS, &err);
    if (r < 0) {
        log_warning("connection refused: %s", thin_strerror(r));
        if (c)
            nbd_conn_destroy(c->conn);
        free(c);
        close(fd);
        return;
    }
    c->counted_handshake = true;
    server->connections++;
    server->handshakes++;
    TAILQ_INSERT_TAIL(&face.clients, c, link);
    if (server->stopping)
        nbd_conn_shutdown(c->conn);
}

static void
patience_over(struct thin_timer *timer)
{
    struct nbd_client *c;

    (void)timer;
    TAILQ_FOREACH(c, &face.clients, link)
        if (!goes_on(c))
            start_end(c);
}

void
nbd_face_shutdown(struct server *server, bool pools_too, void (*done)(void *arg),
                  void *arg)
{
    struct nbd_client *c;
    bool ready = prepare_face(server);

    face.keeps_pools = !pools_too;
    if (!ready || all_gone()) {
        done(arg);
        return;
    }
    face.shutdown_done = done;
    face.shutdown_arg = arg;
    face.patience.fire = patience_over;
    TAILQ_FOREACH(c, &face.clients, link) {
        if (goes_on(c))
            continue;
        nbd_conn_shutdown(c->conn);
        if (nbd_conn_is_quiet(c->conn))
            start_end(c);
    }
    if (loop_timer_set(server->thin_loop, &face.patience,
                       loop_now_ns(server->thin_loop) + SHUTDOWN_PATIENCE_NS) < 0)
        patience_over(&face.patience);
}

void
nbd_face_drop_askers(const char *pool)
{
    struct nbd_client *c;

    if (!face.ready)
        return;
    TAILQ_FOREACH(c, &face.clients, link)
        if (c->asker[0] && strcmp(c->asked_pool, pool) == 0)
            start_end(c);
}

void
nbd_face_fini(void)
{
    free(face.recv);
    face.recv = NULL;
    face.ready = false;
}

unsigned
nbd_face_list(struct server *server, struct nbd_face_info *infos, unsigned max)
{
    struct nbd_client *c;
    unsigned n = 0;

    if (!prepare_face(server))
        return 0;
    TAILQ_FOREACH(c, &face.clients, link) {
        if (n == max)
            break;
        infos[n].id = c->id;
        infos[n].since_s = c->since_s;
        snprintf(infos[n].identity, sizeof(infos[n].identity), "%s", c->peer.identity);
        snprintf(infos[n].peer, sizeof(infos[n].peer), "%s", c->peer_text);
        if (c->attachment) /* it may have been renamed since */
            snprintf(infos[n].volume, sizeof(infos[n].volume), "%s/%s",
                     attach_pool_name(c->attachment), volume_name(c->attachment->volume));
        else
            infos[n].volume[0] = '\0';
        n++;
    }
    return n;
}

bool
nbd_face_kick(struct server *server, uint64_t id)
{
    struct nbd_client *c;

    if (!prepare_face(server))
        return false;
    TAILQ_FOREACH(c, &face.clients, link)
        if (c->id == id) {
            start_end(c);
            return true;
        }
    return false;
}
