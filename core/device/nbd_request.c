/*
 * The NBD device's requests: cut into pieces, sent as commands, put together again.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/device/nbd_private.h"

/* Written where the server knows no zeroes. */
static char zeros[NBD_PIECE_BYTES];

static bool
is_change(enum device_op op)
{
    return op == DEVICE_WRITE || op == DEVICE_WRITE_ZEROES || op == DEVICE_DISCARD;
}

/* ---- the queue ---------------------------------------------------------------------------- */

static void
enqueue(struct nbd_device *n, struct device_io *io)
{
    io->driver_u32 |= NBD_IO_QUEUED;
    TAILQ_INSERT_TAIL(&n->queue, io, link);
}

static void
dequeue(struct nbd_device *n, struct device_io *io)
{
    io->driver_u32 &= ~NBD_IO_QUEUED;
    TAILQ_REMOVE(&n->queue, io, link);
}

void
nbd_request_first(struct nbd_device *n, struct device_io *io)
{
    io->driver_u32 = NBD_IO_QUEUED;
    io->driver_u64[NBD_IO_SINCE] = loop_now_ns(n->base.loop);
    TAILQ_INSERT_HEAD(&n->queue, io, link);
}

void
nbd_request_unqueue(struct nbd_device *n, struct device_io *io)
{
    if (io->driver_u32 & NBD_IO_QUEUED)
        dequeue(n, io);
}

static void
finish(struct nbd_device *n, struct device_io *io, int result)
{
    if (io == &n->renew_io) {
        nbd_renew_flushed(n, result);
        return;
    }
    device_log_trouble(&n->base, io, result, &n->io_log);
    device_finish(&n->base, io, result);
}

static bool
all_sent(const struct device_io *io)
{
    if (io->op == DEVICE_FLUSH || (io->driver_u32 & NBD_IO_SYNCING))
        return io->driver_u32 & NBD_IO_FLUSH_SENT;
    return io->driver_u64[NBD_IO_SENT] == io->len;
}

/* Nothing of it is outstanding and nothing queued: what comes next? */
static void
settle(struct nbd_device *n, struct device_io *io)
{
    if (io->result < 0) {
        finish(n, io, io->result);
    } else if (!all_sent(io)) {
        enqueue(n, io);
    } else if (io->driver_u32 & NBD_IO_UNSYNCED) {
        io->driver_u32 &= ~NBD_IO_UNSYNCED;
        io->driver_u32 |= NBD_IO_SYNCING;
        enqueue(n, io);
    } else {
        finish(n, io, 0);
    }
}

/* ---- pieces --------------------------------------------------------------------------------- */

static uint32_t
data_bytes_max(const struct nbd_device *n)
{
    return (uint32_t)(n->info.max_bytes ? min_u64(n->info.max_bytes, NBD_PIECE_BYTES)
                                        : NBD_PIECE_BYTES);
}

/* Where the piece at `skip` begins in memory, and how much of it lies in one stretch. */
static char *
memory_at(const struct device_io *io, uint64_t skip, uint64_t *ret_len)
{
    struct iovec iov = {NULL, 0};

    device_iov_window(io, skip, &iov, 1);
    *ret_len = iov.iov_len;
    return iov.iov_base;
}

/*
 * A piece of a READ or WRITE goes straight from or to the caller's memory if that is all
 * that is left, or a large stretch; else through a bounce buffer, which also takes what
 * is not a multiple of the server's unit. NULL in *ret_direct: through a bounce buffer.
 */
static uint32_t
cut_data(const struct nbd_device *n, const struct device_io *io, uint64_t skip,
         char **ret_direct)
{
    uint64_t unit = n->info.unit, begin = io->offset + skip, left = io->len - skip;
    uint64_t max = data_bytes_max(n), stretch, len;
    char *at = memory_at(io, skip, &stretch);

    len = round_down_u64(min_u64(min_u64(left, stretch), max), unit);
    if (begin % unit == 0 && len > 0 && (len == left || len >= NBD_DIRECT_BYTES) &&
        begin + len <= n->data_end) {
        *ret_direct = at;
        return (uint32_t)len;
    }
    *ret_direct = NULL;
    /* `max` is a multiple of the unit, so that rounding outwards stays within it. */
    return (uint32_t)min_u64(left, max - begin % unit);
}

