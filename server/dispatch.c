#include "server/dispatch.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "server/pools.h"

enum scope {
    SCOPE_ANY,    /* the handler judges by itself */
    SCOPE_SERVER, /* the whole server: its admins only */
    SCOPE_POOL,   /* `name` is POOL */
    SCOPE_VOLUME, /* `name` is POOL/VOLUME */
};

/* body, message, scope, right on it, handler; the messages begin with their `name` */
#define OP_NAMED_TABLE(X)                                                                \
    X(VOLUME_OPEN, VolumeOpen, SCOPE_VOLUME, AUTH_READ, ops_volume_open)                 \
    X(POOL_CREATE, PoolCreate, SCOPE_POOL, AUTH_ADMIN, ops_pool_create)                  \
    X(POOL_IMPORT, PoolImport, SCOPE_POOL, AUTH_ADMIN, ops_pool_import)                  \
    X(POOL_GROW, PoolGrow, SCOPE_POOL, AUTH_ADMIN, ops_pool_grow)                        \
    X(POOL_OPEN, PoolOpen, SCOPE_POOL, AUTH_ADMIN, ops_pool_open)                        \
    X(POOL_CLOSE, PoolClose, SCOPE_POOL, AUTH_ADMIN, ops_pool_close)                     \
    X(POOL_SET, PoolSet, SCOPE_POOL, AUTH_ADMIN, ops_pool_set)                           \
    X(POOL_FORGET, PoolForget, SCOPE_POOL, AUTH_ADMIN, ops_pool_forget)                  \
    X(POOL_DESTROY, PoolDestroy, SCOPE_POOL, AUTH_ADMIN, ops_pool_destroy)               \
    X(POOL_RESERVE_SNAP, PoolReserveSnap, SCOPE_POOL, AUTH_ADMIN, ops_pool_reserve_snap) \
    X(POOL_RELEASE_SNAP, PoolReleaseSnap, SCOPE_POOL, AUTH_ADMIN, ops_pool_release_snap) \
    X(POOL_CHECK, PoolCheck, SCOPE_POOL, AUTH_MANAGE, ops_pool_check)                    \
    X(POOL_DUMP, PoolDump, SCOPE_POOL, AUTH_MANAGE, ops_pool_dump)                       \
    X(POOL_HANDOVER, PoolHandover, SCOPE_POOL, AUTH_ADMIN, ops_pool_handover)            \
    X(VOLUME_MAP, VolumeMap, SCOPE_VOLUME, AUTH_READ, ops_volume_map)                    \
    X(VOLUME_TRIM, VolumeTrim, SCOPE_VOLUME, AUTH_MANAGE, ops_volume_trim)               \
    X(VOLUME_CREATE, VolumeCreate, SCOPE_VOLUME, AUTH_MANAGE, ops_volume_create)         \
    X(VOLUME_DELETE, VolumeDelete, SCOPE_VOLUME, AUTH_MANAGE, ops_volume_delete)         \
    X(VOLUME_RESIZE, VolumeResize, SCOPE_VOLUME, AUTH_MANAGE, ops_volume_resize)         \
    X(VOLUME_RENAME, VolumeRename, SCOPE_VOLUME, AUTH_MANAGE, ops_volume_rename)         \
    X(VOLUME_ROLLBACK, VolumeRollback, SCOPE_VOLUME, AUTH_MANAGE, ops_volume_rollback)   \
    X(VOLUME_SET, VolumeSet, SCOPE_VOLUME, AUTH_MANAGE, ops_volume_set)

#define OP_OTHER_TABLE(X)                                                             \
    X(VOLUME_CLOSE, VolumeClose, SCOPE_ANY, AUTH_NONE, ops_volume_close)              \
    X(POOL_LIST, PoolList, SCOPE_ANY, AUTH_NONE, ops_pool_list)                       \
    X(VOLUME_LIST, VolumeList, SCOPE_ANY, AUTH_NONE, ops_volume_list)                 \
    X(VOLUME_SNAPSHOT, VolumeSnapshot, SCOPE_ANY, AUTH_NONE, ops_volume_snapshot)     \
    X(VOLUME_DELTA, VolumeDelta, SCOPE_ANY, AUTH_NONE, ops_volume_delta)              \
    X(VOLUME_STATS, VolumeStats, SCOPE_ANY, AUTH_NONE, ops_volume_stats)              \
    X(SERVER_STATUS, ServerStatus, SCOPE_ANY, AUTH_NONE, ops_server_status)           \
    X(EVENTS_SUBSCRIBE, EventsSubscribe, SCOPE_ANY, AUTH_NONE, ops_events_subscribe)  \
    X(SERVER_SHUTDOWN, ServerShutdown, SCOPE_SERVER, AUTH_ADMIN, ops_server_shutdown) \
    X(SESSION_LIST, SessionList, SCOPE_SERVER, AUTH_ADMIN, ops_session_list)          \
    X(SESSION_KICK, SessionKick, SCOPE_SERVER, AUTH_ADMIN, ops_session_kick)          \
    X(ACCESS_LIST, AccessList, SCOPE_SERVER, AUTH_ADMIN, ops_access_list)             \
    X(ACCESS_GRANT, AccessGrant, SCOPE_SERVER, AUTH_ADMIN, ops_access_grant)          \
    X(ACCESS_REVOKE, AccessRevoke, SCOPE_SERVER, AUTH_ADMIN, ops_access_revoke)

