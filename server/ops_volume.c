/* Volumes: opening and closing them, and their life. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "server/backing.h"
#include "server/conn.h"
#include "server/dispatch.h"
#include "server/events.h"
#include "server/pools.h"

/* ---- open and close -------------------------------------------------------------------- */

static void
on_notify(void *arg)
{
    struct session_volume *v = arg;
    uint64_t size = volume_size(v->attachment->volume);

    if (size == v->told_size)
        return;
    v->told_size = size;
    events_tell_holder(v, "resized", "the volume has a new size", size);
}

static void
on_fenced(void *arg)
{
    events_tell_holder(arg, "fenced", "another client has taken the volume", 0);
}

static void
reply_opened(struct request *rq, struct session_volume *v)
{
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__VolumeOpened body = THIN__VOLUME_OPENED__INIT;
    struct volume *volume = v->attachment->volume;
    struct pool *pool = volume_pool(volume);
    struct pool_marks marks = {0};

    if (pool)
        pool_get_marks(pool, &marks);
    v->told_size = volume_size(volume);
    body.handle = v->handle;
    body.size = v->told_size;
    body.block_size = volume_block_size(volume);
    body.epoch = v->attachment->epoch;
    body.read_only = v->attachment->read_only;
    body.incarnation = marks.incarnation;
    body.stable_mark = marks.stable;
    reply.body_case = THIN__REPLY__BODY_VOLUME_OPENED;
    reply.volume_opened = &body;
    request_reply(rq, &reply);
}

static void
opened(void *arg, struct attachment *attachment, int result, const struct thin_error *err)
{
    struct request *rq = arg;
    struct session_volume *v = rq->work;

    rq->work = NULL; /* the session's */
    if (result < 0) {
        bool may_know =
            request_may(rq, v->name, AUTH_MANAGE, NULL) == 0 || result != -THIN_E_BUSY;
        char name[sizeof(v->name)];

        snprintf(name, sizeof(name), "%s", v->name);
        session_volume_drop(rq->session, v);
        if (may_know)
            request_reply_code(rq, result, err);
        else
            ops_fail(rq, result, "%s is in use", name);
        return;
    }
    v->attachment = attachment;
    attachment->fenced = on_fenced;
    attachment->fenced_arg = v;
    volume_set_notify(attachment->volume, on_notify, v);
    log_debug("volume opened session=%llu identity=%s volume=%s mode=%s",
              (unsigned long long)rq->session->id, rq->session->peer.identity, v->name,
              attachment->read_only ? "ro" : "rw");
    reply_opened(rq, v);
}

/* True if somebody else may have written since the attachment `epoch` was ours. */
static bool
has_changed_hands(const struct session *s, const struct volume_info *info, uint64_t epoch)
{
    const struct pool_attachment *a = &info->attachment;

    if (epoch == 0 || a->epoch == epoch)
        return false;
    return a->epoch < epoch || a->session != s->id ||
           strcmp(a->holder, s->peer.identity) != 0;
}

void
ops_volume_open(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeOpen *m = ops_body(rq);
    enum auth_right right = m->steal       ? AUTH_MANAGE
                            : m->read_only ? AUTH_READ
                                           : AUTH_WRITE;
    struct attach_request request = {0};
    struct session_volume *v;
    struct volume_info info;
    struct thin_error err;
    struct pool *pool;
    int r = request_may(rq, m->name, right, &err);

    if (r < 0) {
        request_reply_code(rq, r, &err);
        return;
    }
    pool = ops_find_pool(rq, object->pool);
    if (!pool)
        return;
    if (!pool_volume_peek(pool, object->volume, &info)) {
        ops_fail(rq, -THIN_E_NOT_FOUND, "no such volume: %s", m->name);
        return;
    }
    if (!m->read_only && has_changed_hands(rq->session, &info, m->known_epoch)) {
        ops_fail(rq, -THIN_E_STALE, "%s was attached elsewhere meanwhile", m->name);
        return;
    }
    v = session_volume_new(rq->session);
    if (!v) {
        ops_fail(rq, -THIN_E_LIMIT, "a session has at most %u open volumes",
                 PROTO_VOLUMES_MAX);
        return;
    }
    snprintf(v->name, sizeof(v->name), "%s", m->name);
    request.pool = object->pool;
    request.volume = object->volume;
    request.holder = rq->session->peer.identity;
    request.session = rq->session->id;
    request.read_only = m->read_only;
    request.shared = m->shared;
    request.steal = m->steal;
    rq->work = v;
    attach_open(rq->server->attachments, &request, opened, rq);
}

