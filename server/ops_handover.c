/*
 * Giving a pool to the kernel: it is closed, and the answer is a shell script that makes
 * device-mapper devices of it and of its volumes (tables: FORMAT.md section 17).
 *
 *   list the volumes, page by page ─► close ─► send the script
 */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "server/attach.h"
#include "server/backup.h"
#include "server/dispatch.h"
#include "server/pools.h"

#define SCRIPT_MAX   (16u << 20) /* bytes: some hundred thousand volumes */
#define SCRIPT_PIECE (128u << 10)
#define DM_NAME_MAX  127u /* bytes of a device-mapper name */

struct handover {
    struct request *rq;
    char pool[THIN_NAME_MAX + 1];
    char after[THIN_NAME_MAX + 1];
    bool force;
    char *script;
    size_t len, room, sent;
    int failed;
};

static void PRINTF_LIKE(2, 3) put(struct handover *h, const char *fmt, ...)
{
    va_list ap;
    int len;

    for (;;) {
        size_t room = h->room - h->len, wanted;
        char *grown;

        if (h->failed)
            return;
        va_start(ap, fmt);
        len = vsnprintf(h->script ? h->script + h->len : NULL, room, fmt, ap);
        va_end(ap);
        if (len < 0) {
            h->failed = -THIN_E_INVALID;
            return;
        }
        if ((size_t)len < room) {
            h->len += (size_t)len;
            return;
        }
        wanted = max_u64(2 * h->room, h->len + (size_t)len + 1);
        grown = wanted <= SCRIPT_MAX ? realloc(h->script, wanted) : NULL;
        if (!grown) {
            h->failed = wanted <= SCRIPT_MAX ? -ENOMEM : -THIN_E_LIMIT;
            return;
        }
        h->script = grown;
        h->room = wanted;
    }
}

/* VAR='path', and a loop device where the path is a file. */
static void
put_device(struct handover *h, const char *var, const char *path, bool read_only)
{
    put(h, "%s='", var);
    for (const char *p = path; *p; p++)
        put(h, *p == '\'' ? "'\\''" : "%c", *p);
    put(h, "'\n[ -b \"$%s\" ] || %s=$(losetup %s--find --show \"$%s\")\n", var, var,
        read_only ? "--read-only " : "", var);
}

static void
put_pool(struct handover *h, const struct server_pool *sp)
{
    struct pool_info info;
    char features[96] = "";
    unsigned nr = 0;
    size_t len = 0;

    pool_get_info(sp->pool, &info);
#define FEATURE(wanted, word)                                                      \
    if (wanted) {                                                                  \
        len += (size_t)snprintf(features + len, sizeof(features) - len, " " word); \
        nr++;                                                                      \
    }
    FEATURE(!info.config.zeroing, "skip_block_zeroing")
    FEATURE(info.config.discards == POOL_DISCARD_OFF, "ignore_discard")
    FEATURE(info.config.discards == POOL_DISCARD_UNMAP, "no_discard_passdown")
    FEATURE(info.config.on_full == POOL_ERROR, "error_if_no_space")
#undef FEATURE
    put(h,
        "#!/bin/sh -e\n"
        "# Pool %s is closed here. Run this as root where its devices are, and\n"
        "# `dmsetup remove` all of it (and losetup -d) before thinsrv opens it again.\n",
        h->pool);
    put_device(h, "META", sp->metadata_path, false);
    put_device(h, "DATA", sp->data_path, false);
    put(h, "dmsetup create %s --table \"0 %" PRIu64 " thin-pool $META $DATA %u 0",
        h->pool, info.data_size / SECTOR_SIZE, info.block_size / SECTOR_SIZE);
    if (nr)
        put(h, " %u%s", nr, features);
    put(h, "\"\n");
}

