/* See origin.h for what an origin is, and its states. */
#include <inttypes.h>
#include <stdlib.h>

#include "core/pool/origin.h"

#define ORIGIN_RETRY_NS NS_PER_SEC /* after a failure, before it is tried again */

enum origin_state { ORIGIN_OPENING, ORIGIN_OPEN, ORIGIN_FAILED };

struct origin {
    struct pool *pool;
    enum origin_state state;
    unsigned refs; /* volumes, and an opening that is on its way */
    struct device *dev;
    char identity[POOL_ORIGIN_IDENTITY_MAX];
    uint64_t retry_ns;
    struct volume_frag_list frags; /* that wait to read */
    TAILQ_HEAD(, origin_wait) waits;
    struct thin_task told_task;
    bool told_queued;
    LIST_ENTRY(origin) link;
    char uri[POOL_ORIGIN_MAX];
};

bool
origins_idle(const struct pool *pool)
{
    const struct origin *origin;

    LIST_FOREACH(origin, &pool->origins, link)
        if (origin->told_queued)
            return false;
    return pool->nr_origin_openings == 0;
}

unsigned
origins_closing(const struct pool *pool)
{
    return pool->nr_origin_closings;
}

/* ---- closing ------------------------------------------------------------------------------- */

static void
device_closed(void *arg)
{
    struct pool *pool = arg;

    pool->nr_origin_closings--;
    pool_origin_closed(pool);
}

static void
close_device(struct origin *origin)
{
    if (!origin->dev)
        return;
    origin->pool->nr_origin_closings++;
    device_close(take(origin->dev), device_closed, origin->pool);
}

void
origin_put(struct origin *origin)
{
    if (!origin || --origin->refs > 0)
        return;
    THIN_ASSERT(TAILQ_EMPTY(&origin->frags) && TAILQ_EMPTY(&origin->waits));
    close_device(origin);
    loop_defer_cancel(origin->pool->loop, &origin->told_task);
    LIST_REMOVE(origin, link);
    free(origin);
}

/* ---- opening ---------------------------------------------------------------------------------- */

static void
told_run(struct thin_task *task)
{
    struct origin *origin = container_of(task, struct origin, told_task);
    struct origin_wait *wait;
    struct volume_frag *frag;

    origin->told_queued = false;
    while ((frag = TAILQ_FIRST(&origin->frags))) {
        TAILQ_REMOVE(&origin->frags, frag, link);
        frag_run_later(frag, frag->resume);
    }
    origin->refs++;
    while ((wait = TAILQ_FIRST(&origin->waits))) {
        TAILQ_REMOVE(&origin->waits, wait, link);
        wait->done(wait);
    }
    origin_put(origin);
}

static void
settled(struct origin *origin)
{
    if (TAILQ_EMPTY(&origin->frags) && TAILQ_EMPTY(&origin->waits))
        return;
    origin->told_queued = true;
    loop_defer(origin->pool->loop, &origin->told_task);
}

static void
failed(struct origin *origin, const char *words)
{
    struct pool *pool = origin->pool;
    char text[THIN_ERROR_TEXT_MAX];

    close_device(origin);
    origin->state = ORIGIN_FAILED;
    origin->retry_ns = loop_now_ns(pool->loop) + ORIGIN_RETRY_NS;
    log_warning("an external origin cannot be read: %s pool=%s origin=\"%s\"", words,
                pool->name, origin->uri);
    snprintf(text, sizeof(text), "an external origin cannot be read: %s", words);
    pool_tell(pool, "origin", text);
}

static void
opened(void *arg, struct device *dev, const char *identity, int result,
       const struct thin_error *err)
{
    struct origin *origin = arg;
    struct pool *pool = origin->pool;

    pool->nr_origin_openings--;
    if (result < 0) {
        failed(origin, thin_error_text(err, result));
    } else {
        origin->dev = dev;
        origin->state = ORIGIN_OPEN;
        snprintf(origin->identity, sizeof(origin->identity), "%s", identity);
    }
    settled(origin);
    origin_put(origin);
    pool_check_idle(pool);
}