struct op {
    Thin__Request__BodyCase body;
    enum scope scope;
    enum auth_right right;
    op_handler *run;
};

static const struct op ops[] = {
#define OP_ENTRY(body, message, scope, right, run) \
    {THIN__REQUEST__BODY_##body, scope, right, run},
    OP_NAMED_TABLE(OP_ENTRY) OP_OTHER_TABLE(OP_ENTRY)
#undef OP_ENTRY
};

struct named_body {
    ProtobufCMessage base;
    char *name;
};
#define OP_NAME_FIRST(body, message, scope, right, run)                                  \
    _Static_assert(offsetof(Thin__##message, name) == offsetof(struct named_body, name), \
                   "the name is the first field");
OP_NAMED_TABLE(OP_NAME_FIRST)

const void *
ops_body(const struct request *rq)
{
    return rq->message->hello; /* all members of the union are pointers */
}

void
ops_done(void *arg, int result, const struct thin_error *err)
{
    request_reply_code(arg, result, err);
}

void
ops_fail(struct request *rq, int code, const char *fmt, ...)
{
    char words[THIN_ERROR_TEXT_MAX];
    struct thin_error err;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(words, sizeof(words), fmt, ap);
    va_end(ap);
    thin_fail(&err, code, "%s", words);
    request_reply_code(rq, code, &err);
}

void
ops_reply_text(struct request *rq, const char *text, size_t len)
{
    Thin__Reply reply = THIN__REPLY__INIT;
    Thin__TextReply body = THIN__TEXT_REPLY__INIT;

    reply.body_case = THIN__REPLY__BODY_TEXT_REPLY;
    reply.text_reply = &body;
    request_reply_more(rq, &reply, text, len);
}

struct pool *
ops_find_pool(struct request *rq, const char *name)
{
    struct thin_error err;
    int code = 0;
    struct pool *pool = pools_find_open(rq->server->pools, name, &code, &err);

    if (pool)
        return pool;
    /* Why it is not open may name paths: an administrator finds it in the list. */
    if (code == -THIN_E_BUSY)
        ops_fail(rq, code, "pool %s is not open", name);
    else
        request_reply_code(rq, code, &err);
    return NULL;
}

/* Names checked, rights judged. */
static int
judge(const struct request *rq, const struct op *op, struct op_object *object,
      struct thin_error *err)
{
    const struct named_body *body = ops_body(rq);
    int r;

    memset(object, 0, sizeof(*object));
    switch (op->scope) {
    case SCOPE_POOL:
        r = name_check(body->name, strlen(body->name), err);
        if (r < 0)
            return thin_wrap(err, r, "pool");
        snprintf(object->pool, sizeof(object->pool), "%s", body->name);
        return request_may(rq, body->name, op->right, err);
    case SCOPE_VOLUME:
        r = message_split_name(body->name, object->pool, object->volume, err);
        return r < 0 ? r : request_may(rq, body->name, op->right, err);
    case SCOPE_SERVER:
        if (!auth_is_server_admin(rq->server->auth, &rq->session->peer))
            return thin_fail(err, -THIN_E_DENIED, "%s is no admin of this server",
                             rq->session->peer.identity);
        return 0;
    default:
        return 0;
    }
}

void
dispatch_request(struct request *rq)
{
    struct op_object object;
    struct thin_error err;
    int r;

    for (unsigned i = 0; i < sizeof(ops) / sizeof(ops[0]); i++)
        if (ops[i].body == rq->kind) {
            thin_error_init(&err);
            r = judge(rq, &ops[i], &object, &err);
            if (r < 0)
                request_reply_code(rq, r, &err);
            else
                ops[i].run(rq, &object);
            return;
        }
    ops_fail(rq, -THIN_E_UNSUPPORTED, "this server does not know the request");
}