static void
put_volume(struct handover *h, const struct volume_info *v)
{
    const char *origin = "";

    if (v->deleting)
        return;
    put(h, "# %s/%s: %" PRIu64 " bytes\n", h->pool, v->name, v->size);
    if (v->size < SECTOR_SIZE) {
        put(h, "# it has no size: nothing to activate\n");
        return;
    }
    if (strstr(v->origin, "://")) {
        put(h, "# its external origin is no device that the kernel knows\n");
        return;
    }
    if (v->origin[0]) {
        put_device(h, "ORIGIN", v->origin, true);
        origin = " $ORIGIN";
    }
    put(h, "dmsetup create %s", v->read_only ? "--readonly " : "");
    if (strlen(h->pool) + 1 + strlen(v->name) <= DM_NAME_MAX)
        put(h, "%s-%s", h->pool, v->name);
    else
        put(h, "%.100s-thin-%u", h->pool, v->dev_id);
    put(h, " --table \"0 %" PRIu64 " thin /dev/mapper/%s %u%s\"\n", v->size / SECTOR_SIZE,
        h->pool, v->dev_id, origin);
}

/* ---- steps ------------------------------------------------------------------------------- */

static void
end(struct handover *h, int result, const struct thin_error *err)
{
    free(h->script);
    request_reply_code(h->rq, result, err); /* frees h */
}

static void
send_next(struct request *rq)
{
    struct handover *h = rq->work;
    size_t piece = min_u64(h->len - h->sent, SCRIPT_PIECE);

    ops_reply_text(rq, h->script + h->sent, piece);
    h->sent += piece;
    if (h->sent == h->len || !request_is_wanted(rq))
        end(h, 0, NULL);
    else
        request_wait_room(rq, send_next);
}

static void
closed(void *arg, int result, const struct thin_error *err)
{
    struct handover *h = arg;

    if (result < 0) {
        end(h, result, err);
        return;
    }
    attach_pool_gone(h->rq->server->attachments, h->pool);
    send_next(h->rq);
}

/* Made or not: the pool is given away as it is. */
static void
copied(void *arg, int result, const struct thin_error *err)
{
    struct handover *h = arg;

    (void)result;
    (void)err;
    pools_close(h->rq->server->pools, h->pool, h->force, (struct pools_done){closed, h});
}

static void
listed(void *arg, int result, const struct thin_error *err,
       const struct volume_info *infos, uint32_t nr)
{
    struct handover *h = arg;
    struct pool *pool;
    int code = 0;

    for (uint32_t i = 0; i < nr && result == 0; i++)
        put_volume(h, &infos[i]);
    if (result == 0 && h->failed == -THIN_E_LIMIT) {
        free(take(h->script));
        ops_fail(h->rq, -THIN_E_LIMIT,
                 "pool %s has more volumes than one answer can tell; nothing was changed",
                 h->pool);
        return;
    }
    if (result < 0 || h->failed) {
        end(h, result < 0 ? result : h->failed, result < 0 ? err : NULL);
        return;
    }
    if (nr < OPS_PAGE_MAX) {
        backup_now(pools_find(h->rq->server->pools, h->pool)->backup, h->rq->server,
                   "handover", (struct pool_done){copied, h});
        return;
    }
    snprintf(h->after, sizeof(h->after), "%s", infos[nr - 1].name);
    pool = pools_find_open(h->rq->server->pools, h->pool, &code, NULL);
    if (pool)
        pool_volume_list(pool, h->after, OPS_PAGE_MAX, false, listed, h);
    else
        end(h, code, NULL);
}

void
ops_pool_handover(struct request *rq, const struct op_object *object)
{
    const Thin__PoolHandover *m = ops_body(rq);
    struct pool *pool = ops_find_pool(rq, object->pool);
    struct handover *h;

    if (!pool)
        return;
    if (pools_stands_on_exports(pools_find(rq->server->pools, object->pool))) {
        ops_fail(rq, -THIN_E_UNSUPPORTED,
                 "pool %s stands on an NBD export, which the kernel knows as no device; "
                 "close it, attach the export with nbd-client, and import that",
                 object->pool);
        return;
    }
    h = calloc(1, sizeof(*h));
    if (!h) {
        request_reply_code(rq, -ENOMEM, NULL);
        return;
    }
    h->rq = rq;
    h->force = m->force;
    snprintf(h->pool, sizeof(h->pool), "%s", object->pool);
    rq->work = h;
    put_pool(h, pools_find(rq->server->pools, object->pool));
    pool_volume_list(pool, NULL, OPS_PAGE_MAX, false, listed, h);
}
