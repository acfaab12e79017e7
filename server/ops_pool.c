/* Pools: their life. What they hold is listed in ops_list.c. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/ondisk/superblock.h"
#include "server/backing.h"
#include "server/backup.h"
#include "server/dispatch.h"
#include "server/pools.h"

#define COMMIT_INTERVAL_MIN_MS 10u
#define COMMIT_INTERVAL_MAX_MS 3600000u

/* Who comes over the network names devices only where the configuration lets him. */
static int
may_use_path(const struct request *rq, const char *path, struct thin_error *err)
{
    return rq->session->peer.local ? 0
                                   : backing_check_remote(&rq->server->config, path, err);
}

static int
may_use_paths(const struct request *rq, const char *data, const char *metadata,
              struct thin_error *err)
{
    int r = may_use_path(rq, data, err);

    return r < 0 ? r : may_use_path(rq, metadata, err);
}

static struct pools_done
then_reply(struct request *rq)
{
    return (struct pools_done){ops_done, rq};
}

/* ---- create and import ------------------------------------------------------------------- */

static int
check_create(const struct request *rq, const Thin__PoolCreate *m,
             struct pools_create_spec *spec, struct thin_error *err)
{
    const struct server_config *c = &rq->server->config;
    bool known;
    int r;

    spec->config = c->pool;
    spec->block_size = m->block_size ? m->block_size : c->block_size;
    if (spec->block_size < DATA_BLOCK_SECTORS_MIN * SECTOR_SIZE ||
        spec->block_size > DATA_BLOCK_SECTORS_MAX * SECTOR_SIZE ||
        spec->block_size % (DATA_BLOCK_SECTORS_MIN * SECTOR_SIZE))
        return thin_fail(err, -THIN_E_INVALID,
                         "block size %u is not a multiple of 64k up to 1G",
                         spec->block_size);
    if (m->data_size % SECTOR_SIZE || m->metadata_size % SECTOR_SIZE)
        return thin_fail(err, -THIN_E_INVALID, "sizes are multiples of 512 bytes");
    if (m->commit_interval_ms) {
        if (m->commit_interval_ms < COMMIT_INTERVAL_MIN_MS ||
            m->commit_interval_ms > COMMIT_INTERVAL_MAX_MS)
            return thin_fail(err, -THIN_E_INVALID,
                             "a commit interval is between 10 ms and 1 hour");
        spec->config.commit_interval_ms = m->commit_interval_ms;
    }
    if (m->no_zeroing)
        spec->config.zeroing = false;
    r = m->on_full[0]
            ? config_parse_pool_key(&spec->config, "on_full", m->on_full, &known, err)
            : 0;
    if (r == 0 && m->auto_extend[0])
        r = config_parse_auto_extend(m->auto_extend, &spec->config.extend_data, err);
    return r < 0 ? r : may_use_paths(rq, m->data, m->metadata, err);
}

void
ops_pool_create(struct request *rq, const struct op_object *object)
{
    const Thin__PoolCreate *m = ops_body(rq);
    struct pools_create_spec spec = {.name = object->pool,
                                     .data = m->data,
                                     .metadata = m->metadata,
                                     .data_size = m->data_size,
                                     .metadata_size = m->metadata_size,
                                     .force = m->force,
                                     .takeover = m->force_takeover};
    struct thin_error err;
    int r = check_create(rq, m, &spec, &err);

    if (r < 0)
        request_reply_code(rq, r, &err);
    else
        pools_new(rq->server->pools, &spec, then_reply(rq));
}

void
ops_pool_import(struct request *rq, const struct op_object *object)
{
    const Thin__PoolImport *m = ops_body(rq);
    struct pools_import_spec spec = {.name = object->pool,
                                     .data = m->data,
                                     .metadata = m->metadata,
                                     .catalogue_id = m->catalogue_id,
                                     .takeover = m->force_takeover,
                                     .nr_volumes = (uint32_t)m->n_volumes};
    AUTO_FREE struct pool_import_volume *volumes = NULL;
    struct thin_error err;
    int r = may_use_paths(rq, m->data, m->metadata, &err);

    if (r == 0 && m->n_volumes > POOLS_VOLUMES_MAX)
        r = thin_fail(&err, -THIN_E_LIMIT, "%zu volumes named, at most %u are possible",
                      m->n_volumes, POOLS_VOLUMES_MAX);
    if (r == 0 && m->n_volumes > 0) {
        volumes = calloc(m->n_volumes, sizeof(*volumes));
        if (!volumes)
            r = thin_fail_code(&err, -ENOMEM, "import");
    }
    for (size_t i = 0; r == 0 && i < m->n_volumes; i++) {
        const Thin__ImportVolume *v = m->volumes[i];

        volumes[i] = (struct pool_import_volume){v->dev_id, NULL, v->size};
        if (v->size % SECTOR_SIZE)
            r = thin_fail(&err, -THIN_E_INVALID,
                          "size of device %u is not a multiple of 512", v->dev_id);
        if (r == 0 && v->name[0]) {
            volumes[i].name = v->name;
            r = name_check(v->name, strlen(v->name), &err);
        }
    }
    if (r < 0) {
        request_reply_code(rq, r, &err);
        return;
    }
    spec.volumes = volumes;
    pools_import(rq->server->pools, &spec, then_reply(rq));
}

