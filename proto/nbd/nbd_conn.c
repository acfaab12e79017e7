/* A connection's life, and the loop that hands the peer's bytes to whoever expects them. */
#include "proto/nbd/nbd_private.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/bytes.h"
#include "core/base/checked.h"

static int
check_config(const struct nbd_config *config, struct thin_error *err)
{
    const struct nbd_limits *l = &config->limits;

    if (l->max_payload && (l->max_payload < (1u << 20) || l->max_payload % 4096))
        return thin_fail(err, -THIN_E_INVALID,
                         "largest payload %u, wanted is a multiple of 4096 from 1 MiB on",
                         l->max_payload);
    if (l->option_bytes && l->option_bytes < NBD_NAME_MAX + 64)
        return thin_fail(err, -THIN_E_INVALID, "option data limit %u, wanted at least %u",
                         l->option_bytes, NBD_NAME_MAX + 64);
    return 0;
}

int
nbd_conn_create(const struct nbd_config *config, struct nbd_conn **ret_conn,
                struct thin_error *err)
{
    struct nbd_conn *conn;
    uint8_t greeting[NBD_GREETING_BYTES];
    int r;

    r = check_config(config, err);
    if (r < 0)
        return r;
    conn = calloc(1, sizeof(*conn));
    if (!conn)
        return thin_fail_code(err, -ENOMEM, "NBD connection");
    conn->config = *config;
    if (!conn->config.limits.option_bytes)
        conn->config.limits.option_bytes = NBD_OPTION_BYTES;
    if (!conn->config.limits.max_payload)
        conn->config.limits.max_payload = NBD_MAX_PAYLOAD;
    if (!conn->config.limits.max_requests)
        conn->config.limits.max_requests = NBD_MAX_REQUESTS;
    STAILQ_INIT(&conn->out);
    STAILQ_INIT(&conn->replies);
    STAILQ_INIT(&conn->free_slots);
    conn->phase = NBD_PHASE_HANDSHAKE;
    conn->in_state = NBD_IN_CLIENT_FLAGS;