static uint32_t
cut(const struct nbd_device *n, const struct device_io *io, enum device_op op,
    uint64_t skip, char **ret_direct)
{
    uint64_t left = io->len - skip;
    uint64_t max;

    *ret_direct = NULL;
    if (op == DEVICE_WRITE && io->op == DEVICE_WRITE_ZEROES) {
        *ret_direct = zeros;
        return (uint32_t)min_u64(left, data_bytes_max(n));
    }
    switch (op) {
    case DEVICE_READ:
    case DEVICE_WRITE:
        return cut_data(n, io, skip, ret_direct);
    case DEVICE_WRITE_ZEROES:
        max = n->info.max_bytes ? n->info.max_bytes : NBD_ZERO_BYTES;
        return (uint32_t)min_u64(left, min_u64(max, NBD_ZERO_BYTES));
    case DEVICE_DISCARD:
        return (uint32_t)min_u64(left, NBD_TRIM_BYTES);
    case DEVICE_EXTENTS:
        return (uint32_t)min_u64(left, NBD_STATUS_BYTES);
    default:
        return 0;
    }
}

/* ---- libnbd's calls: its handle is locked, so they only note -------------------------------- */

static int
note_ended(void *arg, int *error)
{
    struct nbd_command *c = arg;

    c->error = *error;
    TAILQ_INSERT_TAIL(&c->link->ended, c, entry);
    return 1; /* libnbd may forget it */
}

static int
note_chunk(void *arg, const void *buf, size_t count, uint64_t offset, unsigned status,
           int *error)
{
    struct nbd_command *c = arg;

    (void)buf;
    (void)offset;
    (void)error;
    if (status != LIBNBD_READ_ERROR)
        c->seen += count;
    return 0;
}

static enum device_extent_kind
extent_kind(uint32_t state)
{
    if (!(state & LIBNBD_STATE_ZERO))
        return DEVICE_EXTENT_DATA;
    return state & LIBNBD_STATE_HOLE ? DEVICE_EXTENT_HOLE : DEVICE_EXTENT_ZERO;
}

/*
 * The server counts in bytes and we in sectors: only whole sectors of one kind are
 * zeros. What lies between those is data, which may read as anything.
 */
static int
note_extents(void *arg, const char *context, uint64_t offset, uint32_t *entries,
             size_t nr_entries, int *error)
{
    struct nbd_command *c = arg;
    struct device_io *io = c->io;
    uint64_t end = c->begin + c->len, at = c->begin, pos = offset;
    bool room = true;

    (void)error;
    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || c->answered ||
        offset != c->wire_begin)
        return 0;
    c->answered = true;
    for (size_t i = 0; i + 1 < nr_entries && pos < end && room; i += 2) {
        enum device_extent_kind kind = extent_kind(entries[i + 1]);
        uint64_t from = round_up_u64(max_u64(pos, c->begin), SECTOR_SIZE);
        uint64_t to = min_u64(round_down_u64(pos + entries[i], SECTOR_SIZE), end);

        pos += entries[i];
        if (kind == DEVICE_EXTENT_DATA || from >= to)
            continue;
        room = device_extent_add(io, from - at, DEVICE_EXTENT_DATA);
        if (!room)
            break;
        at = from;
        room = device_extent_add(io, to - from, kind);
        if (room)
            at = to;
    }
    pos = min_u64(round_up_u64(pos, SECTOR_SIZE), end);
    if (room && pos > at)
        device_extent_add(io, pos - at, DEVICE_EXTENT_DATA);
    return 0;
}

/* ---- commands ----------------------------------------------------------------------------------- */

static struct nbd_command *
get_command(struct nbd_device *n)
{
    for (unsigned i = 0; i < n->nr_links; i++) {
        struct nbd_link *link = &n->links[(n->next_link + i) % n->nr_links];
        struct nbd_command *c = TAILQ_FIRST(&link->free);

        if (link->state != NBD_LINK_UP || !c || nbd_link_is_dead(link))
            continue;
        n->next_link = (n->next_link + i + 1) % n->nr_links;
        return c;
    }
    return NULL;
}

static void
free_command(struct nbd_device *n, struct nbd_command *c)
{
    if (c->bounce)
        n->bounces[n->nr_bounces++] = take(c->bounce);
    c->io = NULL;
    TAILQ_INSERT_TAIL(&c->link->free, c, entry);
}

