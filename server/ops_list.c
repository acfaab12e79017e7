/* Lists of pools and volumes: what the asker may see, page after page. */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/ondisk/block.h"
#include "server/attach.h"
#include "server/conn.h"
#include "server/dispatch.h"
#include "server/pools.h"

#define NAME_BYTES  (2 * THIN_NAME_MAX + 2)
#define POOL_A_PAGE 16u /* their words are long */

static char *
words(const char *text)
{
    return (char *)(uintptr_t)text;
}

static enum auth_right
right_on(const struct request *rq, const char *object)
{
    return auth_right_on(rq->server->auth, &rq->session->peer, object);
}

/* ---- pools ------------------------------------------------------------------------------- */

struct pool_page {
    Thin__PoolInfo pools[POOL_A_PAGE], *list[POOL_A_PAGE];
    struct pool_info infos[POOL_A_PAGE];
    char auto_extend[POOL_A_PAGE][96];
    /* Of the one pool that was asked for. */
    struct pool_step_info step_infos[POOL_STEPS_MAX];
    Thin__StepInfo steps[POOL_STEPS_MAX], *step_list[POOL_STEPS_MAX];
    uint64_t step_bounds[POOL_STEP_BUCKETS];
    unsigned nr;
};

static void
fill_steps(Thin__PoolInfo *p, struct pool_page *page, const struct pool *pool)
{
    unsigned nr = pool_get_steps(pool, page->step_infos, POOL_STEPS_MAX);

    for (unsigned i = 0; i < nr; i++) {
        struct pool_step_info *info = &page->step_infos[i];
        Thin__StepInfo *s = page->step_list[i] = &page->steps[i];

        thin__step_info__init(s);
        s->name = info->name;
        s->count = info->count;
        s->longest_ns = info->longest_ns;
        s->locks = info->locks;
        s->n_counts = POOL_STEP_BUCKETS;
        s->counts = info->buckets;
    }
    memcpy(page->step_bounds, pool_step_bounds_ns, sizeof(page->step_bounds));
    p->n_step_bounds_ns = POOL_STEP_BUCKETS;
    p->step_bounds_ns = page->step_bounds;
    p->n_steps = nr;
    p->steps = page->step_list;
}

static void
fill_open(Thin__PoolInfo *p, const struct pool_info *info)
{
    static const char *const discards[] = {"off", "unmap", "passdown"};

    p->mode = words(pool_mode_name(info->mode));
    p->data_size = info->data_size;
    p->data_used = info->data_used;
    p->metadata_size = info->metadata_size;
    p->metadata_used = info->metadata_used;
    p->metadata_reserve = info->metadata_reserve;
    p->transaction_id = info->transaction_id;
    p->needs_check = info->needs_check;
    p->why = words(info->why);
    p->what_to_do = words(info->what_to_do);
    p->block_size = info->block_size;
    p->nr_volumes = info->nr_volumes;
    p->virtual_size = info->virtual_bytes;
    p->data_reserved = info->data_reserved;
    p->data_free = info->data_blocks_free * info->block_size;
    p->data_lasts_s = info->data_lasts_s;
    p->incarnation = info->incarnation;
    p->snapshots_left = info->time_left;
    p->held_root = info->held_root;
    p->commits = info->commits;
    p->cache_hits = info->cache_hits;
    p->cache_misses = info->cache_misses;
    p->longest_step_ns = info->longest_step_ns;
    p->longest_step = words(info->longest_step);
    p->locks_high_water = info->locks_high_water;
    p->discards = words(discards[info->config.discards]);
    p->commit_max_dirty = info->config.commit_max_dirty;
    p->metadata_cache =
        (uint64_t)info->config.metadata_cache_blocks * METADATA_BLOCK_SIZE;
}

