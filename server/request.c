#include "server/request.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/base/crc32c.h"
#include "server/conn.h"
#include "server/hello.h"

#define SPARE_MAX         1024u /* request objects kept for reuse */
#define MANAGEMENT_CREDIT 8u /* what a byte of a management request counts as a credit */

TAILQ_HEAD(request_list, request);

/* Freed objects, for all sessions: the data path allocates nothing after a while. */
static struct request_list spare = TAILQ_HEAD_INITIALIZER(spare);
static unsigned nr_spare;

static struct request *
create(struct server *server)
{
    struct request *rq = TAILQ_FIRST(&spare);

    if (rq) {
        TAILQ_REMOVE(&spare, rq, link);
        nr_spare--;
        memset(rq, 0, offsetof(struct request, extents));
        rq->arena = NULL;
        rq->message = NULL;
        rq->work = NULL;
    } else {
        rq = calloc(1, sizeof(*rq));
    }
    if (rq)
        rq->server = server;
    return rq;
}

static void
destroy(struct request *rq)
{
    if (rq->piece)
        payload_put(rq->server->payload, rq->piece);
    rq->piece = NULL;
    free(rq->arena);
    free(rq->work);
    if (nr_spare < SPARE_MAX) {
        TAILQ_INSERT_HEAD(&spare, rq, link);
        nr_spare++;
    } else {
        free(rq);
    }
}

void
requests_fini(void)
{
    struct request *rq;

    while ((rq = TAILQ_FIRST(&spare))) {
        TAILQ_REMOVE(&spare, rq, link);
        free(rq);
    }
    nr_spare = 0;
}

/* ---- the end ----------------------------------------------------------------------------- */

/* Nothing of the request is needed any more: credits and slot come back. */
static void
finish(struct request *rq)
{
    struct session *s = rq->session;
    struct session_volume *v = rq->volume;
    struct conn *conn = rq->conn;

    if (rq->slot && s->slots[rq->slot].running == rq)
        s->slots[rq->slot].running = NULL;
    if (v && --v->in_flight == 0 && v->closing)
        ops_volume_quiet(v);
    session_finish(s, rq->credit_bytes);
    destroy(rq);
    if (s->in_flight == 0) {
        hello_session_quiet(s);
        conns_session_quiet(s);
    }
    if (conn)
        conn_resume(conn);
}

/* The reply has left (or nobody wants it). */
static void
reply_sent(struct request *rq)
{
    finish(rq);
}

static void
set_reply_head(const struct request *rq, Thin__Reply *reply, Thin__Message *message)
{
    reply->slot = rq->slot;
    reply->seq = rq->seq;
    message->body_case = THIN__MESSAGE__BODY_REPLY;
    message->reply = reply;
}

/* Success cannot be said to one who has not got all the pieces before. */
static void
make_lost_reply(const struct request *rq, Thin__Reply *reply)
{
    thin__reply__init(reply);
    reply->code = rq->repeatable ? -THIN_E_DISCONNECTED : -THIN_E_UNKNOWN_OUTCOME;
    reply->text =
        (char
             *)(uintptr_t)(rq->repeatable
                               ? "a part of the answer was lost with its connection; ask again"
                               : "it was done, but its answer was lost with the connection");
}

/* Keeps a small reply for a repeated request; a big one must be made again. Pieces are
   not kept: of an answer that had some it is told that they are lost. */
static void
keep_reply(struct request *rq, const Thin__Reply *reply, const uint8_t *bytes, size_t len)
{
    struct session_slot *slot = &rq->session->slots[rq->slot];
    Thin__Message message = THIN__MESSAGE__INIT;
    Thin__Reply lost;
    uint8_t frame[SESSION_KEPT_REPLY_MAX];

    slot->running = NULL;
    if (rq->repeatable) {
        session_slot_clear(slot);
    } else if (rq->in_pieces && reply->code == 0) {
        make_lost_reply(rq, &lost);
        set_reply_head(rq, &lost, &message);
        len = FRAME_PREFIX_BYTES + message_encoded_bytes(&message);
        message_encode(&message, 0, frame);
        session_slot_keep(slot, frame, len);
    } else {
        session_slot_keep(slot, bytes, len);
    }
}

