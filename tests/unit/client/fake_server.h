/*
 * A server for the tests of the client library: one volume in memory, one session, run
 * in turns with the client on the same thread. It keeps the protocol's rules for slots
 * and dies when the client breaks them; the test may make it drop connections, keep
 * replies back, forget the session, or answer nonsense.
 */
#ifndef TEST_FAKE_SERVER_H
#define TEST_FAKE_SERVER_H

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "core/base/crc32c.h"
#include "proto/channel.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/message.h"
#include "proto/socket.h"

#define FAKE_SIZE      (4u << 20)
#define FAKE_BLOCK     4096u
#define FAKE_SLOTS     8u
#define FAKE_REPLIES   64u
#define FAKE_IN_BYTES  (5u << 20)
#define FAKE_FRAME_MAX (2u << 20)

struct fake_reply {
    uint8_t *bytes;
    size_t len, sent;
};

struct fake_slot {
    uint64_t seq;
    bool answered;
    Thin__Reply kept;
    Thin__DataReply kept_data;
};

struct fake_server {
    int listen_fd;
    struct channel_tls *tls;
    struct channel *channel; /* the one connection, or NULL */
    bool shaken, greeted;
    char path[128];

    uint8_t disk[FAKE_SIZE], durable[FAKE_SIZE];
    uint8_t in[FAKE_IN_BYTES];
    size_t in_len;
    struct fake_reply replies[FAKE_REPLIES];
    unsigned nr_replies;

    /* session */
    bool have_session;
    uint8_t token[PROTO_TOKEN_BYTES];
    struct fake_slot slots[FAKE_SLOTS + 1];
    bool volume_open;
    uint64_t epoch, incarnation, change, stable;
    uint64_t size;
    unsigned in_flight_max;

    /* what the test asks for */
    bool hold;               /* replies are kept back */
    bool reverse;            /* replies of one turn go out in reverse order */
    int drop_after_request;  /* > 0: at the nth request: done, no reply, gone */
    int drop_before_request; /* > 0: at the nth request: not done, connection gone */
    int refuse_hello;        /* code */
    int fail_writes;         /* code */
    int fail_open;           /* code for reopening */
    uint32_t keepalive_ms;   /* 0: 300 */
    bool deaf;               /* reads nothing, answers nothing */
    bool bad_crc;            /* of read payloads */
    bool nonsense;           /* replies to slots that do not wait */
    bool big_list;           /* VolumeList in many pieces; drops in the middle: */
    bool cut_list;
    bool no_changes; /* replies carry no change numbers */

    /* what the test looks at */
    unsigned nr_hello, nr_resumed, nr_requests, nr_repeated, nr_writes_done, nr_opens,
        nr_closes, nr_pings, nr_byes, nr_cancels;
};

static uint8_t fake_memory[64u << 10] __attribute__((aligned(16)));

static void
fake_listen(struct fake_server *s)
{
    struct socket_address address = {.kind = SOCKET_UNIX};
    struct socket_listen_params params = {.backlog = 8};
    int fds[SOCKET_ADDRESSES_MAX];
    unsigned nr;
    struct thin_error err;

    memcpy(address.path, s->path, sizeof(address.path) - 1);
    ck_assert_msg(socket_listen(&address, &params, fds, &nr, &err) == 0, "%s", err.text);
    s->listen_fd = fds[0];
}

static struct fake_server *
fake_create(const char *path)
{
    struct fake_server *s = calloc(1, sizeof(*s));

    ck_assert_ptr_nonnull(s);
    snprintf(s->path, sizeof(s->path), "%s", path);
    s->epoch = 5;
    s->incarnation = 100;
    s->size = FAKE_SIZE;
    fake_listen(s);
    return s;
}

static void
fake_drop(struct fake_server *s)
{
    channel_destroy(s->channel);
    s->channel = NULL;
    s->shaken = s->greeted = false;
    s->in_len = 0;
    for (unsigned i = 0; i < s->nr_replies; i++)
        free(s->replies[i].bytes);
    s->nr_replies = 0;
}

/* As after kill -9: what was not flushed is gone if `lose`, the session always. */
static void
fake_restart(struct fake_server *s, bool lose)
{
    fake_drop(s);
    s->have_session = false;
    s->volume_open = false;
    memset(s->slots, 0, sizeof(s->slots));
    if (lose) {
        memcpy(s->disk, s->durable, FAKE_SIZE);
        s->incarnation++;
        s->change = s->stable = 0;
    }
}