/* ---- life ---------------------------------------------------------------------------------- */

/* Whether a copy could be made or not: who grows a pool has a reason. */
static void
grow_copied(void *arg, int result, const struct thin_error *err)
{
    struct request *rq = arg;
    const Thin__PoolGrow *m = ops_body(rq);
    struct pool *pool = ops_find_pool(rq, m->name);

    (void)result;
    (void)err;
    if (pool)
        pool_grow(pool, m->data_size, m->metadata_size, (struct pool_done){ops_done, rq});
}

/* A copy of the metadata first, unless somebody waits for the room. */
static void
grow_begin(struct request *rq, struct pool *pool, const struct server_pool *sp)
{
    struct pool_info info;

    pool_get_info(pool, &info);
    if (info.mode == POOL_WRITE)
        backup_now(sp->backup, rq->server, "grow", (struct pool_done){grow_copied, rq});
    else
        grow_copied(rq, 0, NULL);
}

void
ops_pool_grow(struct request *rq, const struct op_object *object)
{
    const Thin__PoolGrow *m = ops_body(rq);
    struct pool *pool = ops_find_pool(rq, object->pool);
    const struct server_pool *sp = pools_find(rq->server->pools, object->pool);
    struct thin_error err;
    int r = 0;

    if (!pool)
        return;
    /* Growing makes files larger: the network's admins may only where they may make
       them. */
    r = may_use_paths(rq, sp->data_path, sp->metadata_path, &err);
    if (r < 0) {
        ops_fail(rq, r, "over the network only devices below [server] device_dirs grow");
        return;
    }
    if (m->data_size % SECTOR_SIZE || m->metadata_size % SECTOR_SIZE)
        ops_fail(rq, -THIN_E_INVALID, "sizes are multiples of 512 bytes");
    else if (!m->data_size && !m->metadata_size)
        ops_fail(rq, -THIN_E_INVALID, "nothing to grow: no size is named");
    else
        grow_begin(rq, pool, sp);
}

void
ops_pool_open(struct request *rq, const struct op_object *object)
{
    const Thin__PoolOpen *m = ops_body(rq);

    pools_open(rq->server->pools, object->pool, m->force_takeover, then_reply(rq));
}

static void
closed(void *arg, int result, const struct thin_error *err)
{
    struct request *rq = arg;

    if (result == 0)
        attach_pool_gone(rq->server->attachments,
                         ((const Thin__PoolClose *)ops_body(rq))->name);
    request_reply_code(rq, result, err);
}

void
ops_pool_close(struct request *rq, const struct op_object *object)
{
    const Thin__PoolClose *m = ops_body(rq);

    pools_close(rq->server->pools, object->pool, m->force,
                (struct pools_done){closed, rq});
}

void
ops_pool_set(struct request *rq, const struct op_object *object)
{
    const Thin__PoolSet *m = ops_body(rq);
    const struct server_pool *sp = pools_find(rq->server->pools, object->pool);
    struct pool_config config;
    struct thin_error err;
    int r = 0;

    if (!sp) {
        ops_fail(rq, -THIN_E_NOT_FOUND, "no such pool: %s", object->pool);
        return;
    }
    config = sp->config;
    if (m->n_values == 0)
        r = thin_fail(&err, -THIN_E_INVALID, "nothing to set");
    for (size_t i = 0; r == 0 && i < m->n_values; i++) {
        const Thin__KeyValue *kv = m->values[i];
        bool known;

        r = config_parse_pool_key(&config, kv->key, kv->value, &known, &err);
        if (r == 0 && !known)
            r = thin_fail(&err, -THIN_E_INVALID,
                          "a pool has no key %.64s; it has " CONFIG_POOL_KEYS, kv->key);
    }
    if (r < 0)
        request_reply_code(rq, r, &err);
    else
        pools_set(rq->server->pools, object->pool, &config, then_reply(rq));
}

void
ops_pool_forget(struct request *rq, const struct op_object *object)
{
    pools_forget(rq->server->pools, object->pool, then_reply(rq));
}

void
ops_pool_destroy(struct request *rq, const struct op_object *object)
{
    pools_destroy(rq->server->pools, object->pool, then_reply(rq));
}

void
ops_pool_reserve_snap(struct request *rq, const struct op_object *object)
{
    struct pool *pool = ops_find_pool(rq, object->pool);

    if (pool)
        pool_reserve_snap(pool, (struct pool_done){ops_done, rq});
}

void
ops_pool_release_snap(struct request *rq, const struct op_object *object)
{
    struct pool *pool = ops_find_pool(rq, object->pool);

    if (pool)
        pool_release_snap(pool, (struct pool_done){ops_done, rq});
}