static const char *
what_to_do(const struct server_pool *sp)
{
    switch (sp->state) {
    case POOLS_CLOSED:
        return "open it with: thincli pool open";
    case POOLS_FAILED:
        switch (sp->why.code) {
        case -ENOENT:
        case -ENODEV:
        case -ENXIO:
            return "bring the device back, then open the pool again";
        case -THIN_E_CHECKSUM:
        case -THIN_E_BAD_BLOCK:
        case -THIN_E_NOT_THIN:
        case -THIN_E_NEEDS_CHECK:
            return "look at the metadata with thinmeta check, mend it with thinmeta "
                   "repair, then open the pool again";
        default:
            return "remove the reason, then open the pool again";
        }
    default:
        return "";
    }
}

static void
fill_pool(struct pool_page *page, const struct server_pool *sp, bool admin)
{
    unsigned i = page->nr++;
    Thin__PoolInfo *p = page->list[i] = &page->pools[i];
    const struct pool_auto_extend *e = &sp->config.extend_data;

    thin__pool_info__init(p);
    p->name = words(sp->name);
    p->state = words(pools_state_name(sp->state));
    p->on_full = words(sp->config.on_full == POOL_QUEUE ? "queue" : "error");
    p->commit_interval_ms = sp->config.commit_interval_ms;
    p->zeroing = sp->config.zeroing;
    p->commit_max_dirty = sp->config.commit_max_dirty;
    p->no_space_timeout_ms = sp->config.no_space_timeout_ms;
    p->extend_metadata = sp->config.extend_metadata;
    p->overcommit_percent = sp->config.overcommit_percent;
    p->data_lasts_s = -1;
    p->auto_extend = page->auto_extend[i];
    snprintf(p->auto_extend, sizeof(page->auto_extend[i]), "off");
    if (e->percent)
        snprintf(p->auto_extend, sizeof(page->auto_extend[i]),
                 "%" PRIu32 ":%" PRIu64 ":%" PRIu64, e->percent, e->step_bytes,
                 e->limit_bytes);
    if (admin) {
        p->data_path = words(sp->data_path);
        p->metadata_path = words(sp->metadata_path);
    }
    if (sp->state == POOLS_OPEN) {
        pool_get_info(sp->pool, &page->infos[i]);
        fill_open(p, &page->infos[i]);
        return;
    }
    if (sp->state == POOLS_FAILED) {
        p->mode = words(pool_mode_name(POOL_FAIL));
        p->needs_check = sp->why.code == -THIN_E_NEEDS_CHECK;
        /* The words may name paths. */
        p->why =
            words(admin ? thin_error_text(&sp->why, -THIN_E_FAILED)
                        : thin_strerror(sp->why.code ? sp->why.code : -THIN_E_FAILED));
    }
    p->what_to_do = words(what_to_do(sp));
}

/* A page goes out; the last one is the reply. */
static void
send_pools(struct request *rq, struct pool_page *page, bool last)
{
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__PoolListReply body = THIN__POOL_LIST_REPLY__INIT;

    body.n_pools = page->nr;
    body.pools = page->list;
    reply.body_case = THIN__REPLY__BODY_POOL_LIST;
    reply.pool_list = &body;
    page->nr = 0;
    if (last)
        request_reply(rq, &reply);
    else
        request_reply_more(rq, &reply, NULL, 0);
}

/* At most POOLS_MAX pools, all from memory: in one go. */
void
ops_pool_list(struct request *rq, const struct op_object *object)
{
    const Thin__PoolList *m = ops_body(rq);
    AUTO_FREE struct pool_page *page = malloc(sizeof(*page));
    const struct server_pool *sp = NULL;

    (void)object;
    if (!page) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    page->nr = 0;
    while ((sp = pools_next(rq->server->pools, sp))) {
        enum auth_right right = right_on(rq, sp->name);

        if (right < AUTH_READ || (m->name[0] && strcmp(m->name, sp->name) != 0))
            continue;
        if (page->nr == POOL_A_PAGE)
            send_pools(rq, page, false);
        fill_pool(page, sp, right == AUTH_ADMIN);
        if (m->name[0] && sp->state == POOLS_OPEN)
            fill_steps(&page->pools[page->nr - 1], page, sp->pool);
    }
    if (m->name[0] && page->nr == 0)
        ops_fail(rq, -THIN_E_NOT_FOUND, "no such pool: %.*s", THIN_NAME_MAX, m->name);
    else
        send_pools(rq, page, true);
}