static void
open_start(struct origin *origin)
{
    struct pool *pool = origin->pool;

    origin->state = ORIGIN_OPENING;
    origin->refs++;
    pool->nr_origin_openings++;
    pool->origin_open(pool->origin_open_arg, pool->loop, origin->uri, opened, origin);
}

struct origin *
origin_get(struct pool *pool, const char *uri)
{
    struct origin *origin;

    LIST_FOREACH(origin, &pool->origins, link)
        if (strcmp(origin->uri, uri) == 0) {
            origin->refs++;
            if (origin->state == ORIGIN_FAILED && pool->origin_open)
                open_start(origin);
            return origin;
        }
    origin = calloc(1, sizeof(*origin));
    if (!origin)
        return NULL;
    origin->pool = pool;
    origin->refs = 1;
    snprintf(origin->uri, sizeof(origin->uri), "%s", uri);
    TAILQ_INIT(&origin->frags);
    TAILQ_INIT(&origin->waits);
    origin->told_task.run = told_run;
    LIST_INSERT_HEAD(&pool->origins, origin, link);
    if (pool->origin_open)
        open_start(origin);
    else
        failed(origin, "external origins are not opened here");
    return origin;
}

bool
origin_wait(struct origin *origin, struct origin_wait *wait)
{
    if (origin->state != ORIGIN_OPENING && !origin->told_queued)
        return false;
    TAILQ_INSERT_TAIL(&origin->waits, wait, link);
    return true;
}

/* What was recorded of a block device before more was known of one tells its size alone. */
static bool
is_as_recorded(const char *now, const char *recorded)
{
    size_t len = strlen(recorded);

    return strcmp(now, recorded) == 0 ||
           (strncmp(recorded, "block size=", 11) == 0 && !strchr(recorded + 11, ' ') &&
            strncmp(now, recorded, len) == 0 && now[len] == ' ');
}

bool
origin_changed(const struct volume_core *core)
{
    const struct origin *origin = core->origin;

    return origin && origin->state == ORIGIN_OPEN &&
           !is_as_recorded(origin->identity, core->origin_identity);
}

/* ---- who was seen with a changed one ------------------------------------------------------------- */

bool
origin_noted_changed(const struct pool *pool, uint32_t dev_id)
{
    for (unsigned i = 0; i < pool->nr_changed_origins; i++)
        if (pool->changed_origin_ids[i] == dev_id)
            return true;
    return false;
}

void
origin_note_gone(struct pool *pool, uint32_t dev_id)
{
    for (unsigned i = 0; i < pool->nr_changed_origins; i++)
        if (pool->changed_origin_ids[i] == dev_id) {
            pool->changed_origin_ids[i] =
                pool->changed_origin_ids[--pool->nr_changed_origins];
            return;
        }
}

void
origin_note(struct volume_core *core)
{
    struct pool *pool = core->pool;
    char words[THIN_ERROR_TEXT_MAX];

    if (!origin_changed(core)) {
        origin_note_gone(pool, core->dev_id);
        return;
    }
    if (pool->nr_changed_origins == POOL_CHANGED_ORIGINS_MAX ||
        origin_noted_changed(pool, core->dev_id))
        return;
    pool->changed_origin_ids[pool->nr_changed_origins++] = core->dev_id;
    snprintf(
        words, sizeof(words),
        "the external origin of volume %s is not what it was when the volume was made: "
        "the volume can only be opened read-only (it is %s, was %s)",
        core->name, core->origin->identity, core->origin_identity);
    log_warning("%s pool=%s origin=\"%s\"", words, pool->name, core->origin->uri);
    pool_tell(pool, "origin-changed", words);
}

/* ---- reading ------------------------------------------------------------------------------------ */

