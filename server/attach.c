#include "server/attach.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "server/pools.h"

TAILQ_HEAD(attachment_list, attachment);
TAILQ_HEAD(opening_list, opening);

/*
 * One volume that somebody has open. A *generation* is the time of one holder (or of
 * several that share): when another one takes the volume away, all attachments and
 * openings of the generation before are fenced.
 */
struct attach_volume {
    char pool[THIN_NAME_MAX + 1];
    char volume[THIN_NAME_MAX + 1];
    char holder[POOL_HOLDER_MAX]; /* of the writers; empty: none */
    uint64_t session;
    bool shared;
    bool locked;
    unsigned generation;
    uint64_t epoch;
    bool epoch_is_durable; /* of this generation: who joins need not wait */
    bool raising;          /* the epoch is on its way to the disk */
    unsigned nr_writers;   /* of this generation, open or opening */
    unsigned nr_opens;     /* attachments, openings and locks that refer to this */
    struct attachment_list attachments;
    struct opening_list waiting; /* for `raising`, or for the last generation's changes */
    TAILQ_ENTRY(attach_volume) link;
};

TAILQ_HEAD(attach_volume_list, attach_volume);

struct attach_table {
    struct server *server;
    struct attach_volume_list volumes;
};

struct opening {
    struct attach_table *table;
    struct attach_volume *entry;
    struct attachment *attachment;
    void (*opened)(void *arg, struct attachment *attachment, int result,
                   const struct thin_error *err);
    void *arg;
    bool writer;
    bool may_fall_back; /* to read-only */
    bool is_open;       /* a lazy one: only its epoch is raised */
    int result;
    struct thin_error err;
    struct thin_task task;
    TAILQ_ENTRY(opening) link;
};

int
attach_create(struct server *server, struct attach_table **ret)
{
    struct attach_table *table = calloc(1, sizeof(*table));

    if (!table)
        return -ENOMEM;
    table->server = server;
    TAILQ_INIT(&table->volumes);
    *ret = table;
    return 0;
}

void
attach_destroy(struct attach_table *table)
{
    if (!table)
        return;
    THIN_ASSERT(TAILQ_EMPTY(&table->volumes));
    free(table);
}

static struct attach_volume *
find(const struct attach_table *table, const char *pool, const char *volume)
{
    struct attach_volume *v;

    TAILQ_FOREACH(v, &table->volumes, link)
        if (strcmp(v->volume, volume) == 0 && strcmp(v->pool, pool) == 0)
            return v;
    return NULL;
}

static struct attach_volume *
find_or_add(struct attach_table *table, const char *pool, const char *volume)
{
    struct attach_volume *v = find(table, pool, volume);

    if (v)
        return v;
    v = calloc(1, sizeof(*v));
    if (!v)
        return NULL;
    snprintf(v->pool, sizeof(v->pool), "%s", pool);
    snprintf(v->volume, sizeof(v->volume), "%s", volume);
    TAILQ_INIT(&v->attachments);
    TAILQ_INIT(&v->waiting);
    TAILQ_INSERT_TAIL(&table->volumes, v, link);
    return v;
}

static void
put(struct attach_table *table, struct attach_volume *v)
{
    if (--v->nr_opens > 0)
        return;
    TAILQ_REMOVE(&table->volumes, v, link);
    free(v);
}

static void
leave_writers(struct attach_volume *v, const struct attachment *a)
{
    if (a->generation != v->generation || --v->nr_writers > 0)
        return;
    v->holder[0] = '\0';
    v->session = 0;
    v->shared = false;
    v->epoch_is_durable = false;
}

void
attach_drain(struct attachment *a)
{
    if (a && a->volume)
        volume_drain(a->volume);
}

/* A new generation begins: whoever writes now is fenced. */
static void
fence(struct attach_volume *v)
{
    struct attachment *a;
    unsigned old = v->generation++;

    v->nr_writers = 0;
    v->holder[0] = '\0';
    v->session = 0;
    v->shared = false;
    v->epoch_is_durable = false;
    TAILQ_FOREACH(a, &v->attachments, link) {
        /* Who comes next waits for what is in flight: not for room as well. */
        if (a->read_only || a->generation != old)
            continue;
        attach_drain(a);
        if (a->fenced)
            a->fenced(a->fenced_arg);
    }
}

static bool
is_fenced(const struct attachment *a)
{
    return !a->read_only && a->generation != a->entry->generation;
}

