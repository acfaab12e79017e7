#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/lib/client_private.h"
#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/loop.h"

/* ---- life -------------------------------------------------------------------------- */

void
volume_free(struct thin_client_volume *volume)
{
    TAILQ_REMOVE(&volume->client->volumes, volume, link);
    free(volume);
}

struct thin_client_volume *
volume_by_handle(struct thin_client *client, uint32_t handle)
{
    struct thin_client_volume *volume;

    TAILQ_FOREACH(volume, &client->volumes, link)
        if (volume->ready && volume->handle == handle)
            return volume;
    return NULL;
}

/* Submits the close that was put by, once all else of the volume has its outcome. */
static void
close_if_idle(struct thin_client_volume *volume)
{
    struct client_request *close = volume->close;

    if (!close || volume->outstanding > 0 || volume->opening)
        return;
    volume->close = NULL;
    if (volume->ready)
        request_submit(close);
    else
        request_finish(close, 0, NULL); /* the server has nothing of it */
}

void
volume_request_done(struct client_request *request)
{
    if (request->op == OP_OPEN || request->op == OP_CLOSE)
        return;
    THIN_ASSERT(request->volume->outstanding > 0);
    request->volume->outstanding--;
    if (request->result == -THIN_E_STALE || request->result == -THIN_E_ROLLED_BACK)
        volume_fail(request->volume, request->result);
    close_if_idle(request->volume);
}

void
volume_fail(struct thin_client_volume *volume, int code)
{
    if (volume->failed)
        return;
    volume->failed = code;
    client_requests_fail_list(&volume->waiting, volume, code);
    client_requests_fail_list(&volume->client->queue, volume, code);
}

void
volume_learn(struct client_request *request, const Thin__DataReply *data)
{
    struct thin_client_volume *volume = request->volume;
    bool changed = request->op == OP_WRITE || request->op == OP_DISCARD ||
                   request->op == OP_WRITE_ZEROES;

    if (request->op == OP_FLUSH) {
        volume->nr_unnumbered_flushed =
            max_u64(volume->nr_unnumbered_flushed, request->covers_unnumbered);
        volume->stable_mark = max_u64(volume->stable_mark, request->covers_change);
    }
    changed = changed && !(request->flags & THIN_CLIENT_FUA);
    if (changed && (!data || data->change == 0))
        volume->nr_unnumbered++;
    if (!data)
        return;
    if (changed)
        volume->highest_change = max_u64(volume->highest_change, data->change);
    volume->stable_mark = max_u64(volume->stable_mark, data->stable_mark);
    if (data->incarnation)
        volume->incarnation = data->incarnation;
}

/* ---- opening ----------------------------------------------------------------------- */

static int
encode_open(struct client_request *request)
{
    const struct thin_client_volume *volume = request->volume;
    Thin__Request message = THIN__REQUEST__INIT;
    Thin__VolumeOpen open = THIN__VOLUME_OPEN__INIT;

    open.name = (char *)(uintptr_t)volume->name; /* only read */
    open.read_only = (volume->flags & THIN_CLIENT_OPEN_READ_ONLY) != 0;
    open.shared = (volume->flags & THIN_CLIENT_OPEN_SHARED) != 0;
    /* What was taken once is not taken again from whoever has it now. */
    open.steal = (volume->flags & THIN_CLIENT_OPEN_STEAL) && !volume->user_has_it;
    open.known_epoch = volume->user_has_it ? volume->epoch : 0;
    message.body_case = THIN__REQUEST__BODY_VOLUME_OPEN;
    message.volume_open = &open;
    return request_set_body(request, &message);
}

static int
submit_open(struct thin_client_volume *volume,
            void (*done)(void *arg, int result, struct thin_client_volume *volume),
            void *arg)
{
    int r = 0;
    struct client_request *request = request_new(volume->client, OP_OPEN, &r);

    if (!request)
        return r;
    request->volume = volume;
    request->cb.opened = done;
    request->arg = arg;
    r = encode_open(request);
    if (r < 0) {
        request_free(request);
        return r;
    }
    volume->opening = request;
    request_submit(request);
    return 0;
}

