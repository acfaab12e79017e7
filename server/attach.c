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

/* One volume that somebody has open. */
struct attach_volume {
    char pool[THIN_NAME_MAX + 1];
    char volume[THIN_NAME_MAX + 1];
    char holder[POOL_HOLDER_MAX]; /* of the writers; empty: none */
    uint64_t session;
    bool shared;
    uint64_t epoch;
    unsigned nr_writers; /* open or opening */
    unsigned nr_opens;   /* attachments and openings that refer to this */
    struct attachment_list attachments;
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
    int result;
    struct thin_error err;
    struct thin_task task;
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
leave_writers(struct attach_volume *v)
{
    if (--v->nr_writers == 0) {
        v->holder[0] = '\0';
        v->session = 0;
        v->shared = false;
    }
}

static void
answer(struct thin_task *task)
{
    struct opening *o = container_of(task, struct opening, task);

    o->opened(o->arg, o->result < 0 ? NULL : o->attachment, o->result, &o->err);
    free(o);
}

static void
finish(struct opening *o, int result)
{
    o->result = result;
    if (result < 0) {
        if (o->writer)
            leave_writers(o->entry);
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
              struct thin_error *err)
{
    bool other = v->nr_writers > 0 && !is_same_holder(v, r);

    if (other && !(v->shared && r->shared) && !r->steal)
        return thin_fail(err, -THIN_E_BUSY, "%s/%s is attached by %s", v->pool, v->volume,
                         v->holder);
    if (v->nr_writers == 0 || other) {
        snprintf(v->holder, sizeof(v->holder), "%s", r->holder);
        v->session = r->session;
        v->shared = r->shared;
    }
    v->nr_writers++;
    return 0;
}

static void
attached(void *arg, int result, const struct thin_error *err)
{
    struct opening *o = arg;

    if (result < 0 && err)
        o->err = *err;
    o->attachment->epoch = o->entry->epoch;
    finish(o, result);
}

/* The epoch rises, committed before the answer, when another one attaches. */
static void
raise_epoch(struct opening *o)
{
    struct attach_volume *v = o->entry;
    struct pool *pool = volume_pool(o->attachment->volume);
    struct volume_info info;
    struct pool_attachment a = {.session = v->session, .shared = v->shared};

    if (!pool || !pool_volume_peek(pool, v->volume, &info)) {
        finish(o, thin_fail(&o->err, -THIN_E_NOT_FOUND, "no such volume: %s/%s", v->pool,
                            v->volume));
        return;
    }
    snprintf(a.holder, sizeof(a.holder), "%s", v->holder);
    if (strcmp(info.attachment.holder, a.holder) == 0 &&
        info.attachment.session == a.session && info.attachment.epoch > 0) {
        v->epoch = info.attachment.epoch;
        o->attachment->epoch = v->epoch;
        finish(o, 0);
        return;
    }
    a.epoch = max_u64(info.attachment.epoch, v->epoch) + 1;
    v->epoch = a.epoch;
    pool_volume_attach(pool, v->volume, &a, (struct pool_done){attached, o});
}

static void
volume_opened(void *arg, struct volume *volume, int result, const struct thin_error *err)
{
    struct opening *o = arg;

    if (result < 0) {
        if (err)
            o->err = *err;
        finish(o, result);
        return;
    }
    o->attachment->volume = volume;
    if (o->attachment->read_only)
        finish(o, 0);
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
    o->attachment->read_only = r->read_only;
    if (r->fall_back_read_only && info.read_only)
        o->attachment->read_only = true;
    if (!o->attachment->read_only) {
        code = become_writer(o->entry, r, &o->err);
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
    TAILQ_REMOVE(&a->entry->attachments, a, link);
    if (!a->read_only)
        leave_writers(a->entry);
    volume_close(a->volume);
    put(table, a->entry);
    free(a);
}

int
attach_check(const struct attachment *a, uint64_t epoch)
{
    return a->read_only               ? -THIN_E_READ_ONLY
           : epoch == a->entry->epoch ? 0
                                      : -THIN_E_STALE;
}

const char *
attach_holder(const struct attach_table *table, const char *pool, const char *volume)
{
    const struct attach_volume *v = find(table, pool, volume);

    return v ? v->holder : "";
}