static int64_t
call_libnbd(struct nbd_command *c, char *data, uint32_t flags)
{
    nbd_completion_callback ended = {.callback = note_ended, .user_data = c};
    nbd_chunk_callback chunk = {.callback = note_chunk, .user_data = c};
    nbd_extent_callback extents = {.callback = note_extents, .user_data = c};
    struct nbd_handle *h = c->link->handle;

    switch (c->op) {
    case DEVICE_READ:
        return nbd_aio_pread_structured(h, data, c->wire_len, c->wire_begin, chunk, ended,
                                        0);
    case DEVICE_WRITE:
        return nbd_aio_pwrite(h, data, c->wire_len, c->wire_begin, ended, flags);
    case DEVICE_WRITE_ZEROES:
        return nbd_aio_zero(h, c->wire_len, c->wire_begin, ended, flags);
    case DEVICE_DISCARD:
        return nbd_aio_trim(h, c->wire_len, c->wire_begin, ended, flags);
    case DEVICE_FLUSH:
        return nbd_aio_flush(h, ended, 0);
    default:
        return nbd_aio_block_status(h, c->wire_len, c->wire_begin, extents, ended, 0);
    }
}

static uint32_t
command_flags(const struct nbd_device *n, const struct nbd_command *c)
{
    const struct device_io *io = c->io;
    uint32_t flags = c->durable ? LIBNBD_CMD_FLAG_FUA : 0;

    if (c->op != DEVICE_WRITE_ZEROES)
        return flags;
    if (io->flags & DEVICE_NO_UNMAP)
        flags |= LIBNBD_CMD_FLAG_NO_HOLE;
    /* The first piece decides whether it is fast; half of it done, it is to be ended. */
    if ((io->flags & DEVICE_ONLY_FAST) && n->info.fast_zero && c->begin == io->offset)
        flags |= LIBNBD_CMD_FLAG_FAST_ZERO;
    return flags;
}

static enum device_op
command_op(const struct nbd_device *n, const struct device_io *io)
{
    if (io->driver_u32 & NBD_IO_SYNCING)
        return DEVICE_FLUSH;
    if (io->op == DEVICE_WRITE_ZEROES && !n->info.zero)
        return DEVICE_WRITE;
    return io->op;
}

static void
count_sent(struct nbd_device *n, struct nbd_command *c)
{
    struct device_io *io = c->io;
    struct nbd_link *link = c->link;

    if (link->in_flight++ == 0)
        link->heard_ns = loop_now_ns(n->base.loop);
    io->driver_u64[NBD_IO_OUTSTANDING]++;
    if (c->op == DEVICE_FLUSH)
        io->driver_u32 |= NBD_IO_FLUSH_SENT;
    else if (c->op == DEVICE_EXTENTS)
        io->driver_u64[NBD_IO_SENT] = io->len; /* a prefix will do */
    else
        io->driver_u64[NBD_IO_SENT] += c->len;
    if (is_change(c->op)) {
        n->writes_in_flight++;
        if ((io->flags & DEVICE_FUA) && !c->durable)
            io->driver_u32 |= NBD_IO_UNSYNCED;
    }
}

/* False: no command or bounce buffer is free, or no connection; nothing has changed. */
static bool
send_piece(struct nbd_device *n, struct device_io *io)
{
    struct nbd_command *c = get_command(n);
    uint64_t skip = io->driver_u64[NBD_IO_SENT], unit = n->info.unit;
    char *data = NULL;

    if (!c)
        return false;
    c->op = command_op(n, io);
    c->len = c->op == DEVICE_FLUSH ? 0 : cut(n, io, c->op, skip, &data);
    if ((c->op == DEVICE_READ || c->op == DEVICE_WRITE) && !data) {
        if (n->nr_bounces == 0)
            return false;
        c->bounce = n->bounces[--n->nr_bounces];
        data = c->bounce;
    }
    TAILQ_REMOVE(&c->link->free, c, entry);
    c->io = io;
    c->begin = c->op == DEVICE_FLUSH ? 0 : io->offset + skip;
    c->wire_begin = round_down_u64(c->begin, unit);
    c->wire_len = (uint32_t)(min_u64(round_up_u64(c->begin + c->len, unit), n->data_end) -
                             c->wire_begin);
    c->seen = 0;
    c->cover = n->written;
    c->durable = is_change(c->op) && (io->flags & DEVICE_FUA) && n->info.fua;
    c->answered = false;
    if (c->bounce && c->op == DEVICE_WRITE)
        device_iov_to_buf(io, skip, c->bounce, c->len);
    if (c->op == DEVICE_EXTENTS)
        io->ret_nr_extents = 0;
    if (call_libnbd(c, data, command_flags(n, c)) < 0) {
        char words[NBD_WORDS_MAX];
        int r = nbd_last_error(words, sizeof(words));

        free_command(n, c);
        if (nbd_link_is_dead(c->link))
            return false;
        log_debug("libnbd refused a command device=%s words=%s", n->base.name, words);
        io->result = r;
        return true;
    }
    count_sent(n, c);
    return true;
}