static void
send_reply(struct request *rq, Thin__Reply *reply, const struct iovec *iov,
           unsigned nr_iov)
{
    Thin__Message message = THIN__MESSAGE__INIT;
    Thin__Reply lost;
    uint64_t payload = 0;
    uint8_t *memory = rq->reply;
    size_t bytes;

    if (rq->pieces_lost && reply->code == 0) {
        make_lost_reply(rq, &lost);
        reply = &lost;
        nr_iov = 0;
    }
    set_reply_head(rq, reply, &message);
    for (unsigned i = 0; i < nr_iov; i++)
        payload += iov[i].iov_len;
    bytes = FRAME_PREFIX_BYTES + message_encoded_bytes(&message);
    if (bytes > sizeof(rq->reply)) {
        memory = malloc(bytes);
        if (!memory) { /* the reply cannot be told: the connection ends, a resume asks again */
            if (rq->conn)
                conns_close_session(rq->session, NULL);
            finish(rq);
            return;
        }
    }
    message_encode(&message, (uint32_t)payload, memory);
    if (rq->slot)
        keep_reply(rq, reply, memory, bytes);
    if (!rq->conn) {
        if (memory != rq->reply)
            free(memory);
        finish(rq);
        return;
    }
    if (memory != rq->reply) {
        THIN_ASSERT(nr_iov == 0);
        conn_send_memory(rq->conn, memory, bytes);
        finish(rq);
        return;
    }
    conn_send_request(rq->conn, rq, memory, bytes, iov, nr_iov, reply_sent);
}

void
request_reply(struct request *rq, Thin__Reply *reply)
{
    send_reply(rq, reply, NULL, 0);
}

void
request_reply_code(struct request *rq, int code, const struct thin_error *err)
{
    Thin__Reply reply = THIN__REPLY__INIT;

    reply.code = code;
    if (code < 0)
        reply.text = (char *)(uintptr_t)thin_error_text(err, code);
    send_reply(rq, &reply, NULL, 0);
}

void
request_reply_data(struct request *rq, Thin__Reply *reply, const struct iovec *iov,
                   unsigned nr_iov)
{
    send_reply(rq, reply, iov, nr_iov);
}

void
request_reply_more(struct request *rq, Thin__Reply *reply, const void *payload,
                   size_t payload_bytes)
{
    Thin__Message message = THIN__MESSAGE__INIT;
    uint8_t *memory;
    size_t bytes;

    rq->in_pieces = true;
    if (!rq->conn)
        return;
    reply->more = true;
    set_reply_head(rq, reply, &message);
    bytes = FRAME_PREFIX_BYTES + message_encoded_bytes(&message);
    memory = malloc(bytes + payload_bytes);
    if (!memory) {
        conns_close_session(rq->session, NULL);
        return;
    }
    message_encode(&message, (uint32_t)payload_bytes, memory);
    if (payload_bytes)
        memcpy(memory + bytes, payload, payload_bytes);
    conn_send_memory(rq->conn, memory, bytes + payload_bytes);
}

int
request_may(const struct request *rq, const char *object, enum auth_right right,
            struct thin_error *err)
{
    return auth_check(rq->server->auth, &rq->session->peer, object, right, err);
}

/* ---- connections that go ------------------------------------------------------------------- */

/* It may end in here. */
static void
tell_room(struct request *rq)
{
    void (*room)(struct request *) = rq->room;

    rq->room = NULL;
    if (room)
        room(rq);
}

void
requests_forget_conn(struct session *s, const struct conn *conn)
{
    for (unsigned i = 1; i <= s->nr_slots; i++)
        if (s->slots[i].running && s->slots[i].running->conn == conn) {
            s->slots[i].running->conn = NULL;
            tell_room(s->slots[i].running);
        }
}

void
requests_forget_all(struct session *s)
{
    for (unsigned i = 1; i <= s->nr_slots; i++)
        if (s->slots[i].running) {
            s->slots[i].running->conn = NULL;
            tell_room(s->slots[i].running);
        }
}

