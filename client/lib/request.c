#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "client/lib/client_private.h"
#include "core/base/assert.h"
#include "core/base/bytes.h"
#include "core/base/checked.h"
#include "core/base/crc32c.h"

/* ---- life -------------------------------------------------------------------------- */

struct client_request *
request_new(struct thin_client *client, enum client_op op, int *ret_code)
{
    struct client_request *request = TAILQ_FIRST(&client->spare);

    if (op != OP_CONTROL && client->outstanding >= THIN_CLIENT_REQUESTS_MAX) {
        *ret_code = thin_fail(&client->error, -THIN_E_LIMIT,
                              "%u requests are outstanding, no more are allowed",
                              client->outstanding);
        return NULL;
    }
    if (request)
        TAILQ_REMOVE(&client->spare, request, link);
    else
        request = malloc(sizeof(*request));
    if (!request) {
        *ret_code = thin_fail_code(&client->error, -ENOMEM, "make a request");
        return NULL;
    }
    *request = (struct client_request){.op = op, .client = client};
    if (op != OP_CONTROL)
        client->outstanding++;
    return request;
}

void
request_free(struct client_request *request)
{
    struct thin_client *client = request->client;

    if (request->iov != request->iov_inline)
        free(request->iov);
    free(request->extents);
    free(request->body);
    free(request->words);
    if (request->op != OP_CONTROL)
        client->outstanding--;
    TAILQ_INSERT_HEAD(&client->spare, request, link);
}

int
request_set_iov(struct client_request *request, const struct iovec *iov, unsigned nr_iov,
                uint64_t *ret_bytes)
{
    uint64_t bytes = 0;

    if (nr_iov > THIN_CLIENT_IOV_MAX)
        return thin_fail(&request->client->error, -THIN_E_LIMIT,
                         "%u pieces in one request, at most %u are allowed", nr_iov,
                         THIN_CLIENT_IOV_MAX);
    for (unsigned i = 0; i < nr_iov; i++)
        if (!checked_add_u64(bytes, iov[i].iov_len, &bytes))
            return thin_fail(&request->client->error, -THIN_E_LIMIT,
                             "a request of more bytes than there are numbers");
    request->iov = request->iov_inline;
    if (nr_iov > CLIENT_IOV_INLINE) {
        request->iov = malloc(nr_iov * sizeof(*iov));
        if (!request->iov)
            return thin_fail_code(&request->client->error, -ENOMEM, "make a request");
    }
    if (nr_iov > 0)
        memcpy(request->iov, iov, nr_iov * sizeof(*iov));
    request->nr_iov = nr_iov;
    *ret_bytes = bytes;
    return 0;
}

int
request_set_body(struct client_request *request, const Thin__Request *message)
{
    size_t len = thin__request__get_packed_size(message);

    if (len > PROTO_MESSAGE_MAX - CLIENT_HEAD_ROOM)
        return thin_fail(&request->client->error, -THIN_E_LIMIT,
                         "a request of %zu bytes, at most %u are allowed", len,
                         PROTO_MESSAGE_MAX - CLIENT_HEAD_ROOM);
    request->body = malloc(CLIENT_HEAD_ROOM + FRAME_PREFIX_BYTES + len);
    if (!request->body)
        return thin_fail_code(&request->client->error, -ENOMEM, "make a request");
    thin__request__pack(message, request->body + CLIENT_HEAD_ROOM + FRAME_PREFIX_BYTES);
    request->body_bytes = len;
    return 0;
}

/* ---- encoding ---------------------------------------------------------------------- */

static size_t
put_varint(uint8_t *p, uint64_t v)
{
    size_t n = 0;

    for (; v >= 0x80; v >>= 7)
        p[n++] = (uint8_t)(v | 0x80);
    p[n++] = (uint8_t)v;
    return n;
}

/*
 * The body was encoded when slot and number were not known. Protobuf lets a message's
 * fields stand in any order, so that these two are put before it:
 *
 *   prefix | Message.request = 1, length | slot = 1 | seq = 2 | body
 */
