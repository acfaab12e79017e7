/* What an NBD client may see: lists, exports opened through the attachments, contexts. */
#include <stdio.h>
#include <string.h>

#include "proto/message.h"
#include "server/nbd_client.h"
#include "server/pools.h"

/* What the empty name stands for. */
static const char *
export_name(const struct nbd_client *c, const char *name, size_t len)
{
    if (len == 0)
        return c->server->config.nbd_default_export ? c->server->config.nbd_default_export
                                                    : "";
    return name;
}

/* The next volume that this client may see, after `after`; walks pool after pool. */
void
nbd_client_list_exports(void *arg, struct nbd_conn *conn, const char *after)
{
    struct nbd_client *c = arg;
    struct server_pool *sp = NULL;
    char after_pool[128] = "", after_volume[128] = "";

    if (after)
        message_split_name(after, after_pool, after_volume, NULL);
    while ((sp = pools_next(c->server->pools, sp))) {
        int order = strcmp(sp->name, after_pool);
        struct volume_info info;
        const char *from = order == 0 && after ? after_volume : NULL;

        if (sp->state != POOLS_OPEN || (after && order < 0))
            continue;
        while (pool_volume_next(sp->pool, from, &info)) {
            char name[2 * THIN_NAME_MAX + 2];

            snprintf(name, sizeof(name), "%s/%s", sp->name, info.name);
            snprintf(after_volume, sizeof(after_volume), "%s", info.name);
            from = after_volume;
            if (auth_right_on(c->server->auth, &c->peer, name) < AUTH_READ)
                continue;
            if (!nbd_export_listed(conn, name, NULL)) {
                nbd_list_done(conn, 0);
                return;
            }
        }
    }
    nbd_list_done(conn, 0);
}

static void
describe(const struct nbd_client *c, const char *name, struct pool *pool, uint64_t size,
         bool read_only, struct nbd_export *ret)
{
    struct pool_info info = {.config.discards = POOL_DISCARD_PASSDOWN};

    if (pool)
        pool_get_info(pool, &info);
    *ret = (struct nbd_export){
        .handle = (void *)(uintptr_t)c,
        .size = size,
        .flags = NBD_EXPORT_MULTI_CONN | NBD_EXPORT_FLUSH | NBD_EXPORT_FUA |
                 (info.config.discards == POOL_DISCARD_OFF ? 0 : NBD_EXPORT_TRIM) |
                 NBD_EXPORT_ZEROES | NBD_EXPORT_FAST_ZERO | NBD_EXPORT_CACHE |
                 (read_only ? NBD_EXPORT_READ_ONLY : 0),
        .min_block = 1,
        .pref_block = 4096,
        .name = name,
    };
}

/* NBD cannot tell its client of a new size; requests in the new room are served. */
static void
on_notify(void *arg)
{
    struct nbd_client *c = arg;

    nbd_conn_set_size(c->conn, volume_size(c->attachment->volume));
}

static void
export_opened(void *arg, struct attachment *attachment, int result,
              const struct thin_error *err)
{
    struct nbd_client *c = arg;
    struct nbd_export export;

    c->opening = false;
    if (result < 0) {
        nbd_export_opened(c->conn, result, NULL, thin_error_text(err, result));
        return;
    }
    if (c->only_asked) {
        describe(c, c->volume_name, volume_pool(attachment->volume),
                 volume_size(attachment->volume), attachment->read_only, &export);
        attach_close(c->server->attachments, attachment);
        nbd_export_opened(c->conn, 0, &export, NULL);
        return;
    }
    c->attachment = attachment;
    volume_set_notify(attachment->volume, on_notify, c);
    describe(c, c->volume_name, volume_pool(attachment->volume),
             volume_size(attachment->volume), attachment->read_only, &export);
    log_notice("export opened peer=%s identity=%s volume=%s mode=%s", c->peer_text,
               c->peer.identity, c->volume_name, attachment->read_only ? "ro" : "rw");
    nbd_export_opened(c->conn, 0, &export, NULL);
}

/* GO's answer is the same as INFO's: also whether another holder makes it read-only. */
static bool
would_be_read_only(const struct nbd_client *c, const char *pool, const char *volume,
                   const struct volume_info *info, enum auth_right right)
{
    const char *holder = attach_holder(c->server->attachments, pool, volume);

    if (c->asker[0])
        return right < AUTH_WRITE || info->read_only || c->asker_reads_only ||
               (holder[0] &&
                (strncmp(holder, "pool:", 5) != 0 || strcmp(holder + 5, c->asker) != 0));
    return right < AUTH_WRITE || info->read_only ||
           (holder[0] && strcmp(holder, c->peer.identity) != 0);
}