/* Why nothing can be asked of the server, or 0. */
static int
usable(struct thin_client *client)
{
    if (client->state == CLIENT_ENDED)
        return thin_fail(&client->error, -THIN_E_CANCELLED, "the client has ended");
    if (client->state == CLIENT_IDLE || client->state == CLIENT_FAILED)
        return thin_fail(&client->error, -THIN_E_DISCONNECTED,
                         "not connected: thin_client_connect comes first");
    if (client->offline_told)
        return thin_fail(&client->error, -THIN_E_DISCONNECTED, "no server for %u ms",
                         client->offline_timeout_ms);
    return 0;
}

int
thin_client_open(struct thin_client *client, const char *name, unsigned flags,
                 void (*done)(void *arg, int result, struct thin_client_volume *volume),
                 void *arg)
{
    struct thin_client_volume *volume, *other;
    char pool[128], own[128];
    unsigned nr = 0;
    int r = usable(client);

    if (r == 0)
        r = message_split_name(name, pool, own, &client->error);
    if (r < 0)
        return r;
    TAILQ_FOREACH(other, &client->volumes, link)
        nr++;
    if (nr >= PROTO_VOLUMES_MAX)
        return thin_fail(&client->error, -THIN_E_LIMIT,
                         "%u volumes are open, no more are allowed", nr);
    volume = calloc(1, sizeof(*volume));
    if (!volume)
        return thin_fail_code(&client->error, -ENOMEM, "open %s", name);
    volume->client = client;
    volume->flags = flags;
    TAILQ_INIT(&volume->waiting);
    snprintf(volume->name, sizeof(volume->name), "%s", name);
    TAILQ_INSERT_TAIL(&client->volumes, volume, link);
    r = submit_open(volume, done, arg);
    if (r < 0)
        volume_free(volume);
    return r;
}

/*
 * True if writes that the user was told of may be gone: another incarnation, and he
 * has made changes that he never knew to be durable.
 */
static bool
may_have_lost(const struct thin_client_volume *volume, const Thin__VolumeOpened *opened)
{
    return opened->incarnation != volume->incarnation &&
           (volume->highest_change > volume->stable_mark ||
            volume->nr_unnumbered > volume->nr_unnumbered_flushed);
}

static void
tell_volume_event(struct thin_client_volume *volume, enum thin_client_event_kind kind,
                  const char *name, const char *text)
{
    struct thin_client *client = volume->client;
    struct thin_client_event event = {
        .kind = kind,
        .name = name,
        .object = volume->name,
        .text = text,
        .volume = volume,
        .size = volume->size,
    };

    if (client->on_event && !volume->closing)
        client->on_event(client->event_arg, &event);
}

/* Opened again in a new session: goes on, unless something was lost meanwhile. */
static void
reopened(struct thin_client_volume *volume, const Thin__VolumeOpened *opened)
{
    struct client_request *request;
    bool lost = may_have_lost(volume, opened);
    bool same = opened->incarnation == volume->incarnation;
    bool resized = opened->size != volume->size;

    volume->handle = opened->handle;
    volume->epoch = opened->epoch;
    volume->size = opened->size;
    volume->incarnation = opened->incarnation;
    if (same) {
        volume->stable_mark = max_u64(volume->stable_mark, opened->stable_mark);
    } else {
        /* Another count; what the old one stood for was durable, or is lost below. */
        volume->stable_mark = opened->stable_mark;
        volume->highest_change = 0;
        volume->nr_unnumbered = volume->nr_unnumbered_flushed = 0;
    }
    volume->ready = true;
    if (lost) {
        volume_fail(volume, -THIN_E_ROLLED_BACK);
        tell_volume_event(volume, THIN_CLIENT_EVENT_ROLLED_BACK, "rolled-back",
                          "the server has lost writes that were not flushed");
        return;
    }
    while ((request = TAILQ_FIRST(&volume->waiting))) {
        TAILQ_REMOVE(&volume->waiting, request, link);
        request->stage = STAGE_QUEUED;
        TAILQ_INSERT_TAIL(&volume->client->queue, request, link);
    }
    if (resized)
        tell_volume_event(volume, THIN_CLIENT_EVENT_RESIZED, "resized", "");
}