static void
encode_early_body(struct client_request *request)
{
    uint8_t ids[24], head[12];
    size_t nr_ids = 0, nr_head = 0;
    uint8_t *p = request->body + CLIENT_HEAD_ROOM + FRAME_PREFIX_BYTES;
    size_t len;

    ids[nr_ids++] = 0x08;
    nr_ids += put_varint(ids + nr_ids, request->slot);
    ids[nr_ids++] = 0x10;
    nr_ids += put_varint(ids + nr_ids, request->seq);
    head[nr_head++] = 0x0a;
    nr_head += put_varint(head + nr_head, nr_ids + request->body_bytes);
    len = nr_head + nr_ids + request->body_bytes;
    p -= nr_ids;
    memcpy(p, ids, nr_ids);
    p -= nr_head;
    memcpy(p, head, nr_head);
    frame_prefix_encode(p - FRAME_PREFIX_BYTES, p, (uint32_t)len, 0);
    request->header = p - FRAME_PREFIX_BYTES;
    request->header_bytes = FRAME_PREFIX_BYTES + len;
}

static uint32_t
crc_of_pieces(const struct iovec *iov, unsigned nr)
{
    uint32_t crc = CRC32C_INIT;

    for (unsigned i = 0; i < nr; i++)
        crc = crc32c_update(crc, iov[i].iov_base, iov[i].iov_len);
    return ~crc;
}

static void
encode_data(struct client_request *request)
{
    const struct thin_client_volume *volume = request->volume;
    const struct thin_client *client = request->client;
    bool fua = (request->flags & THIN_CLIENT_FUA) != 0;
    bool check = client->data_checksums && client->peer_checks_data;
    Thin__Message message = THIN__MESSAGE__INIT;
    Thin__Request outer = THIN__REQUEST__INIT;
    Thin__Read read = THIN__READ__INIT;
    Thin__Write write = THIN__WRITE__INIT;
    Thin__Flush flush = THIN__FLUSH__INIT;
    Thin__Discard discard = THIN__DISCARD__INIT;
    Thin__WriteZeroes zeroes = THIN__WRITE_ZEROES__INIT;

    message.body_case = THIN__MESSAGE__BODY_REQUEST;
    message.request = &outer;
    outer.slot = request->slot;
    outer.seq = request->seq;
    switch (request->op) {
    case OP_READ:
        read.handle = volume->handle;
        read.offset = request->offset;
        read.length = (uint32_t)request->len_bytes;
        read.want_crc = check;
        outer.body_case = THIN__REQUEST__BODY_READ;
        outer.read = &read;
        break;
    case OP_WRITE:
        write.handle = volume->handle;
        write.offset = request->offset;
        write.epoch = volume->epoch;
        write.fua = fua;
        outer.body_case = THIN__REQUEST__BODY_WRITE;
        outer.write = &write;
        outer.has_payload_crc = check;
        if (check)
            outer.payload_crc = crc_of_pieces(request->iov, request->nr_iov);
        break;
    case OP_FLUSH:
        flush.handle = volume->handle;
        flush.epoch = volume->epoch;
        outer.body_case = THIN__REQUEST__BODY_FLUSH;
        outer.flush = &flush;
        break;
    case OP_DISCARD:
        discard.handle = volume->handle;
        discard.offset = request->offset;
        discard.length = request->len_bytes;
        discard.epoch = volume->epoch;
        discard.fua = fua;
        outer.body_case = THIN__REQUEST__BODY_DISCARD;
        outer.discard = &discard;
        break;
    default:
        THIN_ASSERT(request->op == OP_WRITE_ZEROES);
        zeroes.handle = volume->handle;
        zeroes.offset = request->offset;
        zeroes.length = request->len_bytes;
        zeroes.epoch = volume->epoch;
        zeroes.fua = fua;
        zeroes.no_hole = (request->flags & THIN_CLIENT_NO_HOLE) != 0;
        zeroes.only_fast = (request->flags & THIN_CLIENT_FAST_ZERO) != 0;
        outer.body_case = THIN__REQUEST__BODY_WRITE_ZEROES;
        outer.write_zeroes = &zeroes;
        break;
    }
    THIN_ASSERT(FRAME_PREFIX_BYTES + message_encoded_bytes(&message) <=
                sizeof(request->header_room));
    request->header = request->header_room;
    request->header_bytes =
        message_encode(&message, (uint32_t)request->payload_bytes, request->header_room);
}