static void
read_ended(struct device_io *dio, int result)
{
    struct volume_frag *frag = container_of(dio, struct volume_frag, dio);
    struct origin *origin = frag->core->origin;

    pool_data_end(frag->pool, false, 0);
    /* Final for that handle, or nobody answers: the next one who reads opens it anew, and
       learns soon whether that can be done. */
    if (result < 0 && origin->state == ORIGIN_OPEN &&
        (origin->dev->lost || result == -THIN_E_TIMED_OUT ||
         result == -THIN_E_DISCONNECTED))
        failed(origin, thin_strerror(result));
    frag->device_done(frag, result < 0 ? -EIO : 0);
}

static void
cannot_read(struct volume_frag *frag)
{
    frag->device_done(frag, -EIO);
}

static void
cannot_write(struct volume_frag *frag)
{
    frag->device_done(frag, -THIN_E_READ_ONLY);
}

static void
read_start(struct volume_frag *frag)
{
    struct origin *origin = frag->core->origin;

    if (!frag_alive(frag))
        return;
    if (origin->state == ORIGIN_FAILED && frag->pool->origin_open &&
        loop_now_ns(frag->pool->loop) >= origin->retry_ns)
        open_start(origin);
    /* What it holds now must not come into the volume. */
    if (frag->kind != FRAG_READ && origin_changed(frag->core)) {
        frag_run_later(frag, cannot_write);
        return;
    }
    if (origin->state == ORIGIN_OPENING) {
        frag->resume = read_start;
        TAILQ_INSERT_TAIL(&origin->frags, frag, link);
        return;
    }
    if (origin->state == ORIGIN_FAILED ||
        origin->dev->size < frag->dio.offset + frag->dio.len) {
        /* Also a changed one that has become too short. */
        frag_run_later(frag, cannot_read);
        return;
    }
    frag->dio.done = read_ended;
    pool_data_begin(frag->pool);
    device_submit(origin->dev, &frag->dio);
}

void
origin_read(struct volume_frag *frag, uint64_t offset, uint64_t len, struct iovec *iov,
            unsigned nr_iov, void (*done)(struct volume_frag *frag, int result))
{
    frag->device_done = done;
    frag->in_place = false;
    frag->dio.op = DEVICE_READ;
    frag->dio.flags = 0;
    frag->dio.offset = offset;
    frag->dio.len = len;
    frag->dio.iov = iov;
    frag->dio.nr_iov = nr_iov;
    read_start(frag);
}

/* ---- looking at one ------------------------------------------------------------------------------- */

struct probe {
    struct pool *pool;
    void (*done)(void *arg, int result, const struct thin_error *err,
                 const char *identity, uint64_t size);
    void *arg;
};

static void
probed(void *arg, struct device *dev, const char *identity, int result,
       const struct thin_error *err)
{
    struct probe *probe = arg;
    struct pool *pool = probe->pool;
    uint64_t size = dev ? dev->size : 0;

    if (dev) {
        pool->nr_origin_closings++;
        device_close(dev, device_closed, pool);
    }
    pool->nr_origin_openings--;
    probe->done(probe->arg, result, err, identity, size);
    free(probe);
    pool_check_idle(pool);
}

void
origin_probe(struct pool *pool, const char *uri,
             void (*done)(void *arg, int result, const struct thin_error *err,
                          const char *identity, uint64_t size),
             void *arg)
{
    struct probe *probe = calloc(1, sizeof(*probe));
    struct thin_error err;

    thin_error_init(&err);
    if (!probe) {
        done(arg, thin_fail_code(&err, -ENOMEM, "open the origin"), &err, NULL, 0);
        return;
    }
    probe->pool = pool;
    probe->done = done;
    probe->arg = arg;
    pool->nr_origin_openings++;
    pool->origin_open(pool->origin_open_arg, pool->loop, uri, probed, probe);
}