void
volume_opened(struct client_request *request, const Thin__VolumeOpened *opened)
{
    struct thin_client_volume *volume = request->volume;

    volume->opening = NULL;
    if (volume->user_has_it) {
        reopened(volume, opened);
        request_drop(request);
        close_if_idle(volume);
        return;
    }
    volume->handle = opened->handle;
    volume->size = opened->size;
    volume->block_size = opened->block_size;
    volume->epoch = opened->epoch;
    volume->incarnation = opened->incarnation;
    volume->stable_mark = opened->stable_mark;
    volume->read_only = opened->read_only;
    volume->ready = true;
    volume->user_has_it = true;
    request_finish(request, 0, NULL);
}

/* Reasons that pass: the server is on its way up or down, or still ends our old
   session. */
static bool
passes(int code)
{
    return code == -THIN_E_BUSY || code == -THIN_E_IN_FLIGHT ||
           code == -THIN_E_SHUTDOWN || code == -EAGAIN;
}

void
volume_open_failed(struct client_request *request, int code, const char *words)
{
    struct thin_client_volume *volume = request->volume;

    volume->opening = NULL;
    if (!volume->user_has_it) {
        request_finish(request, code, words);
        return;
    }
    request_drop(request);
    if (passes(code)) {
        volume->reopen_ns = client_now_ns(volume->client) + CLIENT_REOPEN_MS * NS_PER_MS;
    } else {
        volume_fail(volume, code);
        if (code == -THIN_E_STALE)
            tell_volume_event(volume, THIN_CLIENT_EVENT_FENCED, "fenced",
                              "somebody else has the volume now");
    }
    close_if_idle(volume);
}

static void
reopen(struct thin_client_volume *volume)
{
    volume->reopen_ns = 0;
    if (submit_open(volume, NULL, NULL) < 0)
        volume->reopen_ns = client_now_ns(volume->client) + CLIENT_REOPEN_MS * NS_PER_MS;
}

void
volume_new_session(struct thin_client *client)
{
    struct thin_client_volume *volume, *next;

    for (volume = TAILQ_FIRST(&client->volumes); volume; volume = next) {
        next = TAILQ_NEXT(volume, link);
        if (!volume->user_has_it)
            continue; /* its first open is in the queue */
        if (volume->closing && volume->outstanding == 0)
            close_if_idle(volume);
        else if (!volume->failed)
            reopen(volume);
    }
}

void
volume_timers(struct thin_client *client, uint64_t now)
{
    struct thin_client_volume *volume;

    TAILQ_FOREACH(volume, &client->volumes, link)
        if (volume->reopen_ns && now >= volume->reopen_ns &&
            client->state == CLIENT_READY)
            reopen(volume);
}

uint64_t
volume_deadline_ns(const struct thin_client *client)
{
    const struct thin_client_volume *volume;
    uint64_t when = UINT64_MAX;

    if (client->state == CLIENT_READY)
        TAILQ_FOREACH(volume, &client->volumes, link)
            if (volume->reopen_ns)
                when = min_u64(when, volume->reopen_ns);
    return when;
}

/* ---- closing ----------------------------------------------------------------------- */