/* ---- volumes ------------------------------------------------------------------------------- */

/*
 * One list on its way: pool after pool, a page of each at a time, and the next one when
 * there is room for it.
 */
struct volume_list {
    char pool[THIN_NAME_MAX + 1];  /* being listed */
    char after[THIN_NAME_MAX + 1]; /* the last volume of it that was looked at */
    bool one_pool;                 /* only this one */
    bool with_exclusive;
    bool whole; /* the page just listed was full: there may be more of the pool */
    uint32_t left;

    unsigned nr;
    Thin__VolumeInfo volumes[OPS_PAGE_MAX], *list[OPS_PAGE_MAX];
    char names[OPS_PAGE_MAX][NAME_BYTES];
    char parents[OPS_PAGE_MAX][NAME_BYTES];
};

/* POOL/VOLUME. Both names are checked ones: they fit. */
static void
put_name(char ret_name[NAME_BYTES], const char *pool, const char *volume)
{
    char *p = stpncpy(ret_name, pool, THIN_NAME_MAX);

    *p++ = '/';
    p = stpncpy(p, volume, THIN_NAME_MAX);
    *p = '\0';
}

static void
fill_volume(const struct request *rq, struct volume_list *l,
            const struct volume_info *info, enum auth_right right)
{
    unsigned i = l->nr++;
    Thin__VolumeInfo *v = l->list[i] = &l->volumes[i];
    const char *holder = attach_holder(rq->server->attachments, l->pool, info->name);

    thin__volume_info__init(v);
    v->name = l->names[i];
    v->dev_id = info->dev_id;
    v->size = info->size;
    v->mapped = info->mapped;
    v->exclusive = l->with_exclusive ? info->exclusive : 0;
    v->has_exclusive = l->with_exclusive;
    put_name(l->parents[i], l->pool, info->parent);
    if (info->parent[0] && right_on(rq, l->parents[i]) >= AUTH_READ)
        v->parent = l->parents[i];
    v->created = info->created;
    v->read_only = info->read_only || info->origin_changed;
    v->origin_changed = info->origin_changed;
    v->attached = holder[0] != '\0';
    if (right >= AUTH_MANAGE || strcmp(holder, rq->session->peer.identity) == 0)
        v->holder = words(holder);
    v->size_unknown = info->size_unknown;
    v->is_protected = info->is_protected;
    v->damaged = info->damaged;
    v->reserve = info->reserve;
    v->quota = info->quota;
    if (right >= AUTH_MANAGE)
        v->origin = words(info->origin);
}

static void
fill_volumes(struct request *rq, struct volume_list *l, const struct volume_info *infos,
             uint32_t nr)
{
    l->nr = 0;
    for (uint32_t i = 0; i < nr && l->left > 0; i++) {
        enum auth_right right;

        if (infos[i].deleting)
            continue;
        put_name(l->names[l->nr], l->pool, infos[i].name);
        right = right_on(rq, l->names[l->nr]);
        if (right < AUTH_READ)
            continue;
        fill_volume(rq, l, &infos[i], right);
        l->left--;
    }
}

static void
send_volumes(struct request *rq, bool last)
{
    struct volume_list *l = rq->work;
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__VolumeListReply body = THIN__VOLUME_LIST_REPLY__INIT;

    body.n_volumes = l->nr;
    body.volumes = l->list;
    reply.body_case = THIN__REPLY__BODY_VOLUME_LIST;
    reply.volume_list = &body;
    l->nr = 0;
    if (last)
        request_reply(rq, &reply);
    else
        request_reply_more(rq, &reply, NULL, 0);
}

static void list_next(struct request *rq);

/* The first open pool behind `l->pool`; true if there is one. */
static bool
next_pool(const struct request *rq, struct volume_list *l)
{
    const struct server_pool *sp = NULL;

    while (!l->one_pool && (sp = pools_next(rq->server->pools, sp)))
        if (sp->state == POOLS_OPEN && strcmp(sp->name, l->pool) > 0) {
            snprintf(l->pool, sizeof(l->pool), "%s", sp->name);
            l->after[0] = '\0';
            return true;
        }
    return false;
}

