/* What backs a volume, extent by extent; and what was asked of it. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "server/attach.h"
#include "server/dispatch.h"
#include "server/pools.h"

#define MAP_EXTENTS 512u /* looked at between two replies */
#define MAP_LINE    64u  /* "OFFSET LENGTH KIND\n": two numbers of 20 digits */

/* ---- map ------------------------------------------------------------------------------- */

/* A handle of its own, for reading: the attachment of others is not touched. */
struct map_job {
    struct request *rq;
    struct volume *volume;
    struct volume_io io;
    uint64_t at, size;
    uint64_t begin; /* of the extent that goes on, up to `at` */
    uint32_t flags; /* its */
    struct volume_extent extents[MAP_EXTENTS];
    size_t len;
    char text[(MAP_EXTENTS + 2) * MAP_LINE];
};

static const char *
kind_name(uint32_t flags)
{
    if (flags & VOLUME_EXTENT_ORIGIN)
        return "origin";
    if (flags & VOLUME_EXTENT_HOLE)
        return "hole";
    if (flags & VOLUME_EXTENT_ZERO)
        return "zero";
    return flags & VOLUME_EXTENT_SHARED ? "shared" : "data";
}

static void
end_extent(struct map_job *m)
{
    if (m->at > m->begin)
        m->len += (size_t)snprintf(m->text + m->len, sizeof(m->text) - m->len,
                                   "%" PRIu64 " %" PRIu64 " %s\n", m->begin,
                                   m->at - m->begin, kind_name(m->flags));
    m->begin = m->at;
}

static void
end_map(struct map_job *m, int result)
{
    volume_close(m->volume);
    request_reply_code(m->rq, result, NULL); /* frees m */
}

static void map_step(struct request *rq);

static void
looked(struct volume_io *io, int result)
{
    struct map_job *m = container_of(io, struct map_job, io);

    m->len = 0;
    for (unsigned i = 0; i < io->ret_nr_extents && result == 0; i++) {
        if (strcmp(kind_name(m->extents[i].flags), kind_name(m->flags)) != 0)
            end_extent(m);
        m->flags = m->extents[i].flags;
        m->at += m->extents[i].len;
    }
    if (result < 0) {
        end_map(m, result);
        return;
    }
    if (m->at >= m->size)
        end_extent(m);
    if (m->len)
        ops_reply_text(m->rq, m->text, m->len);
    if (m->at >= m->size || io->ret_nr_extents == 0)
        end_map(m, 0);
    else
        request_wait_room(m->rq, map_step);
}

static void
map_step(struct request *rq)
{
    struct map_job *m = rq->work;

    if (!request_is_wanted(rq)) {
        end_map(m, -THIN_E_CANCELLED);
        return;
    }
    if (rq->server->stopping) {
        end_map(m, -THIN_E_SHUTDOWN);
        return;
    }
    m->io.op = VOLUME_STATUS;
    m->io.offset = m->at;
    m->io.len = m->size - m->at;
    m->io.extents = m->extents;
    m->io.max_extents = MAP_EXTENTS;
    m->io.done = looked;
    volume_submit(m->volume, &m->io);
}

static void
map_opened(void *arg, struct volume *volume, int result, const struct thin_error *err)
{
    struct request *rq = arg;
    struct map_job *m = rq->work;

    if (result < 0) {
        request_reply_code(rq, result, err);
        return;
    }
    m->volume = volume;
    m->size = volume_size(volume);
    if (m->at >= m->size)
        end_map(m, 0);
    else
        map_step(rq);
}

void
ops_volume_map(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeMap *body = ops_body(rq);
    struct pool *pool = ops_find_pool(rq, object->pool);
    struct volume_info info;
    struct map_job *m;

    if (!pool)
        return;
    if (!pool_volume_peek(pool, object->volume, &info)) {
        ops_fail(rq, -THIN_E_NOT_FOUND, "no such volume: %s", body->name);
        return;
    }
    m = calloc(1, sizeof(*m));
    if (!m) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    m->rq = rq;
    m->at = m->begin = body->after;
    rq->work = m;
    pool_volume_open(pool, object->volume, true, map_opened, rq);
}

/* ---- stats ------------------------------------------------------------------------------- */