static void
fake_destroy(struct fake_server *s)
{
    fake_drop(s);
    channel_tls_put(s->tls);
    close(s->listen_fd);
    unlink(s->path);
    free(s);
}

/* ---- replies ----------------------------------------------------------------------- */

static void
fake_put(struct fake_server *s, Thin__Message *message, const void *payload, size_t len)
{
    struct fake_reply *r = &s->replies[s->nr_replies];
    size_t n = FRAME_PREFIX_BYTES + message_encoded_bytes(message);

    ck_assert_uint_lt(s->nr_replies, FAKE_REPLIES);
    r->bytes = malloc(n + len);
    ck_assert_ptr_nonnull(r->bytes);
    ck_assert_uint_eq(message_encode(message, (uint32_t)len, r->bytes), n);
    if (len > 0)
        memcpy(r->bytes + n, payload, len);
    r->len = n + len;
    r->sent = 0;
    s->nr_replies++;
}

static void
fake_reply(struct fake_server *s, Thin__Reply *reply, const void *payload, size_t len)
{
    Thin__Message message = THIN__MESSAGE__INIT;

    message.body_case = THIN__MESSAGE__BODY_REPLY;
    message.reply = reply;
    fake_put(s, &message, payload, len);
}

static void
fake_event(struct fake_server *s, const char *kind, uint32_t handle, uint64_t size)
{
    Thin__Message message = THIN__MESSAGE__INIT;
    Thin__Event event = THIN__EVENT__INIT;

    event.number = 1;
    event.kind = (char *)(uintptr_t)kind;
    event.object = (char *)(uintptr_t) "tank/vol";
    event.handle = handle;
    event.size = size;
    message.body_case = THIN__MESSAGE__BODY_EVENT;
    message.event = &event;
    fake_put(s, &message, NULL, 0);
}

/* ---- requests ---------------------------------------------------------------------- */

static void
fake_hello(struct fake_server *s, const Thin__Request *q)
{
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__HelloReply hello = THIN__HELLO_REPLY__INIT;
    char feature[] = "payload-crc", version[] = "fake 1";
    char *features[] = {feature};

    ck_assert_uint_eq(q->slot, 0);
    ck_assert_uint_eq(q->seq, 0);
    s->nr_hello++;
    if (s->refuse_hello) {
        reply.code = s->refuse_hello;
        reply.text = (char *)(uintptr_t) "not today";
        fake_reply(s, &reply, NULL, 0);
        return;
    }
    if (q->hello->resume && s->have_session &&
        q->hello->session_token.len == sizeof(s->token) &&
        memcmp(q->hello->session_token.data, s->token, sizeof(s->token)) == 0) {
        hello.resumed = true;
        s->nr_resumed++;
    } else {
        memset(s->token, (int)s->nr_hello, sizeof(s->token));
        memset(s->slots, 0, sizeof(s->slots));
        s->volume_open = false;
        s->have_session = true;
    }
    hello.version = 1;
    hello.features = features;
    hello.n_features = q->hello->n_features;
    hello.session_token.data = s->token;
    hello.session_token.len = sizeof(s->token);
    hello.session_id = 1;
    hello.slots = FAKE_SLOTS;
    hello.max_payload = 1u << 20;
    hello.max_bytes_in_flight = 2u << 20;
    hello.keepalive_ms = s->keepalive_ms ? s->keepalive_ms : 300;
    hello.lease_ms = 1000;
    hello.server_version = version;
    reply.body_case = THIN__REPLY__BODY_HELLO;
    reply.hello = &hello;
    s->greeted = true;
    fake_reply(s, &reply, NULL, 0);
}

static bool
fake_is_zero(const uint8_t *p, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (p[i])
            return false;
    return true;
}

/* Whole blocks of zeros are told as holes. */
static void
fake_read(struct fake_server *s, const Thin__Read *read, Thin__Reply *reply)
{
    static uint8_t payload[FAKE_FRAME_MAX];
    Thin__DataReply data = THIN__DATA_REPLY__INIT;
    uint32_t holes[2 * PROTO_HOLES_MAX];
    size_t n = 0, at = 0;

    ck_assert_uint_le(read->offset + read->length, s->size);
    data.holes = holes;
    while (at < read->length) {
        size_t len = FAKE_BLOCK - (read->offset + at) % FAKE_BLOCK;
        const uint8_t *p = s->disk + read->offset + at;

        if (len > read->length - at)
            len = read->length - at;
        if (fake_is_zero(p, len) && data.n_holes < 2 * PROTO_HOLES_MAX) {
            if (data.n_holes > 0 &&
                holes[data.n_holes - 2] + holes[data.n_holes - 1] == at) {
                holes[data.n_holes - 1] += (uint32_t)len;
            } else {
                holes[data.n_holes++] = (uint32_t)at;
                holes[data.n_holes++] = (uint32_t)len;
            }
        } else {
            memcpy(payload + n, p, len);
            n += len;
        }
        at += len;
    }
    data.incarnation = s->incarnation;
    data.stable_mark = s->stable;
    reply->body_case = THIN__REPLY__BODY_DATA;
    reply->data = &data;
    if (read->want_crc) {
        reply->has_payload_crc = true;
        reply->payload_crc = crc32c(payload, n) + (s->bad_crc ? 1 : 0);
    }
    fake_reply(s, reply, payload, n);
}