static void
drop_attachment(struct attach_table *table, struct attachment *a)
{
    struct attach_volume *v = a->entry;

    TAILQ_REMOVE(&v->attachments, a, link);
    if (!a->read_only)
        leave_writers(v, a);
    volume_close(a->volume);
    free(a);
    put(table, v);
}

/* The epoch of a lazy attachment is raised, or is not. */
static void
answer_waiters(struct opening *o)
{
    struct attachment *a = o->attachment;
    struct attach_waiter *w;
    int result = o->result;

    a->raising = false;
    if (result == 0)
        a->lazy = false;
    free(o);
    while ((w = STAILQ_FIRST(&a->waiters))) {
        bool last = STAILQ_NEXT(w, link) == NULL;

        STAILQ_REMOVE_HEAD(&a->waiters, link);
        w->done(w, result);
        if (last) /* the attachment may be gone */
            return;
    }
}

static void
answer(struct thin_task *task)
{
    struct opening *o = container_of(task, struct opening, task);

    if (o->is_open) {
        answer_waiters(o);
        return;
    }
    if (o->result == 0 && is_fenced(o->attachment)) {
        o->result = thin_fail(&o->err, -THIN_E_STALE, "another client took %s/%s",
                              o->entry->pool, o->entry->volume);
        drop_attachment(o->table, o->attachment);
    }
    o->opened(o->arg, o->result < 0 ? NULL : o->attachment, o->result, &o->err);
    free(o);
}

static void
finish(struct opening *o, int result)
{
    o->result = result;
    if (o->is_open) {
        /* The attachment stays what it is. */
    } else if (result < 0) {
        if (o->writer)
            leave_writers(o->entry, o->attachment);
        if (o->attachment && o->attachment->volume)
            volume_close(o->attachment->volume);
        free(o->attachment);
        if (o->entry)
            put(o->table, o->entry);
    } else {
        TAILQ_INSERT_TAIL(&o->entry->attachments, o->attachment, link);
    }
    o->task.run = answer;
    loop_defer(o->table->server->thin_loop, &o->task);
}

static bool
is_same_holder(const struct attach_volume *v, const struct attach_request *r)
{
    return strcmp(v->holder, r->holder) == 0 && v->session == r->session;
}

/* Takes a writer's place, or says who has it. */
static int
become_writer(struct attach_volume *v, const struct attach_request *r,
              struct attachment *a, struct thin_error *err)
{
    bool other = v->nr_writers > 0 && !is_same_holder(v, r);
    bool joins = other && v->shared && r->shared;

    if (other && !joins && !r->steal)
        return thin_fail(err, -THIN_E_BUSY, "%s/%s is attached by %s", v->pool, v->volume,
                         v->holder);
    if (other && !joins)
        fence(v);
    if (v->nr_writers == 0) {
        snprintf(v->holder, sizeof(v->holder), "%s", r->holder);
        v->session = r->session;
        v->shared = r->shared;
    }
    v->nr_writers++;
    a->generation = v->generation;
    return 0;
}

static bool
older_changes_in_flight(const struct attach_volume *v)
{
    const struct attachment *a;

    TAILQ_FOREACH(a, &v->attachments, link)
        if (a->in_flight > 0 && is_fenced(a))
            return true;
    return false;
}

static void raise_epoch(struct opening *o);
static void volume_opened(void *arg, struct volume *volume, int result,
                          const struct thin_error *err);

/* A pool that takes no changes still serves those who can live with that. */
static bool
falls_back(struct opening *o, int result)
{
    struct pool *pool;
    int code;

    if (result != -THIN_E_READ_ONLY || !o->may_fall_back || !o->writer)
        return false;
    pool = pools_find_open(o->table->server->pools, o->entry->pool, &code, NULL);
    if (!pool)
        return false;
    leave_writers(o->entry, o->attachment);
    o->writer = false;
    o->attachment->read_only = true;
    if (o->attachment->volume)
        volume_close(o->attachment->volume);
    o->attachment->volume = NULL;
    pool_volume_open(pool, o->entry->volume, true, volume_opened, o);
    return true;
}

static void
wake_waiting(struct attach_volume *v)
{
    struct opening *o, *last = TAILQ_LAST(&v->waiting, opening_list);
    bool end = last == NULL;

    /* One that must wait again queues behind `last`. The caller holds the entry. */
    while (!end && (o = TAILQ_FIRST(&v->waiting))) {
        end = o == last;
        TAILQ_REMOVE(&v->waiting, o, link);
        raise_epoch(o);
    }
}