/* The handle of a volume is known only now: a close or a status names the present one. */
static int
encode_late_body(struct client_request *request)
{
    Thin__Request message = THIN__REQUEST__INIT;
    Thin__VolumeClose close = THIN__VOLUME_CLOSE__INIT;

    free(request->body);
    request->body = NULL;
    close.handle = request->volume->handle;
    message.body_case = THIN__REQUEST__BODY_VOLUME_CLOSE;
    message.volume_close = &close;
    return request_set_body(request, &message);
}

static int
encode_block_status(struct client_request *request, Thin__Request *message,
                    Thin__BlockStatus *status)
{
    /* `words` holds the snapshot's name until there is an answer. */
    static char none[1];
    int r;

    free(request->body);
    request->body = NULL;
    status->handle = request->volume->handle;
    status->offset = request->offset;
    status->length = request->len_bytes;
    status->max_extents = PROTO_EXTENTS_MAX;
    status->since = request->words ? request->words : none;
    message->body_case = THIN__REQUEST__BODY_BLOCK_STATUS;
    message->block_status = status;
    r = request_set_body(request, message);
    return r;
}

static int
encode(struct client_request *request)
{
    Thin__Request message = THIN__REQUEST__INIT;
    Thin__BlockStatus status = THIN__BLOCK_STATUS__INIT;
    int r = 0;

    request->sent = 0;
    switch (request->op) {
    case OP_OPEN:
    case OP_CALL:
        encode_early_body(request);
        return 0;
    case OP_CLOSE:
        r = encode_late_body(request);
        break;
    case OP_BLOCK_STATUS:
        r = encode_block_status(request, &message, &status);
        break;
    default:
        encode_data(request);
        return 0;
    }
    if (r == 0)
        encode_early_body(request);
    return r;
}

/* ---- the way out ------------------------------------------------------------------- */

static uint64_t
credit_bytes(const struct client_request *request)
{
    return request->op == OP_READ ? request->len_bytes : request->payload_bytes;
}

static void
reset_slots(struct thin_client *client)
{
    client->nr_free_slots = 0;
    client->bytes_in_flight = 0;
    memset(client->slots, 0, sizeof(client->slots));
    /* The lowest is taken first. */
    for (uint32_t slot = client->nr_slots; slot > 0; slot--)
        client->free_slots[client->nr_free_slots++] = slot;
}

static void
release_slot(struct client_request *request)
{
    struct thin_client *client = request->client;

    if (request->slot == 0)
        return;
    client->slots[request->slot].request = NULL;
    client->free_slots[client->nr_free_slots++] = request->slot;
    client->bytes_in_flight -= credit_bytes(request);
    request->slot = 0;
}

static void
take_slot(struct client_request *request)
{
    struct thin_client *client = request->client;
    struct client_slot *slot;

    request->slot = client->free_slots[--client->nr_free_slots];
    slot = &client->slots[request->slot];
    slot->request = request;
    request->seq = ++slot->seq;
    client->bytes_in_flight += credit_bytes(request);
}

static struct client_requests *
list_of(struct client_request *request)
{
    switch (request->stage) {
    case STAGE_WAITING:
        return &request->volume->waiting;
    case STAGE_QUEUED:
        return &request->client->queue;
    case STAGE_SENDING:
        return &request->client->sending;
    case STAGE_DONE:
        return &request->client->done;
    default:
        return NULL;
    }
}

static void
unlink_request(struct client_request *request)
{
    struct client_requests *list = list_of(request);

    if (list)
        TAILQ_REMOVE(list, request, link);
}

static void
link_request(struct client_request *request, enum client_stage stage)
{
    request->stage = stage;
    TAILQ_INSERT_TAIL(list_of(request), request, link);
}