static void
fake_list(struct fake_server *s, Thin__Reply *reply)
{
    Thin__VolumeListReply list = THIN__VOLUME_LIST_REPLY__INIT;
    static Thin__VolumeInfo infos[PROTO_LIST_MAX], *pointers[PROTO_LIST_MAX];
    char name[] = "tank/a-volume-with-a-name-of-some-length";

    for (unsigned i = 0; i < PROTO_LIST_MAX; i++) {
        infos[i] = (Thin__VolumeInfo)THIN__VOLUME_INFO__INIT;
        infos[i].name = name;
        infos[i].size = i;
        pointers[i] = &infos[i];
    }
    list.volumes = pointers;
    list.n_volumes = s->big_list ? PROTO_LIST_MAX : 2;
    reply->body_case = THIN__REPLY__BODY_VOLUME_LIST;
    reply->volume_list = &list;
    for (unsigned i = 0; i < (s->big_list ? 3 : 1); i++) {
        reply->more = s->big_list && i < 2;
        if (s->cut_list && i == 2)
            break;
        fake_reply(s, reply, NULL, 0);
    }
}

static void
fake_status(const Thin__BlockStatus *q, struct fake_server *s, Thin__Reply *reply)
{
    Thin__BlockStatusReply status = THIN__BLOCK_STATUS_REPLY__INIT;
    Thin__BlockExtent extents[2], *list[2] = {&extents[0], &extents[1]};

    extents[0] = extents[1] = (Thin__BlockExtent)THIN__BLOCK_EXTENT__INIT;
    extents[0].length = q->length / 2;
    extents[0].flags = strcmp(q->since, "snap") == 0 ? 16 : 0;
    extents[1].length = q->length - q->length / 2;
    extents[1].flags = 3;
    status.extents = list;
    status.n_extents = 2;
    reply->body_case = THIN__REPLY__BODY_BLOCK_STATUS;
    reply->block_status = &status;
    fake_reply(s, reply, NULL, 0);
}

static void
fake_opened(struct fake_server *s, const Thin__VolumeOpen *open, Thin__Reply *reply)
{
    Thin__VolumeOpened opened = THIN__VOLUME_OPENED__INIT;

    s->nr_opens++;
    if (strcmp(open->name, "tank/vol") != 0)
        reply->code = -THIN_E_NOT_FOUND;
    else if (open->known_epoch && s->fail_open)
        reply->code = s->fail_open;
    else if (open->known_epoch && open->known_epoch != s->epoch)
        reply->code = -THIN_E_STALE;
    if (reply->code) {
        reply->text = (char *)(uintptr_t) "no such volume";
        fake_reply(s, reply, NULL, 0);
        return;
    }
    s->volume_open = true;
    opened.handle = 3;
    opened.size = s->size;
    opened.block_size = FAKE_BLOCK;
    opened.epoch = s->epoch;
    opened.read_only = open->read_only;
    opened.incarnation = s->incarnation;
    opened.stable_mark = s->stable;
    reply->body_case = THIN__REPLY__BODY_VOLUME_OPENED;
    reply->volume_opened = &opened;
    fake_reply(s, reply, NULL, 0);
}