static void
attached(void *arg, int result, const struct thin_error *err)
{
    struct opening *o = arg;
    struct attach_volume *v = o->entry;
    struct attach_table *table = o->table;

    if (result < 0 && err)
        o->err = *err;
    v->raising = false;
    if (result == 0 && !is_fenced(o->attachment))
        v->epoch_is_durable = true;
    o->attachment->epoch = v->epoch;
    v->nr_opens++;
    if (!falls_back(o, result))
        finish(o, result);
    wake_waiting(v);
    put(table, v);
}

/* The epoch rises, committed before the answer, when another one attaches. */
static void
raise_epoch(struct opening *o)
{
    struct attach_volume *v = o->entry;
    struct pool *pool = volume_pool(o->attachment->volume);
    struct volume_info info;
    struct pool_attachment a = {.session = v->session, .shared = v->shared};

    if (is_fenced(o->attachment)) {
        finish(o, thin_fail(&o->err, -THIN_E_STALE, "another client took %s/%s", v->pool,
                            v->volume));
        return;
    }
    if (v->raising || older_changes_in_flight(v)) {
        TAILQ_INSERT_TAIL(&v->waiting, o, link);
        return;
    }
    if (!pool || !pool_volume_peek(pool, v->volume, &info)) {
        finish(o, thin_fail(&o->err, -THIN_E_NOT_FOUND, "no such volume: %s/%s", v->pool,
                            v->volume));
        return;
    }
    snprintf(a.holder, sizeof(a.holder), "%s", v->holder);
    if (!v->epoch_is_durable && strcmp(info.attachment.holder, a.holder) == 0 &&
        info.attachment.session == a.session && info.attachment.epoch > 0 &&
        info.attachment.epoch >= v->epoch) {
        v->epoch = info.attachment.epoch;
        v->epoch_is_durable = true;
    }
    if (v->epoch_is_durable) {
        o->attachment->epoch = v->epoch;
        finish(o, 0);
        return;
    }
    a.epoch = max_u64(info.attachment.epoch, v->epoch) + 1;
    v->epoch = a.epoch;
    v->raising = true;
    pool_volume_attach(pool, v->volume, &a, (struct pool_done){attached, o});
}

/* Nothing is raised yet, but what will never take a change is not called writable. */
static void
open_lazily(struct opening *o)
{
    struct pool *pool = volume_pool(o->attachment->volume);
    struct pool_info info;

    if (pool)
        pool_get_info(pool, &info);
    if (pool && (info.mode == POOL_READ_ONLY || info.mode == POOL_FAIL) &&
        falls_back(o, -THIN_E_READ_ONLY))
        return;
    finish(o, 0);
}

static void
volume_opened(void *arg, struct volume *volume, int result, const struct thin_error *err)
{
    struct opening *o = arg;

    if (result < 0) {
        if (falls_back(o, result))
            return;
        if (err)
            o->err = *err;
        finish(o, result);
        return;
    }
    o->attachment->volume = volume;
    if (o->attachment->read_only)
        finish(o, 0);
    else if (o->attachment->lazy)
        open_lazily(o);
    else
        raise_epoch(o);
}

void
attach_open(struct attach_table *table, const struct attach_request *r,
            void (*opened)(void *arg, struct attachment *attachment, int result,
                           const struct thin_error *err),
            void *arg)
{
    struct opening *o = calloc(1, sizeof(*o));
    struct volume_info info;
    struct pool *pool;
    int code = 0;

    if (!o) {
        opened(arg, NULL, -ENOMEM, NULL);
        return;
    }
    o->table = table;
    o->opened = opened;
    o->arg = arg;
    o->may_fall_back = r->fall_back_read_only;
    thin_error_init(&o->err);
    pool = pools_find_open(table->server->pools, r->pool, &code, &o->err);
    if (!pool) {
        finish(o, code);
        return;
    }
    if (!pool_volume_peek(pool, r->volume, &info)) {
        finish(o, thin_fail(&o->err, -THIN_E_NOT_FOUND, "no such volume: %s/%s", r->pool,
                            r->volume));
        return;
    }
    o->attachment = calloc(1, sizeof(*o->attachment));
    o->entry = o->attachment ? find_or_add(table, r->pool, r->volume) : NULL;
    if (!o->entry) {
        finish(o, -ENOMEM);
        return;
    }
    o->entry->nr_opens++;
    o->attachment->entry = o->entry;
    if (o->entry->locked) {
        finish(o, thin_fail(&o->err, -THIN_E_BUSY, "%s/%s is being changed", r->pool,
                            r->volume));
        return;
    }
    o->attachment->read_only = r->read_only;
    o->attachment->lazy = r->lazy;
    STAILQ_INIT(&o->attachment->waiters);
    if (r->fall_back_read_only && info.read_only)
        o->attachment->read_only = true;
    if (!o->attachment->read_only) {
        code = become_writer(o->entry, r, o->attachment, &o->err);
        if (code == -THIN_E_BUSY && r->fall_back_read_only) {
            o->attachment->read_only = true;
            thin_error_init(&o->err);
        } else if (code < 0) {
            finish(o, code);
            return;
        } else {
            o->writer = true;
        }
    }
    pool_volume_open(pool, r->volume, o->attachment->read_only, volume_opened, o);
}