void
nbd_client_open(void *arg, struct nbd_conn *conn, const struct nbd_open *wish)
{
    struct nbd_client *c = arg;
    const char *name = export_name(c, wish->name, wish->name_len);
    char pool_name[128], volume_name[128], pool_holder[STACK_ID_BYTES + 8];
    struct thin_error err;
    struct volume_info info;
    struct attach_request request = {0};
    enum auth_right right;
    struct pool *pool;
    int code;

    thin_error_init(&err);
    code = message_split_name(name, pool_name, volume_name, NULL);
    if (code < 0) {
        nbd_export_opened(
            conn, -THIN_E_NOT_FOUND, NULL,
            name[0] ? "exports are named POOL/VOLUME"
                    : "there is no default export; exports are named POOL/VOLUME");
        return;
    }
    right = auth_right_on(c->server->auth, &c->peer, name);
    pool = right >= AUTH_READ ? pools_find_open(c->server->pools, pool_name, &code, &err)
                              : NULL;
    if (!pool || !pool_volume_peek(pool, volume_name, &info)) {
        nbd_export_opened(conn, -THIN_E_NOT_FOUND, NULL, "no such export");
        return;
    }
    /* Whether an origin has changed shows when the volume is opened. */
    if (wish->info && !info.origin[0]) {
        struct nbd_export export;

        describe(c, name, pool, info.size,
                 would_be_read_only(c, pool_name, volume_name, &info, right), &export);
        nbd_export_opened(conn, 0, &export, NULL);
        return;
    }
    snprintf(c->volume_name, sizeof(c->volume_name), "%s", name);
    request.pool = pool_name;
    request.volume = volume_name;
    snprintf(pool_holder, sizeof(pool_holder), "pool:%s", c->asker);
    request.holder = c->asker[0] ? pool_holder : c->peer.identity;
    request.read_only = right < AUTH_WRITE || c->asker_reads_only;
    request.fall_back_read_only = true;
    request.lazy = true;
    c->opening = true;
    c->only_asked = wish->info;
    attach_open(c->server->attachments, &request, export_opened, c);
}

/* Another pool asks what this one stands on; from now on it is known. */
static bool
answer_question(struct nbd_client *c, struct nbd_conn *conn,
                const struct nbd_context_wish *wish, const char *pool_name)
{
    const struct server_pool *sp = pools_find(c->server->pools, pool_name);
    const char *ids[STACK_IDS_MAX];
    unsigned nr;

    if (!wish->list || wish->nr_queries != 1 ||
        !stack_parse_question(wish->queries[0].text, wish->queries[0].len, c->asker,
                              &c->asker_reads_only))
        return false;
    snprintf(c->asked_pool, sizeof(c->asked_pool), "%s", pool_name);
    nr = stack_list(sp, ids);
    for (unsigned i = 0; i < nr; i++) {
        char name[sizeof(STACK_CONTEXT) + STACK_ID_BYTES];

        snprintf(name, sizeof(name), "%s%s", STACK_CONTEXT, ids[i]);
        nbd_context_found(conn, name, 0);
    }
    nbd_contexts_done(conn, 0);
    return true;
}

void
nbd_client_contexts(void *arg, struct nbd_conn *conn, const struct nbd_context_wish *wish)
{
    struct nbd_client *c = arg;
    const char *name = export_name(c, wish->name, wish->name_len);
    char pool_name[128], volume_name[128];
    struct volume_info info;
    struct thin_error err;
    struct pool *pool = NULL;
    int code = 0;

    if (message_split_name(name, pool_name, volume_name, NULL) == 0 &&
        auth_right_on(c->server->auth, &c->peer, name) >= AUTH_READ)
        pool = pools_find_open(c->server->pools, pool_name, &code, &err);
    if (!pool || !pool_volume_peek(pool, volume_name, &info)) {
        nbd_contexts_done(conn, -THIN_E_NOT_FOUND);
        return;
    }
    if (answer_question(c, conn, wish, pool_name))
        return;
    if (nbd_context_wanted(wish, "base:allocation"))
        nbd_context_found(conn, "base:allocation", NBD_CONTEXT_ALLOCATION);
    if (nbd_context_wanted(wish, "qemu:allocation-depth"))
        nbd_context_found(conn, "qemu:allocation-depth", NBD_CONTEXT_DEPTH);
    nbd_contexts_done(conn, 0);
}

void
nbd_client_close_export(void *arg, void *handle)
{
    struct nbd_client *c = arg;

    (void)handle;
    if (c->attachment)
        attach_close(c->server->attachments, c->attachment);
    c->attachment = NULL;
}