/* Changes: done once. The reply is kept for the case that it is asked for again. */
static void
fake_change(struct fake_server *s, const Thin__Request *q, const uint8_t *payload,
            size_t len, Thin__Reply *reply, Thin__DataReply *data)
{
    uint64_t epoch = s->epoch;
    bool fua = false;

    switch (q->body_case) {
    case THIN__REQUEST__BODY_WRITE:
        epoch = q->write->epoch;
        fua = q->write->fua;
        ck_assert_uint_le(q->write->offset + len, s->size);
        if (q->has_payload_crc)
            ck_assert_uint_eq(q->payload_crc, crc32c(payload, len));
        if (s->fail_writes) {
            reply->code = s->fail_writes;
            break;
        }
        memcpy(s->disk + q->write->offset, payload, len);
        s->nr_writes_done++;
        break;
    case THIN__REQUEST__BODY_FLUSH:
        epoch = q->flush->epoch;
        fua = true;
        break;
    case THIN__REQUEST__BODY_DISCARD:
        memset(s->disk + q->discard->offset, 0, q->discard->length);
        break;
    default:
        memset(s->disk + q->write_zeroes->offset, 0, q->write_zeroes->length);
        break;
    }
    if (epoch != s->epoch)
        reply->code = -THIN_E_STALE;
    if (q->body_case != THIN__REQUEST__BODY_FLUSH && !s->no_changes)
        data->change = ++s->change;
    if (fua) {
        memcpy(s->durable, s->disk, FAKE_SIZE);
        s->stable = s->change;
    }
    data->stable_mark = s->stable;
    data->incarnation = s->incarnation;
    reply->body_case = THIN__REPLY__BODY_DATA;
    reply->data = data;
}

static void
fake_do(struct fake_server *s, const Thin__Request *q, const uint8_t *payload, size_t len)
{
    struct fake_slot *slot = &s->slots[q->slot];
    Thin__Reply reply = THIN__REPLY__INIT;

    reply.slot = q->slot;
    reply.seq = q->seq;
    if (s->nonsense)
        reply.slot = reply.slot % FAKE_SLOTS + 1;
    switch (q->body_case) {
    case THIN__REQUEST__BODY_READ:
        ck_assert(s->volume_open && q->read->handle == 3);
        fake_read(s, q->read, &reply);
        return;
    case THIN__REQUEST__BODY_WRITE:
    case THIN__REQUEST__BODY_FLUSH:
    case THIN__REQUEST__BODY_DISCARD:
    case THIN__REQUEST__BODY_WRITE_ZEROES:
        ck_assert(s->volume_open);
        if (slot->answered) {
            fake_reply(s, &slot->kept, NULL, 0);
            return;
        }
        slot->kept_data = (Thin__DataReply)THIN__DATA_REPLY__INIT;
        fake_change(s, q, payload, len, &reply, &slot->kept_data);
        slot->kept = reply;
        break;
    case THIN__REQUEST__BODY_BLOCK_STATUS:
        fake_status(q->block_status, s, &reply);
        return;
    case THIN__REQUEST__BODY_VOLUME_OPEN:
        fake_opened(s, q->volume_open, &reply);
        return;
    case THIN__REQUEST__BODY_VOLUME_CLOSE:
        ck_assert_uint_eq(q->volume_close->handle, 3);
        s->volume_open = false;
        s->nr_closes++;
        break;
    case THIN__REQUEST__BODY_VOLUME_LIST:
        fake_list(s, &reply);
        return;
    case THIN__REQUEST__BODY_POOL_DUMP:
        reply.body_case = THIN__REPLY__BODY_TEXT_REPLY;
        reply.text_reply = &(Thin__TextReply)THIN__TEXT_REPLY__INIT;
        reply.more = true;
        fake_reply(s, &reply, "first ", 6);
        reply.more = false;
        fake_reply(s, &reply, "second", 6);
        return;
    default:
        reply.code =
            q->body_case == THIN__REQUEST__BODY_POOL_OPEN ? 0 : -THIN_E_UNSUPPORTED;
        break;
    }
    fake_reply(s, &reply, NULL, 0);
}

static void
fake_control(struct fake_server *s, const Thin__Request *q)
{
    Thin__Reply reply = THIN__REPLY__INIT;

    reply.seq = q->seq;
    if (q->body_case == THIN__REQUEST__BODY_HELLO) {
        fake_hello(s, q);
        return;
    }
    if (q->body_case == THIN__REQUEST__BODY_BYE) {
        s->nr_byes++;
        return;
    }
    s->nr_pings += q->body_case == THIN__REQUEST__BODY_PING;
    s->nr_cancels += q->body_case == THIN__REQUEST__BODY_CANCEL;
    fake_reply(s, &reply, NULL, 0);
}