/* One piece alone shows whether zeroes are fast. */
static bool
goes_alone(const struct device_io *io)
{
    return (io->flags & DEVICE_ONLY_FAST) && io->driver_u64[NBD_IO_SENT] == 0;
}

void
nbd_request_pump(struct nbd_device *n)
{
    struct device_io *io;

    while ((io = TAILQ_FIRST(&n->queue))) {
        bool alone = goes_alone(io);

        if (n->renewal > NBD_RENEW_LOOKING && io != &n->renew_io)
            return; /* on the connections to come */

        while (io->result == 0 && !all_sent(io)) {
            if (!send_piece(n, io))
                return;
            if (alone)
                break;
        }
        dequeue(n, io);
        if (io->driver_u64[NBD_IO_OUTSTANDING] == 0)
            settle(n, io);
    }
}

/* ---- ends ------------------------------------------------------------------------------------- */

static bool
is_refusal(int error)
{
    return error == EINVAL || error == EPERM || error == EOVERFLOW ||
           error == EOPNOTSUPP || error == ENOMEM;
}

/* What the end of this command says of what the server has on its disk. */
static void
note_durability(struct nbd_device *n, const struct nbd_command *c)
{
    if (c->op == DEVICE_FLUSH && c->error == 0)
        n->flushed = max_u64(n->flushed, c->cover);
    else if (is_change(c->op) && !c->durable && c->error == 0)
        n->written++;
    /* A server that flushes again after a failure may well succeed over lost pages. */
    if ((c->op == DEVICE_FLUSH || c->durable) && c->error != 0 && n->sync_error == 0 &&
        !(c->durable && is_refusal(c->error)))
        n->sync_error = -c->error;
}

static int
command_result(struct nbd_command *c)
{
    struct device_io *io = c->io;

    if (c->error != 0 && !(c->op == DEVICE_EXTENTS && c->error == EOPNOTSUPP))
        return -c->error;
    if (c->op == DEVICE_READ) {
        if (c->seen != c->wire_len)
            return -EIO;
        if (c->bounce) {
            uint64_t wanted = c->begin + c->len - c->wire_begin;

            if (wanted > c->wire_len)
                memset(c->bounce + c->wire_len, 0, wanted - c->wire_len);
            device_iov_from_buf(io, c->begin - io->offset,
                                c->bounce + (c->begin - c->wire_begin), c->len);
        }
    }
    /* It may answer for a part, or not at all. */
    if (c->op == DEVICE_EXTENTS && io->ret_nr_extents == 0)
        device_extent_add(io, c->len, DEVICE_EXTENT_DATA);
    return 0;
}

static void
end_command(struct nbd_device *n, struct nbd_command *c)
{
    struct device_io *io = c->io;
    int r;

    THIN_ASSERT(io);
    r = command_result(c);
    note_durability(n, c);
    if (is_change(c->op))
        n->writes_in_flight--;
    c->link->in_flight--;
    c->link->backoff_ms = NBD_BACKOFF_MIN_MS;
    free_command(n, c);
    if (r < 0 && io->result == 0)
        io->result = r;
    io->driver_u64[NBD_IO_OUTSTANDING]--;
    if (io->driver_u64[NBD_IO_OUTSTANDING] == 0 && !(io->driver_u32 & NBD_IO_QUEUED))
        settle(n, io);
}

