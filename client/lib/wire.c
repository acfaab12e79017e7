/* Bytes out: the requests of `sending`, gathered. Bytes in: frames, judged, to replies.
    */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/lib/client_private.h"
#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/crc32c.h"

/* ---- out --------------------------------------------------------------------------- */

/* Appends what is left of a request to the pieces. Returns how many bytes. */
static size_t
gather_request(const struct client_request *request, struct iovec *iov, unsigned *nr)
{
    size_t skip = request->sent, total = 0;

    if (skip < request->header_bytes) {
        iov[*nr].iov_base = (void *)(uintptr_t)(request->header + skip);
        iov[*nr].iov_len = request->header_bytes - skip;
        total += iov[(*nr)++].iov_len;
        skip = 0;
    } else {
        skip -= request->header_bytes;
    }
    if (request->payload_bytes == 0)
        return total;
    for (unsigned i = 0; i < request->nr_iov && *nr < CLIENT_SEND_PIECES; i++) {
        const struct iovec *piece = &request->iov[i];

        if (skip >= piece->iov_len) {
            skip -= piece->iov_len;
            continue;
        }
        iov[*nr].iov_base = (uint8_t *)piece->iov_base + skip;
        iov[*nr].iov_len = piece->iov_len - skip;
        total += iov[(*nr)++].iov_len;
        skip = 0;
    }
    return total;
}

/* Counts what went out; what is whole leaves the list. */
static void
advance_sending(struct thin_client *client, size_t n)
{
    struct client_request *request;

    while ((request = TAILQ_FIRST(&client->sending))) {
        size_t left = request->header_bytes + request->payload_bytes - request->sent;

        if (n < left) {
            request->sent += n;
            return;
        }
        n -= left;
        request->sent += left;
        TAILQ_REMOVE(&client->sending, request, link);
        request->stage = STAGE_SENT;
        if (request->op == OP_CONTROL)
            request_free(request);
    }
}

static void
watch_for_writing(struct thin_client *client)
{
    bool write = (channel_wants(client->channel) & CHANNEL_WANT_WRITE) != 0;

    if (write != client->want_write_watched)
        client_watch_fd(client, channel_fd(client->channel), write);
}

int
client_send(struct thin_client *client)
{
    if (!client->channel)
        return 0;
    while (!TAILQ_EMPTY(&client->sending)) {
        struct iovec iov[CLIENT_SEND_PIECES];
        struct client_request *request;
        unsigned nr = 0;
        ssize_t n;

        TAILQ_FOREACH(request, &client->sending, link) {
            if (nr == CLIENT_SEND_PIECES)
                break;
            gather_request(request, iov, &nr);
        }
        n = channel_writev(client->channel, iov, nr, &client->error);
        if (n == -EAGAIN)
            break;
        if (n < 0)
            return (int)n;
        advance_sending(client, (size_t)n);
        client->told_ns = client_now_ns(client);
        /* The way was blocked and is free again: the peer takes bytes, so it lives. A
           ping behind a large write on a slow link would be answered too late. */
        if (client->want_write_watched)
            client->heard_ns = client->told_ns;
    }
    watch_for_writing(client);
    return 0;
}

/* ---- in: the place of a read's bytes ----------------------------------------------- */

/* Moves over `n` bytes of the request's pieces, filling them with zeros if asked. */
static void
skip_pieces(struct client_incoming *in, const struct client_request *request, uint64_t n,
            bool zero)
{
    while (n > 0) {
        const struct iovec *piece = &request->iov[in->iov_index];
        uint64_t len = min_u64(n, piece->iov_len - in->iov_skip);

        if (zero)
            memset((uint8_t *)piece->iov_base + in->iov_skip, 0, len);
        in->iov_skip += len;
        in->at += len;
        n -= len;
        if (in->iov_skip == piece->iov_len) {
            in->iov_index++;
            in->iov_skip = 0;
        }
    }
}

/* Zeroes the holes that begin here. Afterwards `at` is at a byte of the payload or the
   end. */
static void
skip_holes(struct client_incoming *in)
{
    const Thin__DataReply *data = in->message->reply->data;

    while (in->hole + 1 < data->n_holes && data->holes[in->hole] == in->at) {
        skip_pieces(in, in->request, data->holes[in->hole + 1], true);
        in->hole += 2;
    }
}