/* One request. False: the connection is gone. */
static bool
fake_request(struct fake_server *s, const Thin__Request *q, const uint8_t *payload,
             size_t len)
{
    struct fake_slot *slot;

    if (q->slot == 0) {
        fake_control(s, q);
        return true;
    }
    ck_assert_msg(s->greeted, "a request before hello");
    ck_assert_uint_le(q->slot, FAKE_SLOTS);
    s->nr_requests++;
    if (s->drop_before_request > 0 && --s->drop_before_request == 0) {
        fake_drop(s);
        return false;
    }
    slot = &s->slots[q->slot];
    if (q->seq == slot->seq && q->seq > 0) {
        s->nr_repeated++;
    } else {
        ck_assert_uint_eq(q->seq, slot->seq + 1);
        slot->seq = q->seq;
        slot->answered = false;
    }
    fake_do(s, q, payload, len);
    slot->answered = true;
    if (s->drop_after_request > 0 && --s->drop_after_request == 0) {
        fake_drop(s);
        return false;
    }
    return true;
}

/* ---- bytes ------------------------------------------------------------------------- */

static void
fake_parse(struct fake_server *s)
{
    size_t at = 0;

    while (s->in_len - at >= FRAME_PREFIX_BYTES) {
        struct frame_prefix prefix;
        struct message_arena arena;
        Thin__Message *message;
        struct thin_error err;
        const uint8_t *p = s->in + at;
        size_t total;

        ck_assert_int_eq(
            frame_prefix_decode(p, PROTO_MESSAGE_MAX, PROTO_PAYLOAD_MAX, &prefix, &err),
            0);
        total = FRAME_PREFIX_BYTES + prefix.message_bytes + prefix.payload_bytes;
        if (s->in_len - at < total)
            break;
        ck_assert_int_eq(frame_check(p, &prefix, p + FRAME_PREFIX_BYTES, &err), 0);
        message_arena_init(&arena, fake_memory, sizeof(fake_memory));
        ck_assert_int_eq(message_decode(&arena, p + FRAME_PREFIX_BYTES,
                                        prefix.message_bytes, &message, &err),
                         0);
        ck_assert_int_eq(message->body_case, THIN__MESSAGE__BODY_REQUEST);
        if (!fake_request(s, message->request,
                          p + FRAME_PREFIX_BYTES + prefix.message_bytes,
                          prefix.payload_bytes))
            return;
        at += total;
    }
    memmove(s->in, s->in + at, s->in_len - at);
    s->in_len -= at;
}

static void
fake_send(struct fake_server *s)
{
    if (s->hold || !s->channel)
        return;
    if (s->reverse && s->nr_replies > 1 && s->replies[0].sent == 0)
        for (unsigned i = 0; i < s->nr_replies / 2; i++) {
            struct fake_reply r = s->replies[i];

            s->replies[i] = s->replies[s->nr_replies - 1 - i];
            s->replies[s->nr_replies - 1 - i] = r;
        }
    while (s->nr_replies > 0) {
        struct fake_reply *r = &s->replies[0];
        struct iovec iov = {r->bytes + r->sent, r->len - r->sent};
        ssize_t n = channel_writev(s->channel, &iov, 1, NULL);

        if (n == -EAGAIN)
            return;
        if (n < 0) {
            fake_drop(s);
            return;
        }
        r->sent += (size_t)n;
        if (r->sent < r->len)
            return;
        free(r->bytes);
        s->nr_replies--;
        memmove(s->replies, s->replies + 1, s->nr_replies * sizeof(*r));
    }
}

static void
fake_accept(struct fake_server *s)
{
    int fd = -1;

    if (socket_accept(s->listen_fd, &fd) < 0)
        return;
    fake_drop(s);
    if (s->tls)
        ck_assert_int_eq(channel_tls_start(s->tls, fd, NULL, &s->channel, NULL), 0);
    else
        ck_assert_int_eq(channel_plain_create(fd, &s->channel), 0);
}

/* All that can be done without waiting. */
static void
fake_step(struct fake_server *s)
{
    struct thin_error err;
    ssize_t n;

    if (s->deaf)
        return;
    fake_accept(s);
    if (!s->channel)
        return;
    if (!s->shaken) {
        int r = channel_handshake(s->channel, &err);

        if (r == -EAGAIN)
            return;
        if (r < 0) {
            fake_drop(s);
            return;
        }
        s->shaken = true;
    }
    n = channel_read(s->channel, s->in + s->in_len, FAKE_IN_BYTES - s->in_len, &err);
    if (n == 0 || (n < 0 && n != -EAGAIN)) {
        fake_drop(s);
        return;
    }
    if (n > 0) {
        s->in_len += (size_t)n;
        fake_parse(s);
    }
    fake_send(s);
    if (s->cut_list && s->nr_replies == 0 && s->nr_requests > 0 && s->channel) {
        s->cut_list = false;
        fake_drop(s);
    }
}

#endif