void
requests_room(struct session *s, const struct conn *conn)
{
    for (unsigned i = 1; i <= s->nr_slots; i++)
        if (s->slots[i].running && s->slots[i].running->conn == conn)
            tell_room(s->slots[i].running);
}

bool
request_is_wanted(const struct request *rq)
{
    return rq->conn && !rq->cancelled && !rq->session->ended;
}

void
request_wait_room(struct request *rq, void (*room)(struct request *rq))
{
    if (request_is_wanted(rq) && !conn_has_room(rq->conn))
        rq->room = room;
    else
        room(rq);
}

/* Its payload will never be whole: the request was not begun. */
void
request_abandon(struct request *rq)
{
    if (rq->slot) {
        struct session_slot *slot = &rq->session->slots[rq->slot];

        /* A resume sends it again under the same number. */
        slot->running = NULL;
        slot->seq--;
        session_slot_clear(slot);
    }
    rq->conn = NULL;
    finish(rq);
}

/* ---- arrival --------------------------------------------------------------------------------- */

bool
request_wants_piece(const struct request *rq)
{
    return rq->kind == THIN__REQUEST__BODY_WRITE && rq->io.result == 0;
}

void
request_refuse(struct request *rq, int code)
{
    rq->io.result = code;
}

/*
 * What the client library sends again by itself to the server's next life: a server that
 * stops leaves it unanswered, so that a restart is a pause and no error.
 */
static bool
may_be_sent_again(const struct request *rq)
{
    return dispatch_is_data(rq->kind) || rq->repeatable ||
           rq->kind == THIN__REQUEST__BODY_VOLUME_OPEN ||
           rq->kind == THIN__REQUEST__BODY_VOLUME_CLOSE;
}

/* All of it is here. */
void
request_received(struct request *rq)
{
    rq->receiving = false;
    if (rq->slot == 0) { /* a payload sent again whose request was dealt with */
        finish(rq);
        return;
    }
    if (rq->io.result < 0) {
        request_reply_code(rq, rq->io.result, NULL);
        return;
    }
    if (rq->has_crc && rq->piece &&
        crc32c(rq->piece->iov.iov_base, rq->piece->iov.iov_len) != rq->payload_crc) {
        request_reply_code(rq, -THIN_E_CHECKSUM, NULL);
        return;
    }
    if (rq->server->stopping && may_be_sent_again(rq)) {
        request_abandon(rq);
        return;
    }
    if (rq->server->stopping) {
        request_reply_code(rq, -THIN_E_SHUTDOWN, NULL);
        return;
    }
    if (dispatch_is_data(rq->kind))
        ops_data_submit(rq);
    else
        dispatch_request(rq);
}

/* A long job looks at this between its steps. */
static void
cancel(struct session *s, const Thin__Cancel *which)
{
    struct request *rq =
        which->slot && which->slot <= s->nr_slots ? s->slots[which->slot].running : NULL;

    if (!rq || rq->seq != which->seq)
        return;
    rq->cancelled = true;
    tell_room(rq);
}

/* Slot 0: what needs no slot. */
static int
slotless(struct conn *conn, const Thin__Request *rq, struct thin_error *err)
{
    Thin__Reply reply = THIN__REPLY__INIT;
    struct session *s = conn_session(conn);

    if (rq->body_case == THIN__REQUEST__BODY_HELLO) {
        if (s)
            return thin_fail(err, -THIN_E_PROTOCOL, "hello a second time");
        return hello_arrived(conn, rq->hello, err);
    }
    if (!s)
        return thin_fail(err, -THIN_E_PROTOCOL, "the first request is not hello");
    switch (rq->body_case) {
    case THIN__REQUEST__BODY_CANCEL:
        cancel(s, rq->cancel);
        reply.seq = rq->seq;
        hello_send(conn, &reply);
        return 0;
    case THIN__REQUEST__BODY_PING:
        reply.seq = rq->seq;
        hello_send(conn, &reply);
        return 0;
    case THIN__REQUEST__BODY_BYE:
        session_end(s);
        conns_close_session(s, NULL);
        return 0;
    case THIN__REQUEST__BODY__NOT_SET:
        reply.seq = rq->seq;
        reply.code = -THIN_E_UNSUPPORTED;
        reply.text = (char *)(uintptr_t)thin_strerror(-THIN_E_UNSUPPORTED);
        hello_send(conn, &reply);
        return 0;
    default:
        return thin_fail(err, -THIN_E_PROTOCOL, "a request without a slot");
    }
}