/* Where the next payload byte of a read goes, and how many may follow there. */
static uint8_t *
read_place(struct client_incoming *in, size_t *ret_len)
{
    const Thin__DataReply *data = in->message->reply->data;
    const struct iovec *piece;
    uint64_t until = in->request->len_bytes;

    skip_holes(in);
    if (in->hole + 1 < data->n_holes)
        until = data->holes[in->hole];
    while (in->request->iov[in->iov_index].iov_len == 0)
        in->iov_index++;
    piece = &in->request->iov[in->iov_index];
    *ret_len =
        min_u64(min_u64(until - in->at, in->payload_left), piece->iov_len - in->iov_skip);
    return (uint8_t *)piece->iov_base + in->iov_skip;
}

/* The holes must be in order, inside, and leave exactly the payload. */
static int
check_holes(struct thin_client *client, const struct client_incoming *in)
{
    const Thin__DataReply *data = in->message->reply->data;
    uint64_t at = 0, holes = 0;

    if (data->n_holes % 2 || data->n_holes > 2 * PROTO_HOLES_MAX)
        return thin_fail(&client->error, -THIN_E_PROTOCOL, "a read with %zu hole numbers",
                         data->n_holes);
    for (size_t i = 0; i < data->n_holes; i += 2) {
        uint64_t begin = data->holes[i], len = data->holes[i + 1];

        if (begin < at || len == 0 || !range_inside(begin, len, in->request->len_bytes))
            return thin_fail(&client->error, -THIN_E_PROTOCOL,
                             "a read of %llu bytes with a hole of %llu at %llu",
                             (unsigned long long)in->request->len_bytes,
                             (unsigned long long)len, (unsigned long long)begin);
        at = begin + len;
        holes += len;
    }
    if (in->payload_bytes + holes != in->request->len_bytes)
        return thin_fail(&client->error, -THIN_E_PROTOCOL,
                         "a read of %llu bytes answered by %zu and %llu of holes",
                         (unsigned long long)in->request->len_bytes, in->payload_bytes,
                         (unsigned long long)holes);
    return 0;
}

/* ---- in: a reply ------------------------------------------------------------------- */

void
client_incoming_reset(struct thin_client *client)
{
    struct client_incoming *in = &client->incoming;

    free(in->payload);
    free(in->big_arena);
    *in = (struct client_incoming){.have_message = false};
    client->in_begin = client->in_end = 0;
}

/* As above, but what was received behind the frame stays. */
static void
next_frame(struct thin_client *client)
{
    size_t begin = client->in_begin, end = client->in_end;

    client_incoming_reset(client);
    client->in_begin = begin;
    client->in_end = end;
}

static void
tell_server_event(struct thin_client *client, const Thin__Event *message)
{
    static const struct {
        const char *name;
        enum thin_client_event_kind kind;
    } kinds[] = {
        {"resized", THIN_CLIENT_EVENT_RESIZED},
        {"fenced", THIN_CLIENT_EVENT_FENCED},
        {"rolled-back", THIN_CLIENT_EVENT_ROLLED_BACK},
    };
    struct thin_client_event event = {
        .kind = THIN_CLIENT_EVENT_OTHER,
        .name = message->kind,
        .object = message->object,
        .text = message->text,
        .size = message->size,
        .number = message->number,
        .volume = message->handle ? volume_by_handle(client, message->handle) : NULL,
    };

    if (message->number > client->last_event)
        client->last_event = message->number;
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]); i++)
        if (strcmp(message->kind, kinds[i].name) == 0)
            event.kind = kinds[i].kind;
    if (event.volume && event.kind == THIN_CLIENT_EVENT_RESIZED)
        event.volume->size = event.size;
    if (event.volume && event.kind == THIN_CLIENT_EVENT_FENCED)
        volume_fail(event.volume, -THIN_E_STALE);
    if (event.volume && event.kind == THIN_CLIENT_EVENT_ROLLED_BACK)
        volume_fail(event.volume, -THIN_E_ROLLED_BACK);
    /* The caller does not know of a volume that is not open yet, or is closing. */
    if (event.volume && (!event.volume->user_has_it || event.volume->closing))
        event.volume = NULL;
    if (client->on_event_message)
        client->on_event_message(client->event_message_arg, message);
    if (client->on_event)
        client->on_event(client->event_arg, &event);
}