static int
put_stats(struct request *rq, const char *pool, const char *volume,
          const struct volume_stats *s)
{
    char text[1024];
    int len = snprintf(text, sizeof(text),
                       "%s/%s reads=%" PRIu64 " read_bytes=%" PRIu64 " writes=%" PRIu64
                       " written_bytes=%" PRIu64 " flushes=%" PRIu64 " discards=%" PRIu64
                       " discarded_bytes=%" PRIu64 " zeroes=%" PRIu64
                       " zeroed_bytes=%" PRIu64 " errors=%" PRIu64 "\n",
                       pool, volume, s->reads, s->read_bytes, s->writes, s->written_bytes,
                       s->flushes, s->discards, s->discarded_bytes, s->zeroes,
                       s->zeroed_bytes, s->errors);

    if (len < 0 || (size_t)len >= sizeof(text))
        return -THIN_E_LIMIT;
    ops_reply_text(rq, text, (size_t)len);
    return 0;
}

/* All that the asker may see: a page of names a turn, the next when there is room. */
struct stats_list {
    struct request *rq;
    struct thin_task task;
    char pool[THIN_NAME_MAX + 1];
    char after[THIN_NAME_MAX + 1];
};

static bool
next_pool(const struct request *rq, struct stats_list *l)
{
    const struct server_pool *sp = NULL;

    while ((sp = pools_next(rq->server->pools, sp)))
        if (sp->state == POOLS_OPEN && strcmp(sp->name, l->pool) > 0) {
            snprintf(l->pool, sizeof(l->pool), "%s", sp->name);
            l->after[0] = '\0';
            return true;
        }
    return false;
}

static void
stats_page(struct request *rq)
{
    struct stats_list *l = rq->work;
    struct volume_info info;
    struct volume_stats stats;
    char name[2 * THIN_NAME_MAX + 2];
    int r = 0;

    if (!request_is_wanted(rq)) {
        request_reply_code(rq, -THIN_E_CANCELLED, NULL);
        return;
    }
    for (unsigned i = 0; i < OPS_PAGE_MAX && r == 0; i++) {
        struct pool *pool =
            l->pool[0] ? pools_find_open(rq->server->pools, l->pool, &r, NULL) : NULL;

        r = 0;
        if (!pool || !pool_volume_next(pool, l->after[0] ? l->after : NULL, &info)) {
            if (!next_pool(rq, l)) {
                request_reply_code(rq, 0, NULL);
                return;
            }
            continue;
        }
        snprintf(l->after, sizeof(l->after), "%s", info.name);
        snprintf(name, sizeof(name), "%s/%s", l->pool, info.name);
        if (request_may(rq, name, AUTH_READ, NULL) == 0 &&
            pool_volume_stats(pool, info.name, &stats))
            r = put_stats(rq, l->pool, info.name, &stats);
    }
    if (r < 0)
        request_reply_code(rq, r, NULL);
    else
        loop_defer(rq->server->thin_loop, &l->task);
}

static void
stats_turn(struct thin_task *task)
{
    request_wait_room(container_of(task, struct stats_list, task)->rq, stats_page);
}

static void
stats_of_one(struct request *rq, const char *name)
{
    char pool_name[THIN_NAME_MAX + 1], volume[THIN_NAME_MAX + 1];
    struct volume_stats stats;
    struct thin_error err;
    struct pool *pool;
    int r = message_split_name(name, pool_name, volume, &err);

    if (r == 0)
        r = request_may(rq, name, AUTH_READ, &err);
    if (r < 0) {
        request_reply_code(rq, r, &err);
        return;
    }
    pool = ops_find_pool(rq, pool_name);
    if (!pool)
        return;
    if (!pool_volume_stats(pool, volume, &stats)) {
        ops_fail(rq, -THIN_E_NOT_FOUND, "no such volume: %s", name);
        return;
    }
    r = put_stats(rq, pool_name, volume, &stats);
    request_reply_code(rq, r, NULL);
}

void
ops_volume_stats(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeStats *m = ops_body(rq);
    struct stats_list *l;

    (void)object;
    if (m->name[0]) {
        stats_of_one(rq, m->name);
        return;
    }
    l = calloc(1, sizeof(*l));
    if (!l) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    l->rq = rq;
    l->task.run = stats_turn;
    rq->work = l;
    stats_page(rq);
}
