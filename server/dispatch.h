/*
 * Handlers of management requests: one table from message body to handler, the object
 * it is about and the right that it needs. A handler finds names checked and the right
 * given; it ends the request with exactly one reply, now or later. Main loop only.
 */
#ifndef THIN_SERVER_DISPATCH_H
#define THIN_SERVER_DISPATCH_H

#include "server/request.h"

/* What the request's `name` says. */
struct op_object {
    char pool[THIN_NAME_MAX + 1];
    char volume[THIN_NAME_MAX + 1]; /* empty: the pool */
};

#define OPS_PAGE_MAX \
    64u /* entries in one reply of a list: well below PROTO_MESSAGE_MAX */

typedef void op_handler(struct request *rq, const struct op_object *object);

/* ops_volume.c */
op_handler ops_volume_open, ops_volume_close, ops_volume_create, ops_volume_snapshot,
    ops_volume_delete, ops_volume_resize, ops_volume_rename, ops_volume_rollback,
    ops_volume_set;
/* ops_list.c */
op_handler ops_volume_list, ops_pool_list;
/* ops_pool.c */
op_handler ops_pool_create, ops_pool_import, ops_pool_grow, ops_pool_open, ops_pool_close,
    ops_pool_set, ops_pool_forget, ops_pool_destroy, ops_pool_reserve_snap,
    ops_pool_release_snap;
/* ops_online.c */
op_handler ops_pool_check, ops_pool_dump, ops_volume_delta;
/* ops_map.c */
op_handler ops_volume_map, ops_volume_stats;
/* ops_trim.c */
op_handler ops_volume_trim;
/* ops_handover.c */
op_handler ops_pool_handover;
/* ops_access.c */
op_handler ops_access_list, ops_access_grant, ops_access_revoke;
/* ops_server.c */
op_handler ops_server_status, ops_server_shutdown, ops_session_list, ops_session_kick,
    ops_events_subscribe;

/* Shared by the handlers. `arg` is the request: for pool_done and pools_done. */
void ops_done(void *arg, int result, const struct thin_error *err);
/* Words of our own, and the reply. */
void ops_fail(struct request *rq, int code, const char *fmt, ...) PRINTF_LIKE(3, 4);
/* One piece of a text; more follows (or the end: request_reply_code). */
void ops_reply_text(struct request *rq, const char *text, size_t len);
/* The open pool, or NULL when the request has been answered with why not. */
struct pool *ops_find_pool(struct request *rq, const char *name);
/* The body that is set. */
const void *ops_body(const struct request *rq);

#endif