static void
listed(void *arg, int result, const struct thin_error *err,
       const struct volume_info *infos, uint32_t nr)
{
    struct request *rq = arg;
    struct volume_list *l = rq->work;

    if (result < 0 && l->one_pool) {
        request_reply_code(rq, result, err);
        return;
    }
    if (result < 0) /* it was closed meanwhile, say: the others are listed */
        nr = 0;
    fill_volumes(rq, l, infos, nr);
    l->whole = nr == OPS_PAGE_MAX;
    if (nr)
        snprintf(l->after, sizeof(l->after), "%s", infos[nr - 1].name);
    if (l->left == 0 || (!l->whole && !next_pool(rq, l))) {
        send_volumes(rq, true);
        return;
    }
    if (l->nr)
        send_volumes(rq, false);
    request_wait_room(rq, list_next);
}

static void
list_next(struct request *rq)
{
    struct volume_list *l = rq->work;
    struct pool *pool;
    int code = 0;

    if (!request_is_wanted(rq)) {
        request_reply_code(rq, -THIN_E_CANCELLED, NULL);
        return;
    }
    for (;;) {
        pool = pools_find_open(rq->server->pools, l->pool, &code, NULL);
        if (pool)
            break;
        if (!next_pool(rq, l)) {
            l->nr = 0;
            send_volumes(rq, true);
            return;
        }
    }
    pool_volume_list(pool, l->after[0] ? l->after : NULL, OPS_PAGE_MAX, l->with_exclusive,
                     listed, rq);
}

/* Whether the pool may be spoken of: a right on it, or a rule about its volumes. */
static bool
may_see_any(const struct request *rq, const char *pool)
{
    return right_on(rq, pool) >= AUTH_READ ||
           auth_may_know_pool(rq->server->auth, &rq->session->peer, pool);
}

static void
shown(void *arg, int result, const struct thin_error *err,
      const struct volume_info *infos, uint32_t nr)
{
    struct request *rq = arg;

    if (result < 0) {
        request_reply_code(rq, result, err);
        return;
    }
    fill_volumes(rq, rq->work, infos, nr);
    send_volumes(rq, true);
}

static void
show_one(struct request *rq, struct volume_list *l, const char *name)
{
    char volume[THIN_NAME_MAX + 1];
    struct thin_error err;
    struct pool *pool;
    int r = message_split_name(name, l->pool, volume, &err);

    if (r == 0)
        r = request_may(rq, name, AUTH_READ, &err);
    if (r < 0) {
        request_reply_code(rq, r, &err);
        return;
    }
    pool = ops_find_pool(rq, l->pool);
    if (pool)
        pool_volume_show(pool, volume, l->with_exclusive, shown, rq);
}

void
ops_volume_list(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeList *m = ops_body(rq);
    struct volume_list *l = calloc(1, sizeof(*l));
    struct thin_error err;
    int r = 0;

    (void)object;
    if (!l) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    rq->work = l;
    l->with_exclusive = m->with_exclusive;
    l->left = m->max ? m->max : UINT32_MAX;
    if (m->name[0]) {
        show_one(rq, l, m->name);
        return;
    }
    if (m->after[0])
        r = message_split_name(m->after, l->pool, l->after, &err);
    if (r == 0 && m->pool[0]) {
        r = name_check(m->pool, strlen(m->pool), &err);
        if (r == 0 && m->after[0] && strcmp(m->pool, l->pool) != 0)
            r = thin_fail(&err, -THIN_E_INVALID, "the page begins in another pool");
        l->one_pool = true;
    }
    if (r < 0) {
        request_reply_code(rq, r, &err);
        return;
    }
    if (l->one_pool)
        snprintf(l->pool, sizeof(l->pool), "%s", m->pool);
    if (l->one_pool && !may_see_any(rq, l->pool))
        ops_fail(rq, -THIN_E_NOT_FOUND, "no such pool: %s", l->pool);
    else if (!l->one_pool || ops_find_pool(rq, l->pool))
        list_next(rq);
}