void
nbd_request_collect(struct nbd_link *link)
{
    struct nbd_command *c;

    while ((c = TAILQ_FIRST(&link->ended))) {
        TAILQ_REMOVE(&link->ended, c, entry);
        /* ENOTCONN is libnbd's word for what died with the connection: no answer, as if
           it were still in flight. ESHUTDOWN is the server's, before that. */
        if (c->error == ENOTCONN || c->error == ESHUTDOWN) {
            if (c->error == ESHUTDOWN)
                snprintf(link->words, sizeof(link->words), "the server is shutting down");
            link->broken = true;
            continue;
        }
        end_command(link->n, c);
    }
}

/* ---- without a connection ------------------------------------------------------------------------ */

static void
abort_command(struct nbd_device *n, struct nbd_command *c, int code)
{
    struct device_io *io = c->io;

    if (is_change(c->op))
        n->writes_in_flight--;
    c->link->in_flight--;
    free_command(n, c);
    io->driver_u64[NBD_IO_OUTSTANDING]--;
    /* What has no effect starts again from its beginning. */
    io->driver_u64[NBD_IO_SENT] = 0;
    io->driver_u32 &= ~NBD_IO_FLUSH_SENT;
    if (code < 0 && io->result == 0)
        io->result = code;
    if (io->driver_u64[NBD_IO_OUTSTANDING] == 0 && !(io->driver_u32 & NBD_IO_QUEUED))
        settle(n, io);
}

void
nbd_request_abort(struct nbd_device *n, int code)
{
    struct device_io *io;

    THIN_ASSERT(code < 0 || n->writes_in_flight == 0);
    for (unsigned i = 0; i < n->nr_links; i++) {
        struct nbd_link *link = &n->links[i];

        TAILQ_INIT(&link->ended);
        for (unsigned j = 0; j < NBD_COMMANDS_MAX; j++)
            if (link->commands[j].io)
                abort_command(n, &link->commands[j], code);
    }
    while (code < 0 && (io = TAILQ_FIRST(&n->queue))) {
        dequeue(n, io);
        finish(n, io, io->result < 0 ? io->result : code);
    }
}

void
nbd_request_expire(struct nbd_device *n, uint64_t since_ns, int code)
{
    struct device_io *io = TAILQ_FIRST(&n->queue), *next;

    for (; io; io = next) {
        next = TAILQ_NEXT(io, link);
        if (io->driver_u64[NBD_IO_SINCE] > since_ns)
            continue;
        dequeue(n, io);
        finish(n, io, io->result < 0 ? io->result : code);
    }
}

/* ---- in ------------------------------------------------------------------------------------------- */

/* What needs no command: *ret_result is its end. */
static bool
ends_at_once(struct nbd_device *n, struct device_io *io, int *ret_result)
{
    *ret_result = 0;
    if (n->sync_error < 0 && (io->op == DEVICE_FLUSH || (io->flags & DEVICE_FUA))) {
        *ret_result = n->sync_error;
        return true;
    }
    switch (io->op) {
    case DEVICE_GROW:
        return io->offset <= n->info.size;
    case DEVICE_ALLOCATE:
        *ret_result = -THIN_E_UNSUPPORTED;
        return true;
    case DEVICE_DISCARD:
        return !n->info.trim;
    case DEVICE_WRITE_ZEROES:
        *ret_result = -EOPNOTSUPP;
        return (io->flags & DEVICE_ONLY_FAST) && !(n->info.zero && n->info.fast_zero);
    case DEVICE_EXTENTS:
        if (n->info.status)
            return false;
        device_extent_add(io, io->len, DEVICE_EXTENT_DATA);
        return true;
    case DEVICE_FLUSH:
        return !n->info.flush; /* read-only: nothing to make durable */
    default:
        return false;
    }
}

void
nbd_request_submit(struct nbd_device *n, struct device_io *io)
{
    int r;

    io->driver_u32 = 0;
    io->driver_u64[NBD_IO_SENT] = 0;
    io->driver_u64[NBD_IO_OUTSTANDING] = 0;
    io->driver_u64[NBD_IO_SINCE] = loop_now_ns(n->base.loop);
    io->result = 0;
    if (ends_at_once(n, io, &r))
        finish(n, io, r);
    else if (io->op == DEVICE_GROW)
        nbd_renew_submit(n, io);
    else
        enqueue(n, io);
}