/*
 * Judges slot and sequence. 0: a new request. 1: dealt with (running still, or answered
 * again). -THIN_E_PROTOCOL. `*ret_again`: answered once, to be carried out again.
 */
static int
judge_slot(struct conn *conn, uint32_t slot_nr, uint64_t seq, bool *ret_again,
           struct thin_error *err)
{
    struct session *s = conn_session(conn);
    struct session_slot *slot;
    uint8_t *copy;

    *ret_again = false;
    if (slot_nr > s->nr_slots)
        return thin_fail(err, -THIN_E_PROTOCOL, "slot %u of %u", slot_nr, s->nr_slots);
    slot = &s->slots[slot_nr];
    if (seq == slot->seq + 1 && !slot->running)
        return 0;
    if (seq != slot->seq || seq == 0)
        return thin_fail(err, -THIN_E_PROTOCOL, "slot %u: sequence %llu follows %llu%s",
                         slot_nr, (unsigned long long)seq, (unsigned long long)slot->seq,
                         slot->running ? ", which is running" : "");
    if (slot->running && slot->running->receiving) {
        /* The first copy hangs half sent on a connection that is about to go: it is
           thrown away, this one counts. */
        slot->running->slot = 0;
        slot->running->conn = NULL;
        request_refuse(slot->running, -THIN_E_EXISTS);
        slot->running = NULL;
        slot->seq--;
        return 0;
    }
    if (slot->running) {
        slot->running->conn = conn;
        slot->running->pieces_lost = slot->running->in_pieces;
        return 1;
    }
    if (slot->kept) {
        copy = malloc(slot->kept_bytes);
        if (copy) {
            memcpy(copy, slot->kept, slot->kept_bytes);
            conn_send_memory(conn, copy, slot->kept_bytes);
        }
        return 1;
    }
    *ret_again = true;
    return 0;
}

/* What changes nothing may be asked twice. */
static bool
is_repeatable(Thin__Request__BodyCase kind)
{
    switch (kind) {
    case THIN__REQUEST__BODY_READ:
    case THIN__REQUEST__BODY_BLOCK_STATUS:
    case THIN__REQUEST__BODY_PREFETCH:
    case THIN__REQUEST__BODY_POOL_LIST:
    case THIN__REQUEST__BODY_POOL_CHECK:
    case THIN__REQUEST__BODY_POOL_DUMP:
    case THIN__REQUEST__BODY_VOLUME_LIST:
    case THIN__REQUEST__BODY_VOLUME_MAP:
    case THIN__REQUEST__BODY_VOLUME_DELTA:
    case THIN__REQUEST__BODY_VOLUME_STATS:
    case THIN__REQUEST__BODY_SESSION_LIST:
    case THIN__REQUEST__BODY_ACCESS_LIST:
    case THIN__REQUEST__BODY_SERVER_STATUS:
        return true;
    default:
        return false;
    }
}

/* Bytes for a message of `len`; one that decodes to more is refused. */
static size_t
arena_bytes(size_t len)
{
    return len * 8 + 8192 < REQUEST_ARENA_MAX ? len * 8 + 8192 : REQUEST_ARENA_MAX;
}

/* Decodes a management request into memory of its own. */
static int
decode_management(struct request *rq, const void *bytes, size_t len,
                  struct thin_error *err)
{
    struct message_arena arena;
    size_t size = arena_bytes(len);
    Thin__Message *message;
    int r;

    rq->arena = malloc(size);
    if (!rq->arena)
        return thin_fail_code(err, -ENOMEM, "decode a request");
    message_arena_init(&arena, rq->arena, size);
    r = message_decode(&arena, bytes, len, &message, err);
    if (r == 0)
        rq->message = message->request;
    return r;
}