void
ops_volume_quiet(struct session_volume *v)
{
    struct request *rq = v->closer;

    session_volume_drop(v->session, v);
    if (rq)
        request_reply_code(rq, 0, NULL);
}

void
ops_volume_close(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeClose *m = ops_body(rq);
    struct session_volume *v = session_volume(rq->session, m->handle);

    (void)object;
    if (!v) {
        ops_fail(rq, -THIN_E_NOT_FOUND, "no open volume has the handle %u", m->handle);
        return;
    }
    v->closing = true;
    v->closer = rq;
    if (v->in_flight == 0)
        ops_volume_quiet(v);
}

/* ---- life ------------------------------------------------------------------------------ */

static bool
size_is_good(struct request *rq, const char *what, uint64_t size, bool may_be_zero)
{
    if (size % 512 == 0 && (size > 0 || may_be_zero))
        return true;
    ops_fail(rq, -THIN_E_INVALID, "%s of %llu bytes is not a multiple of 512%s", what,
             (unsigned long long)size, may_be_zero ? "" : " above 0");
    return false;
}

/* Origins are devices of the server: its admins name them, others by its leave. */
static int
may_use_origin(const struct request *rq, const char *pool, const char *origin,
               struct thin_error *err)
{
    int r = backing_check(origin, err);

    if (r < 0)
        return r;
    return rq->session->peer.local
               ? request_may(rq, pool, AUTH_ADMIN, err)
               : backing_check_remote(&rq->server->config, origin, err);
}

void
ops_volume_create(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeCreate *m = ops_body(rq);
    struct volume_spec spec = {.name = object->volume,
                               .size = m->size,
                               .reserve = m->reserve,
                               .quota = m->quota};
    struct thin_error err;
    struct pool *pool;
    int r = 0;

    if (!size_is_good(rq, "a size", m->size, false) ||
        !size_is_good(rq, "a reservation", m->reserve, true) ||
        !size_is_good(rq, "a quota", m->quota, true))
        return;
    if (m->origin[0]) {
        spec.origin = m->origin;
        r = may_use_origin(rq, object->pool, m->origin, &err);
    }
    if (r == 0 && strlen(m->origin) >= POOL_ORIGIN_MAX)
        r = thin_fail(&err, -THIN_E_LIMIT, "an origin of more than %u bytes",
                      POOL_ORIGIN_MAX - 1);
    if (r < 0) {
        request_reply_code(rq, r, &err);
        return;
    }
    pool = ops_find_pool(rq, object->pool);
    if (pool)
        pool_volume_create(pool, &spec, (struct pool_done){ops_done, rq});
}

/* One pair: names and rights. The first one says which pool it is about. */
static int
check_pair(const struct request *rq, const Thin__SnapshotPair *pair, char pool[128],
           char origin[128], struct thin_error *err)
{
    char own_pool[128], full[2 * THIN_NAME_MAX + 2];
    int r = message_split_name(pair->origin, own_pool, origin, err);

    if (r == 0)
        r = name_check(pair->name, strlen(pair->name), err);
    if (r == 0 && pool[0] && strcmp(pool, own_pool) != 0)
        r = thin_fail(err, -THIN_E_INVALID, "snapshots of one group are of one pool");
    if (r < 0)
        return r;
    snprintf(pool, 128, "%s", own_pool);
    r = request_may(rq, pair->origin, AUTH_MANAGE, err);
    snprintf(full, sizeof(full), "%s/%s", own_pool, pair->name);
    return r < 0 ? r : request_may(rq, full, AUTH_MANAGE, err);
}