/* Finds whose reply it is, and judges what can be judged before the payload. */
static int
reply_begins(struct thin_client *client, struct client_incoming *in)
{
    const Thin__Reply *reply = in->message->reply;
    struct client_request *request = NULL;

    if (reply->slot == 0) {
        if (in->payload_bytes > 0)
            return thin_fail(&client->error, -THIN_E_PROTOCOL,
                             "a payload with a reply to nothing");
        return 0;
    }
    if (reply->slot <= client->nr_slots && client->state == CLIENT_READY)
        request = client->slots[reply->slot].request;
    if (!request || request->seq != reply->seq || request->stage != STAGE_SENT)
        return thin_fail(&client->error, -THIN_E_PROTOCOL,
                         "a reply to slot %u number %llu, which is not waiting",
                         reply->slot, (unsigned long long)reply->seq);
    if (reply->more && request->op != OP_CALL)
        return thin_fail(&client->error, -THIN_E_PROTOCOL,
                         "a reply in pieces where one is the rule");
    in->request = request;
    if (request->abandoned)
        return 0;
    if (request->op == OP_READ && reply->code == 0) {
        if (reply->body_case != THIN__REPLY__BODY_DATA)
            return thin_fail(&client->error, -THIN_E_PROTOCOL,
                             "a read answered by something else");
        return check_holes(client, in);
    }
    if (in->payload_bytes > 0 && request->op != OP_CALL)
        return thin_fail(&client->error, -THIN_E_PROTOCOL,
                         "a payload of %zu bytes where none is the rule",
                         in->payload_bytes);
    if (in->payload_bytes > 0) {
        in->payload = malloc(in->payload_bytes);
        if (!in->payload)
            return thin_fail_code(&client->error, -ENOMEM, "receive %zu bytes",
                                  in->payload_bytes);
    }
    return 0;
}

static const char *
reply_words(const Thin__Reply *reply)
{
    return reply->text && *reply->text ? reply->text : NULL;
}

/* A management reply: passed on; the last one ends the call. */
static void
call_reply(struct client_request *request, struct client_incoming *in)
{
    const Thin__Reply *reply = in->message->reply;
    Thin__Request message = THIN__REQUEST__INIT;
    Thin__Cancel cancel = THIN__CANCEL__INIT;
    struct thin_client *client = request->client;
    int r = 0;

    if (reply->code == 0 && request->on_reply && !request->abandoned)
        r = request->on_reply(request->arg, reply, in->payload, in->payload_bytes);
    if (reply->code == 0 && request->subscribes)
        client->subscribed = true;
    request->partly_answered = reply->more;
    if (!reply->more) {
        request_finish(request, reply->code ? reply->code : r, reply_words(reply));
    } else if (r < 0 && !request->abandoned) {
        cancel.slot = request->slot;
        cancel.seq = request->seq;
        message.body_case = THIN__REQUEST__BODY_CANCEL;
        message.cancel = &cancel;
        request_abandon(request, r, NULL);
        (void)client_send_control(client, &message); /* it ends by itself otherwise */
    }
}

static int
block_status_reply(struct thin_client *client, struct client_request *request,
                   const Thin__Reply *reply)
{
    struct thin_client_extent *extents;
    const Thin__BlockStatusReply *body = reply->block_status;

    if (reply->code < 0) {
        request_finish(request, reply->code, reply_words(reply));
        return 0;
    }
    if (reply->body_case != THIN__REPLY__BODY_BLOCK_STATUS || body->n_extents == 0 ||
        body->n_extents > PROTO_EXTENTS_MAX)
        return thin_fail(&client->error, -THIN_E_PROTOCOL,
                         "a block status without extents, or with too many");
    extents = calloc(body->n_extents, sizeof(*extents));
    if (!extents)
        return thin_fail_code(&client->error, -ENOMEM, "receive extents");
    for (size_t i = 0; i < body->n_extents; i++)
        extents[i] = (struct thin_client_extent){body->extents[i]->length,
                                                 body->extents[i]->flags};
    request->extents = extents;
    request->nr_extents = (unsigned)body->n_extents;
    request_finish(request, 0, NULL);
    return 0;
}