void
client_dispatch(struct thin_client *client)
{
    struct client_request *request;

    while (client->state == CLIENT_READY && client->nr_free_slots > 0 &&
           (request = TAILQ_FIRST(&client->queue))) {
        uint64_t bytes = credit_bytes(request);
        int r;

        if (bytes > client->max_payload) {
            /* The server that we came back to allows less than the one before. */
            request_finish(request, -THIN_E_LIMIT, NULL);
            continue;
        }
        if (client->bytes_in_flight > 0 &&
            client->bytes_in_flight + bytes > client->max_bytes_in_flight)
            return;
        unlink_request(request);
        request->stage = STAGE_NEW;
        take_slot(request);
        r = encode(request);
        if (r < 0) {
            /* The server has not seen the number: the slot's next may have it. */
            client->slots[request->slot].seq--;
            request_finish(request, r, NULL);
            continue;
        }
        link_request(request, STAGE_SENDING);
    }
}

void
request_submit(struct client_request *request)
{
    struct thin_client *client = request->client;
    bool needs_open =
        request->volume && request->op != OP_OPEN && request->op != OP_CLOSE;

    link_request(request,
                 needs_open && !request->volume->ready ? STAGE_WAITING : STAGE_QUEUED);
    if (client->state == CLIENT_READY && !client->in_ready && !client->corks &&
        !client->broken) {
        client_dispatch(client);
        if (client_send(client) < 0) {
            /* To be dealt with by ready(): no callback may be made here. */
            client->broken = client->error.code;
            client->broken_words = client->error;
        }
    }
    client_arm(client);
}

int
client_send_control(struct thin_client *client, Thin__Request *request)
{
    Thin__Message message = THIN__MESSAGE__INIT;
    struct client_request *control;
    int r = 0;

    control = request_new(client, OP_CONTROL, &r);
    if (!control)
        return r;
    message.body_case = THIN__MESSAGE__BODY_REQUEST;
    message.request = request;
    request->slot = 0;
    request->seq = client->control_seq++;
    control->body = malloc(FRAME_PREFIX_BYTES + message_encoded_bytes(&message));
    if (!control->body) {
        request_free(control);
        return thin_fail_code(&client->error, -ENOMEM, "make a request");
    }
    control->header_bytes = message_encode(&message, 0, control->body);
    control->header = control->body;
    link_request(control, STAGE_SENDING);
    return 0;
}

/* ---- the outcome ------------------------------------------------------------------- */

static void
set_words(struct client_request *request, const char *words)
{
    free(request->words);
    request->words = words ? strdup(words) : NULL; /* without: the code's own */
}

void
request_finish(struct client_request *request, int result, const char *words)
{
    unlink_request(request);
    release_slot(request);
    request->result = result;
    set_words(request, result < 0 ? words : NULL);
    link_request(request, STAGE_DONE);
    if (request->volume)
        volume_request_done(request);
}

void
request_drop(struct client_request *request)
{
    unlink_request(request);
    release_slot(request);
    request_free(request);
}

static void
say_why(struct thin_client *client, int result, const char *words)
{
    if (result < 0 && words)
        thin_fail(&client->error, result, "%s", words);
    else if (result < 0)
        thin_fail(&client->error, result, "%s", thin_strerror(result));
}

void
request_abandon(struct client_request *request, int result, const char *words)
{
    THIN_ASSERT(request->op == OP_CALL);
    request->abandoned = true;
    say_why(request->client, result, words);
    if (request->cb.called)
        request->cb.called(request->arg, result, words ? words : thin_strerror(result));
}

void
request_make_callback(struct client_request *request)
{
    struct thin_client_volume *volume = request->volume;
    int result = request->result;

    say_why(request->client, result, request->words);
    switch (request->op) {
    case OP_OPEN:
        request->cb.opened(request->arg, result, result < 0 ? NULL : volume);
        if (result < 0)
            volume_free(volume);
        break;
    case OP_CLOSE:
        if (request->cb.done)
            request->cb.done(request->arg, result);
        volume_free(volume);
        break;
    case OP_BLOCK_STATUS:
        request->cb.status(request->arg, result, request->extents, request->nr_extents);
        break;
    case OP_CALL:
        if (request->cb.called)
            request->cb.called(request->arg, result,
                               request->words ? request->words : thin_strerror(result));
        break;
    default:
        request->cb.done(request->arg, result);
        break;
    }
    request_free(request);
}