void
ops_volume_snapshot(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeSnapshot *m = ops_body(rq);
    AUTO_FREE char(*origins)[128] = calloc(POOL_GROUP_MAX, sizeof(*origins));
    const char *from[POOL_GROUP_MAX], *to[POOL_GROUP_MAX];
    char pool_name[128] = "";
    struct thin_error err;
    struct pool *pool;
    int r = 0;

    (void)object;
    if (!origins) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    if (m->n_snapshots == 0 || m->n_snapshots > POOL_GROUP_MAX) {
        ops_fail(rq, -THIN_E_LIMIT, "%zu snapshots at once, 1 to %u are possible",
                 m->n_snapshots, POOL_GROUP_MAX);
        return;
    }
    for (size_t i = 0; r == 0 && i < m->n_snapshots; i++) {
        r = check_pair(rq, m->snapshots[i], pool_name, origins[i], &err);
        from[i] = origins[i];
        to[i] = m->snapshots[i]->name;
    }
    if (r < 0) {
        request_reply_code(rq, r, &err);
        return;
    }
    pool = ops_find_pool(rq, pool_name);
    if (pool)
        pool_volume_snapshot(pool, from, to, (uint32_t)m->n_snapshots,
                             (struct pool_done){ops_done, rq});
}

static void
reply_freed(struct request *rq, uint64_t freed)
{
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__DeleteReply body = THIN__DELETE_REPLY__INIT;

    body.freed = freed;
    reply.body_case = THIN__REPLY__BODY_VOLUME_DELETE;
    reply.volume_delete = &body;
    request_reply(rq, &reply);
}

static void
would_free(void *arg, int result, const struct thin_error *err,
           const struct volume_info *infos, uint32_t nr)
{
    if (result < 0)
        request_reply_code(arg, result, err);
    else
        reply_freed(arg, nr ? infos[0].exclusive : 0);
}

static void
deleted(void *arg, int result, const struct thin_error *err)
{
    if (result < 0)
        request_reply_code(arg, result, err);
    else
        reply_freed(arg, 0); /* the space comes back in the background */
}

void
ops_volume_delete(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeDelete *m = ops_body(rq);
    struct pool *pool = ops_find_pool(rq, object->pool);

    if (!pool)
        return;
    if (m->dry_run)
        pool_volume_show(pool, object->volume, true, would_free, rq);
    else
        pool_volume_delete(pool, object->volume, (struct pool_done){deleted, rq});
}

void
ops_volume_resize(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeResize *m = ops_body(rq);
    struct pool *pool;

    if (!size_is_good(rq, "a size", m->size, false))
        return;
    pool = ops_find_pool(rq, object->pool);
    if (pool)
        pool_volume_resize(pool, object->volume, m->size, m->allow_shrink,
                           (struct pool_done){ops_done, rq});
}

static void
renamed(void *arg, int result, const struct thin_error *err)
{
    struct request *rq = arg;
    struct op_object *object = rq->work;
    const Thin__VolumeRename *m = ops_body(rq);

    attach_rename_end(rq->server->attachments, object->pool, object->volume, m->new_name,
                      result == 0);
    request_reply_code(rq, result, err);
}

void
ops_volume_rename(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeRename *m = ops_body(rq);
    char full[2 * THIN_NAME_MAX + 2];
    struct pool *pool = ops_find_pool(rq, object->pool);
    struct op_object *copy;
    struct thin_error err;
    int r;

    if (!pool)
        return;
    r = name_check(m->new_name, strlen(m->new_name), &err);
    if (r == 0) {
        snprintf(full, sizeof(full), "%s/%s", object->pool, m->new_name);
        r = request_may(rq, full, AUTH_MANAGE, &err);
    }
    copy = malloc(sizeof(*copy));
    if (r == 0 && !copy)
        r = thin_fail_code(&err, -ENOMEM, "rename");
    if (r == 0)
        r = attach_rename_begin(rq->server->attachments, object->pool, object->volume,
                                m->new_name, &err);
    if (r < 0) {
        free(copy);
        request_reply_code(rq, r, &err);
        return;
    }
    *copy = *object;
    rq->work = copy;
    pool_volume_rename(pool, object->volume, m->new_name,
                       (struct pool_done){renamed, rq});
}