int
thin_client_close(struct thin_client_volume *volume, void (*done)(void *arg, int result),
                  void *arg)
{
    struct thin_client *client = volume->client;
    struct client_request *request;
    int r = 0;

    if (volume->closing)
        return thin_fail(&client->error, -THIN_E_INVALID, "%s is being closed already",
                         volume->name);
    request = request_new(client, OP_CLOSE, &r);
    if (!request)
        return r;
    request->volume = volume;
    request->cb.done = done;
    request->arg = arg;
    volume->closing = true;
    volume->close = request;
    volume->outstanding++; /* so that cancelling the last one does not close too early */
    client_requests_fail_list(&volume->waiting, volume, -THIN_E_CANCELLED);
    client_requests_fail_list(&client->queue, volume, -THIN_E_CANCELLED);
    volume->outstanding--;
    volume->reopen_ns = volume->outstanding ? volume->reopen_ns : 0;
    close_if_idle(volume);
    client_arm(client);
    return 0;
}

/* ---- what is known of a volume ----------------------------------------------------- */

const char *
thin_client_volume_name(const struct thin_client_volume *volume)
{
    return volume->name;
}

uint64_t
thin_client_volume_size(const struct thin_client_volume *volume)
{
    return volume->size;
}

uint32_t
thin_client_volume_block_size(const struct thin_client_volume *volume)
{
    return volume->block_size;
}

bool
thin_client_volume_is_read_only(const struct thin_client_volume *volume)
{
    return volume->read_only;
}

uint32_t
thin_client_volume_max_request(const struct thin_client_volume *volume)
{
    return volume->client->max_payload;
}

int
thin_client_volume_state(const struct thin_client_volume *volume)
{
    return volume->failed;
}

/* ---- data requests ----------------------------------------------------------------- */

static int
check_range(struct thin_client_volume *volume, uint64_t offset, uint64_t len_bytes)
{
    struct thin_client *client = volume->client;
    int r = usable(client);

    if (r < 0)
        return r;
    if (volume->closing)
        return thin_fail(&client->error, -THIN_E_INVALID, "%s is being closed",
                         volume->name);
    if (volume->failed)
        return thin_fail(&client->error, volume->failed, "%s: %s", volume->name,
                         thin_strerror(volume->failed));
    if (!range_inside(offset, len_bytes, volume->size))
        return thin_fail(&client->error, -THIN_E_RANGE,
                         "%s: %llu bytes at %llu, the volume has %llu", volume->name,
                         (unsigned long long)len_bytes, (unsigned long long)offset,
                         (unsigned long long)volume->size);
    return 0;
}

static int
check_writable(struct thin_client_volume *volume)
{
    if (volume->read_only)
        return thin_fail(&volume->client->error, -THIN_E_READ_ONLY,
                         "%s was opened read-only", volume->name);
    return 0;
}

static struct client_request *
new_data_request(struct thin_client_volume *volume, enum client_op op, uint64_t offset,
                 uint64_t len_bytes, unsigned flags, void (*done)(void *arg, int result),
                 void *arg, int *ret_code)
{
    struct client_request *request = request_new(volume->client, op, ret_code);

    if (!request)
        return NULL;
    request->volume = volume;
    request->offset = offset;
    request->len_bytes = len_bytes;
    request->flags = flags;
    request->cb.done = done;
    request->arg = arg;
    return request;
}

static void
submit_data_request(struct client_request *request)
{
    bool nothing = request->len_bytes == 0 && request->op != OP_FLUSH;

    request->volume->outstanding++;
    request->covers_unnumbered = request->volume->nr_unnumbered;
    request->covers_change = request->volume->highest_change;
    if (nothing && request->op != OP_BLOCK_STATUS) {
        request_finish(request, 0, NULL);
        client_arm(request->client);
        return;
    }
    request_submit(request);
}