static int
begin(struct conn *conn, const Thin__Request *m, const void *bytes, size_t len,
      uint32_t payload_bytes, struct request **ret_receiving, struct thin_error *err)
{
    struct session *s = conn_session(conn);
    struct request *rq;
    bool again;
    int r = judge_slot(conn, m->slot, m->seq, &again, err);

    if (r < 0)
        return r;
    rq = create(s->server);
    if (!rq)
        return thin_fail_code(err, -ENOMEM, "begin a request");
    rq->session = s;
    rq->conn = conn;
    rq->kind = m->body_case;
    if (r == 1) { /* dealt with; only the payload must still be eaten */
        if (payload_bytes == 0) {
            destroy(rq);
            return 0;
        }
        rq->conn = NULL;
        request_refuse(rq, -THIN_E_EXISTS);
        session_begin(s, 0);
        rq->receiving = true;
        *ret_receiving = rq;
        return 0;
    }
    rq->slot = m->slot;
    rq->seq = m->seq;
    rq->repeatable = is_repeatable(rq->kind);
    rq->has_crc = m->has_payload_crc;
    rq->payload_crc = m->payload_crc;
    s->slots[rq->slot].seq = rq->seq;
    s->slots[rq->slot].running = rq;
    rq->credit_bytes = payload_bytes;
    if (rq->kind == THIN__REQUEST__BODY_READ)
        rq->credit_bytes = m->read->length;
    else if (!dispatch_is_data(rq->kind))
        rq->credit_bytes = MANAGEMENT_CREDIT * arena_bytes(len);
    session_begin(s, rq->credit_bytes);
    if (again && s->slots[rq->slot].poisoned)
        request_refuse(rq, -THIN_E_UNKNOWN_OUTCOME);
    else if (rq->kind == THIN__REQUEST__BODY__NOT_SET)
        request_refuse(rq, -THIN_E_UNSUPPORTED);
    else if (dispatch_is_data(rq->kind))
        request_refuse(rq, ops_data_prepare(rq, m, payload_bytes));
    else if (payload_bytes)
        request_refuse(rq, -THIN_E_PROTOCOL);
    else
        request_refuse(rq, decode_management(rq, bytes, len, err));
    if (payload_bytes) {
        rq->receiving = true;
        *ret_receiving = rq;
        return 0;
    }
    request_received(rq);
    return 0;
}

int
request_arrived(struct conn *conn, const void *bytes, size_t len, uint32_t payload_bytes,
                struct request **ret_receiving, struct thin_error *err)
{
    uint64_t memory[PROTO_ARENA_BYTES / sizeof(uint64_t)];
    AUTO_FREE void *big = NULL;
    struct message_arena arena;
    Thin__Message *message;
    int r;

    /* A data request decodes on the stack; others are decoded twice, which is cheap. */
    message_arena_init(&arena, memory, sizeof(memory));
    r = message_decode(&arena, bytes, len, &message, err);
    if (r == -THIN_E_LIMIT && len > 64) {
        size_t size = arena_bytes(len);

        big = malloc(size);
        if (!big)
            return thin_fail_code(err, -ENOMEM, "decode a request");
        message_arena_init(&arena, big, size);
        r = message_decode(&arena, bytes, len, &message, err);
    }
    if (r < 0)
        return r;
    if (message->body_case != THIN__MESSAGE__BODY_REQUEST) {
        if (message->body_case == THIN__MESSAGE__BODY__NOT_SET && conn_session(conn) &&
            payload_bytes == 0) {
            Thin__Reply reply = THIN__REPLY__INIT;

            reply.code = -THIN_E_UNSUPPORTED;
            reply.text = (char *)(uintptr_t)thin_strerror(-THIN_E_UNSUPPORTED);
            hello_send(conn, &reply);
            return 0;
        }
        return thin_fail(err, -THIN_E_PROTOCOL, "a message that is no request");
    }
    if (message->request->slot == 0) {
        if (payload_bytes)
            return thin_fail(err, -THIN_E_PROTOCOL, "a payload without a slot");
        return slotless(conn, message->request, err);
    }
    if (!conn_session(conn))
        return thin_fail(err, -THIN_E_PROTOCOL, "the first request is not hello");
    return begin(conn, message->request, bytes, len, payload_bytes, ret_receiving, err);
}