static void
data_reply(struct client_request *request, struct client_incoming *in)
{
    const Thin__Reply *reply = in->message->reply;
    int code = reply->code;

    if (code == 0 && request->op == OP_READ) {
        skip_holes(in); /* one at the end has no payload behind it */
        if (reply->has_payload_crc && reply->payload_crc != ~in->crc)
            code = -THIN_E_CHECKSUM;
    }
    if (code == 0)
        volume_learn(request,
                     reply->body_case == THIN__REPLY__BODY_DATA ? reply->data : NULL);
    request_finish(request, code, reply_words(reply));
}

/* Message and payload are complete. */
static int
reply_complete(struct thin_client *client, struct client_incoming *in)
{
    const Thin__Reply *reply = in->message->reply;
    struct client_request *request = in->request;

    if (!request)
        return client_control_reply(client, reply);
    client->answered = true;
    if (reply->code > 0)
        return thin_fail(&client->error, -THIN_E_PROTOCOL, "a reply with code %d",
                         reply->code);
    if (request->abandoned) {
        if (!reply->more)
            request_drop(request);
        return 0;
    }
    switch (request->op) {
    case OP_CALL:
        call_reply(request, in);
        return 0;
    case OP_BLOCK_STATUS:
        return block_status_reply(client, request, reply);
    case OP_OPEN:
        if (reply->code < 0)
            volume_open_failed(request, reply->code, reply_words(reply));
        else if (reply->body_case != THIN__REPLY__BODY_VOLUME_OPENED)
            return thin_fail(&client->error, -THIN_E_PROTOCOL,
                             "an open answered by something else");
        else
            volume_opened(request, reply->volume_opened);
        return 0;
    case OP_CLOSE:
        request_finish(request, reply->code, reply_words(reply));
        return 0;
    default:
        data_reply(request, in);
        return 0;
    }
}

/* ---- in: a frame ------------------------------------------------------------------- */

static int
decode(struct thin_client *client, const uint8_t *bytes, size_t len)
{
    struct client_incoming *in = &client->incoming;
    struct message_arena arena;
    size_t room = len * CLIENT_ARENA_FACTOR + CLIENT_ARENA_BYTES;
    int r;

    message_arena_init(&arena, client->arena_memory, CLIENT_ARENA_BYTES);
    r = message_decode(&arena, bytes, len, &in->message, &client->error);
    if (r != -THIN_E_LIMIT)
        return r;
    in->big_arena = malloc(room);
    if (!in->big_arena)
        return thin_fail_code(&client->error, -ENOMEM, "decode a message of %zu bytes",
                              len);
    message_arena_init(&arena, in->big_arena, room);
    return message_decode(&arena, bytes, len, &in->message, &client->error);
}

/* A whole message is at the front of the buffer: what it begins. */
static int
frame_begins(struct thin_client *client, const struct frame_prefix *prefix)
{
    struct client_incoming *in = &client->incoming;
    const uint8_t *bytes = client->in + client->in_begin;
    int r;

    r = frame_check(bytes, prefix, bytes + FRAME_PREFIX_BYTES, &client->error);
    if (r == 0)
        r = decode(client, bytes + FRAME_PREFIX_BYTES, prefix->message_bytes);
    if (r < 0)
        return r;
    client->in_begin += FRAME_PREFIX_BYTES + prefix->message_bytes;
    in->have_message = true;
    in->payload_bytes = in->payload_left = prefix->payload_bytes;
    in->crc = CRC32C_INIT;
    if (in->message->body_case == THIN__MESSAGE__BODY_REPLY)
        return reply_begins(client, in);
    /* Events carry none; of messages of a later version the payload is dropped. */
    return 0;
}

static int
frame_complete(struct thin_client *client)
{
    struct client_incoming *in = &client->incoming;
    int r = 0;

    if (in->message->body_case == THIN__MESSAGE__BODY_REPLY)
        r = reply_complete(client, in);
    else if (in->message->body_case == THIN__MESSAGE__BODY_EVENT &&
             client->state == CLIENT_READY)
        tell_server_event(client, in->message->event);
    if (r < 0)
        return r;
    next_frame(client);
    return 0;
}