static int
pieces_request(struct thin_client_volume *volume, enum client_op op,
               const struct iovec *iov, unsigned nr_iov, uint64_t offset, unsigned flags,
               void (*done)(void *arg, int result), void *arg)
{
    struct client_request *request;
    uint64_t bytes = 0;
    int r = 0;

    request = new_data_request(volume, op, offset, 0, flags, done, arg, &r);
    if (!request)
        return r;
    r = request_set_iov(request, iov, nr_iov, &bytes);
    if (r == 0)
        r = check_range(volume, offset, bytes);
    if (r == 0 && bytes > volume->client->max_payload)
        r = thin_fail(&volume->client->error, -THIN_E_LIMIT,
                      "a request of %llu bytes, at most %u are allowed",
                      (unsigned long long)bytes, volume->client->max_payload);
    if (r < 0) {
        request_free(request);
        return r;
    }
    request->len_bytes = bytes;
    request->payload_bytes = op == OP_WRITE ? bytes : 0;
    submit_data_request(request);
    return 0;
}

int
thin_client_read(struct thin_client_volume *volume, const struct iovec *iov,
                 unsigned nr_iov, uint64_t offset, void (*done)(void *arg, int result),
                 void *arg)
{
    return pieces_request(volume, OP_READ, iov, nr_iov, offset, 0, done, arg);
}

int
thin_client_write(struct thin_client_volume *volume, const struct iovec *iov,
                  unsigned nr_iov, uint64_t offset, unsigned flags,
                  void (*done)(void *arg, int result), void *arg)
{
    int r = check_writable(volume);

    if (r < 0)
        return r;
    return pieces_request(volume, OP_WRITE, iov, nr_iov, offset, flags, done, arg);
}

static int
range_request(struct thin_client_volume *volume, enum client_op op, uint64_t offset,
              uint64_t len_bytes, unsigned flags, void (*done)(void *arg, int result),
              void *arg)
{
    struct client_request *request;
    int r = check_range(volume, offset, len_bytes);

    if (r < 0)
        return r;
    request = new_data_request(volume, op, offset, len_bytes, flags, done, arg, &r);
    if (!request)
        return r;
    submit_data_request(request);
    return 0;
}

int
thin_client_flush(struct thin_client_volume *volume, void (*done)(void *arg, int result),
                  void *arg)
{
    return range_request(volume, OP_FLUSH, 0, 0, 0, done, arg);
}

int
thin_client_discard(struct thin_client_volume *volume, uint64_t offset,
                    uint64_t len_bytes, unsigned flags,
                    void (*done)(void *arg, int result), void *arg)
{
    int r = check_writable(volume);

    if (r < 0)
        return r;
    return range_request(volume, OP_DISCARD, offset, len_bytes, flags, done, arg);
}

int
thin_client_write_zeroes(struct thin_client_volume *volume, uint64_t offset,
                         uint64_t len_bytes, unsigned flags,
                         void (*done)(void *arg, int result), void *arg)
{
    int r = check_writable(volume);

    if (r < 0)
        return r;
    return range_request(volume, OP_WRITE_ZEROES, offset, len_bytes, flags, done, arg);
}

int
thin_client_block_status(struct thin_client_volume *volume, uint64_t offset,
                         uint64_t len_bytes, const char *since,
                         void (*done)(void *arg, int result,
                                      const struct thin_client_extent *extents,
                                      unsigned nr_extents),
                         void *arg)
{
    struct client_request *request;
    int r = check_range(volume, offset, len_bytes);

    if (r == 0 && len_bytes == 0)
        r = thin_fail(&volume->client->error, -THIN_E_INVALID,
                      "the status of no byte is not known");
    if (r == 0 && since && strlen(since) >= CLIENT_VOLUME_NAME)
        r = thin_fail(&volume->client->error, -THIN_E_INVALID,
                      "a snapshot's name of %zu bytes", strlen(since));
    if (r < 0)
        return r;
    request =
        new_data_request(volume, OP_BLOCK_STATUS, offset, len_bytes, 0, NULL, arg, &r);
    if (!request)
        return r;
    request->cb.status = done;
    request->words = since ? strdup(since) : NULL;
    if (since && !request->words) {
        request_free(request);
        return thin_fail_code(&volume->client->error, -ENOMEM, "make a request");
    }
    submit_data_request(request);
    return 0;
}