    store_be64(greeting, NBD_MAGIC);
    store_be64(greeting + 8, NBD_OPTION_MAGIC);
    store_be16(greeting + 16, NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    conn->hs = calloc(1, sizeof(*conn->hs));
    if (!conn->hs || !nbd_out_put(conn, greeting, sizeof(greeting))) {
        nbd_conn_close(conn);
        nbd_conn_destroy(conn);
        return thin_fail_code(err, -ENOMEM, "NBD connection");
    }
    *ret_conn = conn;
    return 0;
}

/* Something of the owner's is still to come: he cannot let the connection go. */
bool
nbd_runs(const struct nbd_conn *conn)
{
    return conn->in_flight > 0 || conn->wait != NBD_WAIT_NONE;
}

static void
close_export(struct nbd_conn *conn)
{
    if (!conn->export_open)
        return;
    conn->export_open = false;
    if (conn->config.ops->close_export)
        conn->config.ops->close_export(conn->config.arg, conn->handle);
}

bool
nbd_conn_close(struct nbd_conn *conn)
{
    struct nbd_slot *slot;

    if (conn->phase != NBD_PHASE_CLOSED) {
        conn->phase = NBD_PHASE_CLOSED;
        conn->in_state = NBD_IN_STOPPED;
        nbd_out_drop(conn);
        while ((slot = STAILQ_FIRST(&conn->replies))) {
            STAILQ_REMOVE_HEAD(&conn->replies, link);
            nbd_slot_release(slot);
        }
        conn->reply_sent = 0;
        if (conn->current) {
            nbd_slot_release(conn->current);
            conn->current = NULL;
        }
    }
    if (nbd_runs(conn))
        return false;
    conn->told_idle = true;
    close_export(conn);
    return true;
}

/* In CLOSED, after an answer has come. May be the end of `conn`. */
void
nbd_maybe_idle(struct nbd_conn *conn)
{
    if (conn->phase != NBD_PHASE_CLOSED || nbd_runs(conn) || conn->told_idle)
        return;
    conn->told_idle = true;
    close_export(conn);
    conn->config.ops->idle(conn->config.arg);
}

void
nbd_conn_destroy(struct nbd_conn *conn)
{
    if (!conn)
        return;
    if (conn->phase != NBD_PHASE_CLOSED)
        nbd_conn_close(conn);
    THIN_ASSERT(!nbd_runs(conn));
    nbd_handshake_free(conn);
    free(conn->slots);
    free(conn);
}

void
nbd_conn_shutdown(struct nbd_conn *conn)
{
    conn->shutting_down = true;
}

/* No more input; what runs is finished and sent. */
void
nbd_drain(struct nbd_conn *conn, const char *why)
{
    if (conn->phase == NBD_PHASE_CLOSED || conn->phase == NBD_PHASE_DRAINING)
        return;
    conn->phase = NBD_PHASE_DRAINING;
    conn->in_state = NBD_IN_STOPPED;
    conn->why = why;
}

void
nbd_wake(struct nbd_conn *conn)
{
    if (conn->depth == 0 && conn->phase != NBD_PHASE_CLOSED && conn->config.ops->wake)
        conn->config.ops->wake(conn->config.arg);
}

enum nbd_phase
nbd_conn_phase(const struct nbd_conn *conn)
{
    if (conn->phase == NBD_PHASE_DRAINING && nbd_conn_is_quiet(conn))
        return NBD_PHASE_FINISHED;
    return conn->phase;
}

const char *
nbd_conn_why(const struct nbd_conn *conn)
{
    return conn->why;
}

bool
nbd_conn_in_handshake(const struct nbd_conn *conn)
{
    return conn->hs && conn->phase != NBD_PHASE_CLOSED;
}

bool
nbd_conn_mid_request(const struct nbd_conn *conn)
{
    switch (conn->in_state) {
    case NBD_IN_OPTION_DATA:
    case NBD_IN_OPTION_SKIP:
    case NBD_IN_PAYLOAD:
    case NBD_IN_PAYLOAD_SKIP:
        return true;
    default:
        return conn->in_state != NBD_IN_STOPPED && conn->head_have > 0;
    }
}

bool
nbd_conn_is_quiet(const struct nbd_conn *conn)
{
    return !nbd_runs(conn) && !conn->current && !nbd_conn_has_output(conn);
}

unsigned
nbd_conn_in_flight(const struct nbd_conn *conn)
{
    return conn->in_flight;
}

void
nbd_conn_set_size(struct nbd_conn *conn, uint64_t size)
{
    conn->size = size;
}

void
nbd_conn_tls_started(struct nbd_conn *conn)
{
    THIN_ASSERT(conn->phase == NBD_PHASE_WANT_TLS);
    THIN_ASSERT(!nbd_conn_has_output(conn));
    conn->tls_on = true;
    conn->structured = false;
    conn->extended = false;
    nbd_contexts_forget(conn);
    conn->phase = NBD_PHASE_HANDSHAKE;
    nbd_option_next(conn);
}

/* ---- input ------------------------------------------------------------------------- */

/* Back-pressure: what was asked for must be dealt with first. */
static bool
must_wait(const struct nbd_conn *conn)
{
    switch (conn->in_state) {
    case NBD_IN_WAIT_ANSWER:
    case NBD_IN_WAIT_BUFFER:
        return true;
    case NBD_IN_OPTION_HEAD:
        return conn->head_have == 0 && conn->out_len >= NBD_HANDSHAKE_OUT_SOFT;
    case NBD_IN_REQUEST_HEAD:
        return conn->head_have == 0 && !nbd_slot_free_is_left(conn);
    default:
        return false;
    }
}

bool
nbd_conn_wants_input(const struct nbd_conn *conn)
{
    return conn->in_state != NBD_IN_STOPPED && !must_wait(conn);
}

/* Collects a head of `want` bytes; true when it is complete. */
static bool
collect_head(struct nbd_conn *conn, const uint8_t *bytes, size_t len, uint32_t want,
             size_t *ret_used)
{
    size_t n = min_u64(len, want - conn->head_have);

    memcpy(conn->head + conn->head_have, bytes, n);
    conn->head_have += (uint32_t)n;
    *ret_used = n;
    if (conn->head_have < want)
        return false;
    conn->head_have = 0;
    return true;
}

static size_t
option_data(struct nbd_conn *conn, const uint8_t *bytes, size_t len)
{
    struct nbd_handshake *hs = conn->hs;
    size_t n = min_u64(len, hs->option_len - hs->option_have);

    if (hs->option_data)
        memcpy(hs->option_data + hs->option_have, bytes, n);
    hs->option_have += (uint32_t)n;
    if (hs->option_have == hs->option_len)
        nbd_option_complete(conn);
    return n;
}

static size_t
payload_skip(struct nbd_conn *conn, size_t len)
{
    size_t n = min_u64(len, conn->payload_left);

    conn->payload_left -= n;
    if (conn->payload_left == 0)
        nbd_payload_complete(conn);
    return n;
}

/* Feeds one state; `len` > 0. */
static size_t
input_step(struct nbd_conn *conn, const uint8_t *bytes, size_t len)
{
    size_t used = 0;

    switch (conn->in_state) {
    case NBD_IN_CLIENT_FLAGS:
        if (collect_head(conn, bytes, len, 4, &used))
            nbd_client_flags(conn);
        return used;
    case NBD_IN_OPTION_HEAD:
        if (collect_head(conn, bytes, len, NBD_OPTION_HEAD_BYTES, &used))
            nbd_option_head(conn);
        return used;
    case NBD_IN_OPTION_DATA:
    case NBD_IN_OPTION_SKIP:
        return option_data(conn, bytes, len);
    case NBD_IN_REQUEST_HEAD:
        if (collect_head(conn, bytes, len, nbd_request_head_bytes(conn), &used))
            nbd_request_head(conn);
        return used;
    case NBD_IN_PAYLOAD:
        used = min_u64(len, conn->payload_left);
        nbd_payload_put(conn, bytes, used);
        return used;
    case NBD_IN_PAYLOAD_SKIP:
        return payload_skip(conn, len);
    case NBD_IN_STOPPED:
        return len;
    case NBD_IN_WAIT_ANSWER:
    case NBD_IN_WAIT_BUFFER:
        break;
    }
    return 0;
}

size_t
nbd_conn_input(struct nbd_conn *conn, const void *bytes, size_t len)
{
    const uint8_t *p = bytes;
    size_t used = 0;

    conn->depth++;
    while (used < len && !must_wait(conn))
        used += input_step(conn, p + used, len - used);
    conn->depth--;
    return used;
}

unsigned
nbd_conn_want(struct nbd_conn *conn, struct iovec *iov, unsigned max)
{
    const struct nbd_buffer *b;
    uint64_t left = conn->payload_left;
    size_t off = conn->payload_off;
    unsigned i, n = 0;

    if (conn->in_state != NBD_IN_PAYLOAD)
        return 0;
    b = &conn->current->req.buffer;
    for (i = conn->payload_iov; i < b->iovcnt && n < max && left > 0; i++) {
        iov[n].iov_base = (uint8_t *)b->iov[i].iov_base + off;
        iov[n].iov_len = min_u64(b->iov[i].iov_len - off, left);
        left -= iov[n].iov_len;
        off = 0;
        if (iov[n].iov_len > 0)
            n++;
    }
    return n;
}

void
nbd_conn_received(struct nbd_conn *conn, size_t len)
{
    if (len == 0 || conn->phase == NBD_PHASE_CLOSED)
        return;
    THIN_ASSERT(conn->in_state == NBD_IN_PAYLOAD);
    THIN_ASSERT(len <= conn->payload_left);
    conn->depth++;
    nbd_payload_put(conn, NULL, len);
    conn->depth--;
}

void
nbd_conn_resume(struct nbd_conn *conn)
{
    if (conn->in_state != NBD_IN_WAIT_BUFFER)
        return;
    conn->depth++;
    nbd_try_buffer(conn);
    conn->depth--;
}