/* Where the next payload bytes go; NULL: they are dropped, up to *ret_len. */
static uint8_t *
payload_place(struct client_incoming *in, size_t *ret_len)
{
    if (in->payload) {
        *ret_len = in->payload_left;
        return in->payload + (in->payload_bytes - in->payload_left);
    }
    if (in->request && in->request->op == OP_READ && !in->request->abandoned &&
        in->message->reply->code == 0)
        return read_place(in, ret_len);
    *ret_len = in->payload_left;
    return NULL;
}

static void
payload_took(struct client_incoming *in, const uint8_t *place, size_t n)
{
    in->payload_left -= n;
    if (place && in->message->reply->has_payload_crc)
        in->crc = crc32c_update(in->crc, place, n);
    if (place && !in->payload)
        skip_pieces(in, in->request, n, false);
}

static void
take_payload_from_buffer(struct thin_client *client)
{
    struct client_incoming *in = &client->incoming;

    while (in->payload_left > 0 && client->in_begin < client->in_end) {
        size_t len;
        uint8_t *place = payload_place(in, &len);

        len = min_u64(len, client->in_end - client->in_begin);
        if (place)
            memcpy(place, client->in + client->in_begin, len);
        client->in_begin += len;
        payload_took(in, place, len);
    }
}

/* Makes room for a message that is larger than the buffer, within the protocol's limit.
    */
static int
make_room(struct thin_client *client, size_t frame_bytes)
{
    uint8_t *more;

    if (client->in_begin > 0) {
        memmove(client->in, client->in + client->in_begin,
                client->in_end - client->in_begin);
        client->in_end -= client->in_begin;
        client->in_begin = 0;
    }
    if (frame_bytes <= client->in_room)
        return 0;
    more = realloc(client->in, frame_bytes);
    if (!more)
        return thin_fail_code(&client->error, -ENOMEM, "receive %zu bytes", frame_bytes);
    client->in = more;
    client->in_room = frame_bytes;
    return 0;
}

/*
 * Handles what the buffer holds, as far as it goes. 0: more bytes are needed, and there
 * is room for them; negative: final.
 */
static int
parse(struct thin_client *client)
{
    struct client_incoming *in = &client->incoming;

    for (;;) {
        struct frame_prefix prefix;
        size_t have = client->in_end - client->in_begin;
        size_t need = FRAME_PREFIX_BYTES;
        int r;

        if (in->have_message) {
            take_payload_from_buffer(client);
            if (in->payload_left > 0)
                return make_room(client, 0);
            r = frame_complete(client);
            if (r < 0)
                return r;
            continue;
        }
        if (have >= need) {
            r = frame_prefix_decode(client->in + client->in_begin, PROTO_MESSAGE_MAX,
                                    PROTO_PAYLOAD_MAX, &prefix, &client->error);
            if (r < 0)
                return r;
            need += prefix.message_bytes;
        }
        if (have < need || have < FRAME_PREFIX_BYTES)
            return make_room(client, need);
        r = frame_begins(client, &prefix);
        if (r < 0)
            return r;
    }
}

/* One read: a large piece of payload goes straight to its place, the rest to the
   buffer. */
static ssize_t
receive_some(struct thin_client *client)
{
    struct client_incoming *in = &client->incoming;
    ssize_t n;

    if (in->have_message && in->payload_left >= CLIENT_DIRECT_BYTES) {
        size_t len;
        uint8_t *place = payload_place(in, &len);

        if (place && len >= CLIENT_DIRECT_BYTES) {
            n = channel_read(client->channel, place, len, &client->error);
            if (n > 0)
                payload_took(in, place, (size_t)n);
            return n;
        }
    }
    THIN_ASSERT(client->in_end < client->in_room);
    n = channel_read(client->channel, client->in + client->in_end,
                     client->in_room - client->in_end, &client->error);
    if (n > 0)
        client->in_end += (size_t)n;
    return n;
}

int
client_receive(struct thin_client *client)
{
    size_t total = 0;

    while (total < CLIENT_READY_BYTES && client->channel) {
        ssize_t n = receive_some(client);
        int r;

        if (n == -EAGAIN)
            break;
        if (n == 0)
            return thin_fail(&client->error, -THIN_E_DISCONNECTED,
                             "the server has closed the connection");
        if (n < 0)
            return (int)n;
        total += (size_t)n;
        client->heard_ns = client_now_ns(client);
        r = parse(client);
        if (r < 0)
            return r;
    }
    if (client->channel)
        watch_for_writing(client);
    return 0;
}