/* ---- when connections end ---------------------------------------------------------- */

void
client_requests_lost(struct thin_client *client)
{
    struct client_request *request;

    while ((request = TAILQ_FIRST(&client->sending))) {
        unlink_request(request);
        request->stage = STAGE_NEW;
        if (request->op == OP_CONTROL)
            request_free(request);
    }
    for (uint32_t i = 1; i <= client->nr_slots; i++) {
        request = client->slots[i].request;
        if (!request)
            continue;
        request->sent = 0;
        request->stage = STAGE_NEW;
        if (request->partly_answered && !request->abandoned)
            request_abandon(request, -THIN_E_DISCONNECTED,
                            "the connection was lost in the middle of the answer");
    }
}

void
client_requests_resume(struct thin_client *client)
{
    for (uint32_t i = 1; i <= client->nr_slots; i++)
        if (client->slots[i].request)
            link_request(client->slots[i].request, STAGE_SENDING);
}

/* Where a request goes whose session is gone. It is in no list and no slot. */
static void
requeue(struct client_request *request)
{
    request->stage = STAGE_NEW;
    request->sent = 0;
    switch (request->op) {
    case OP_OPEN:
        if (request->volume->user_has_it) {
            request->volume->opening = NULL; /* all volumes are opened again anyway */
            request_free(request);
            return;
        }
        link_request(request, STAGE_QUEUED);
        return;
    case OP_CLOSE:
        request_finish(request, 0, NULL); /* went with the session */
        return;
    case OP_CALL:
        link_request(request, STAGE_QUEUED);
        return;
    default:
        if (request->volume->failed)
            request_finish(request, request->volume->failed, NULL);
        else
            link_request(request, STAGE_WAITING);
        return;
    }
}

void
client_requests_new_session(struct thin_client *client)
{
    struct client_requests old = TAILQ_HEAD_INITIALIZER(old);
    struct thin_client_volume *volume;
    struct client_request *request;

    TAILQ_FOREACH(volume, &client->volumes, link)
        volume->ready = false;
    for (uint32_t i = 1; i <= PROTO_SLOTS_MAX; i++) {
        request = client->slots[i].request;
        if (!request)
            continue;
        request->slot = 0;
        if (request->abandoned)
            request_free(request);
        else if (request->op == OP_CALL && request->changes)
            request_finish(
                request, -THIN_E_UNKNOWN_OUTCOME,
                "the server was lost before it answered: ask what became of it");
        else
            requeue(request);
    }
    reset_slots(client);
    TAILQ_CONCAT(&old, &client->queue, link);
    while ((request = TAILQ_FIRST(&old))) {
        TAILQ_REMOVE(&old, request, link);
        requeue(request);
    }
}

void
client_requests_fail_list(struct client_requests *list,
                          const struct thin_client_volume *volume, int code)
{
    struct client_request *request, *next;

    for (request = TAILQ_FIRST(list); request; request = next) {
        next = TAILQ_NEXT(request, link);
        if (request->op == OP_OPEN || request->op == OP_CLOSE)
            continue;
        if (!volume || request->volume == volume)
            request_finish(request, code, NULL);
    }
}

void
client_requests_fail(struct thin_client *client, int code)
{
    struct thin_client_volume *volume, *next_volume;
    struct client_request *request, *next;
    struct thin_error why = client->error;
    const char *words = why.code == code ? why.text : NULL;

    for (request = TAILQ_FIRST(&client->queue); request; request = next) {
        next = TAILQ_NEXT(request, link);
        if (request->op == OP_OPEN)
            volume_open_failed(request, code, words);
        else
            request_finish(request, code, words);
    }
    for (volume = TAILQ_FIRST(&client->volumes); volume; volume = next_volume) {
        next_volume = TAILQ_NEXT(volume, link);
        client_requests_fail_list(&volume->waiting, volume, code);
    }
}