void
attach_close(struct attach_table *table, struct attachment *a)
{
    THIN_ASSERT(a->in_flight == 0 && !a->raising);
    drop_attachment(table, a);
}

int
attach_check(const struct attachment *a, uint64_t epoch)
{
    if (a->read_only)
        return -THIN_E_READ_ONLY;
    if (is_fenced(a) || (epoch != ATTACH_OWN_EPOCH && epoch != a->entry->epoch))
        return -THIN_E_STALE;
    return 0;
}

int
attach_begin(struct attachment *a, uint64_t epoch)
{
    int r = attach_check(a, epoch);

    if (r < 0)
        return r;
    if (a->lazy && !a->entry->epoch_is_durable)
        return -THIN_E_WOULD_BLOCK;
    a->lazy = false; /* another attachment of the holder may have raised it */
    a->in_flight++;
    return 0;
}

void
attach_raise(struct attach_table *table, struct attachment *a, struct attach_waiter *w)
{
    struct opening *o = a->raising ? NULL : calloc(1, sizeof(*o));

    if (!o && !a->raising) {
        w->done(w, -ENOMEM);
        return;
    }
    STAILQ_INSERT_TAIL(&a->waiters, w, link);
    if (a->raising)
        return;
    a->raising = true;
    o->table = table;
    o->entry = a->entry;
    o->attachment = a;
    o->is_open = true;
    thin_error_init(&o->err);
    raise_epoch(o);
}

void
attach_end(struct attachment *a)
{
    if (--a->in_flight == 0 && is_fenced(a))
        wake_waiting(a->entry);
}

static int
lock(struct attach_table *table, const char *pool, const char *volume,
     struct thin_error *err)
{
    struct attach_volume *v = find_or_add(table, pool, volume);
    struct attachment *a;
    unsigned nr = 0;

    if (!v)
        return thin_fail_code(err, -ENOMEM, "rename %s/%s", pool, volume);
    TAILQ_FOREACH(a, &v->attachments, link)
        nr++;
    if (v->locked || nr != v->nr_opens)
        return thin_fail(err, -THIN_E_BUSY, "%s/%s is being %s", pool, volume,
                         v->locked ? "changed" : "opened");
    v->locked = true;
    v->nr_opens++;
    return 0;
}

static void
unlock(struct attach_table *table, struct attach_volume *v)
{
    v->locked = false;
    put(table, v);
}

int
attach_rename_begin(struct attach_table *table, const char *pool, const char *volume,
                    const char *new_name, struct thin_error *err)
{
    int r = lock(table, pool, volume, err);

    if (r < 0)
        return r;
    r = lock(table, pool, new_name, err);
    if (r < 0)
        unlock(table, find(table, pool, volume));
    return r;
}

void
attach_rename_end(struct attach_table *table, const char *pool, const char *volume,
                  const char *new_name, bool renamed)
{
    struct attach_volume *v = find(table, pool, volume);

    unlock(table, find(table, pool, new_name));
    if (renamed)
        snprintf(v->volume, sizeof(v->volume), "%s", new_name);
    unlock(table, v);
}

void
attach_pool_gone(struct attach_table *table, const char *pool)
{
    struct attach_volume *v;

    TAILQ_FOREACH(v, &table->volumes, link)
        if (strcmp(v->pool, pool) == 0)
            fence(v);
}

const char *
attach_pool_name(const struct attachment *a)
{
    return a->entry->pool;
}

const char *
attach_holder(const struct attach_table *table, const char *pool, const char *volume)
{
    const struct attach_volume *v = find(table, pool, volume);

    return v ? v->holder : "";
}