void
ops_volume_rollback(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeRollback *m = ops_body(rq);
    char full[2 * THIN_NAME_MAX + 2];
    struct thin_error err;
    struct pool *pool;
    int r = name_check(m->snapshot, strlen(m->snapshot), &err);

    if (r == 0) {
        snprintf(full, sizeof(full), "%s/%s", object->pool, m->snapshot);
        r = request_may(rq, full, AUTH_READ, &err);
    }
    if (r < 0) {
        request_reply_code(rq, r, &err);
        return;
    }
    pool = ops_find_pool(rq, object->pool);
    if (pool)
        pool_volume_rollback(pool, object->volume, m->snapshot,
                             (struct pool_done){ops_done, rq});
}

/* ---- set ------------------------------------------------------------------------------- */

/* All values are checked before the first is set; then one after the other. */
struct setting {
    struct op_object object;
    unsigned nr, at;
    struct {
        enum volume_key key;
        uint64_t value;
    } list[8];
};

static int
parse_yes(const char *key, const char *value, uint64_t *ret, struct thin_error *err)
{
    if (strcmp(value, "yes") == 0 || strcmp(value, "on") == 0 ||
        strcmp(value, "true") == 0)
        *ret = 1;
    else if (strcmp(value, "no") == 0 || strcmp(value, "off") == 0 ||
             strcmp(value, "false") == 0)
        *ret = 0;
    else
        return thin_fail(err, -THIN_E_INVALID, "%s is yes or no, not %.64s", key, value);
    return 0;
}

static int
parse_amount(const char *key, const char *value, uint64_t *ret, struct thin_error *err)
{
    int r;

    if (strcmp(value, "0") == 0 || strcmp(value, "off") == 0) {
        *ret = 0;
        return 0;
    }
    r = size_parse(value, ret, err);
    return r < 0 ? thin_wrap(err, r, "%s", key) : 0;
}

static int
parse_setting(struct setting *s, const Thin__KeyValue *kv, struct thin_error *err)
{
    enum volume_key key;
    uint64_t value;
    int r;

    if (s->nr == sizeof(s->list) / sizeof(s->list[0]))
        return thin_fail(err, -THIN_E_LIMIT, "too many values at once");
    if (strcmp(kv->key, "read_only") == 0)
        key = VOLUME_READ_ONLY;
    else if (strcmp(kv->key, "protected") == 0)
        key = VOLUME_PROTECTED;
    else if (strcmp(kv->key, "reserve") == 0)
        key = VOLUME_RESERVE;
    else if (strcmp(kv->key, "quota") == 0)
        key = VOLUME_QUOTA;
    else
        return thin_fail(
            err, -THIN_E_INVALID,
            "a volume has no key %.64s; it has read_only, protected, reserve and quota",
            kv->key);
    r = key == VOLUME_READ_ONLY || key == VOLUME_PROTECTED
            ? parse_yes(kv->key, kv->value, &value, err)
            : parse_amount(kv->key, kv->value, &value, err);
    if (r < 0)
        return r;
    s->list[s->nr].key = key;
    s->list[s->nr++].value = value;
    return 0;
}

static void
set_next(void *arg, int result, const struct thin_error *err)
{
    struct request *rq = arg;
    struct setting *s = rq->work;
    struct pool *pool;

    if (result < 0 || s->at == s->nr) {
        request_reply_code(rq, result, err);
        return;
    }
    pool = ops_find_pool(rq, s->object.pool);
    if (!pool)
        return;
    s->at++;
    pool_volume_set(pool, s->object.volume, s->list[s->at - 1].key,
                    s->list[s->at - 1].value, (struct pool_done){set_next, rq});
}

void
ops_volume_set(struct request *rq, const struct op_object *object)
{
    const Thin__VolumeSet *m = ops_body(rq);
    struct setting *s = calloc(1, sizeof(*s));
    struct thin_error err;
    int r = 0;

    if (!s) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    rq->work = s;
    s->object = *object;
    if (m->n_values == 0)
        r = thin_fail(&err, -THIN_E_INVALID, "nothing to set");
    for (size_t i = 0; r == 0 && i < m->n_values; i++)
        r = parse_setting(s, m->values[i], &err);
    set_next(rq, r, &err);
}
