/* What the pool calls: opening, reading again, the trailer at each cut, names. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/host.h"
#include "core/base/seeded_bug.h"
#include "core/pool/catalogue_private.h"

static void
destroy(struct catalogue *cat)
{
    if (!cat)
        return;
    catalogue_load_destroy(cat->load);
    catalogue_checkpoint_destroy(cat->checkpoint);
    catalogue_reconcile_destroy(cat->reconcile);
    catalogue_records_fini(&cat->records);
    free(cat->areas[0].dblocks);
    free(cat->areas[1].dblocks);
    free(cat);
}

static int
create(struct pool *pool)
{
    struct catalogue *cat = calloc(1, sizeof(*cat));
    int r;

    if (!cat)
        return -ENOMEM;
    cat->pool = pool;
    catalogue_records_init(&cat->records);
    cat->trailer.dev_id = CATALOGUE_NONE;
    memcpy(cat->trailer.owner_host, pool->owner_host, 16);
    memcpy(cat->trailer.owner_boot, pool->owner_boot, 16);
    cat->trailer.owner_start = (uint32_t)pool_wall_clock(pool);
    cat->incarnation = random_u64(&pool->rng);
    catalogue_area_reset(cat);
    r = catalogue_load_create(cat);
    if (r == 0)
        r = catalogue_checkpoint_create(cat);
    if (r == 0)
        r = catalogue_reconcile_create(cat);
    if (r < 0) {
        destroy(cat);
        return r;
    }
    pool->catalogue = cat;
    return 0;
}

static void
draw_uuid(struct catalogue *cat)
{
    store_le64(cat->trailer.uuid, random_u64(&cat->pool->rng));
    store_le64(cat->trailer.uuid + 8, random_u64(&cat->pool->rng));
}

static void
opened(void *arg, int result, const struct thin_error *err)
{
    struct catalogue *cat = arg;
    static const uint8_t no_uuid[16];

    if (result == 0) {
        const struct catalogue_record *last = order_last(&cat->records.by_id);

        cat->next_dev_id = cat->pool_record.imported ? DEV_ID_MAX : 1;
        if (last && !cat->pool_record.imported)
            catalogue_id_used(cat, last->dev_id);
        if (memcmp(cat->trailer.uuid, no_uuid, 16) == 0)
            draw_uuid(cat);
    }
    cat->opened(cat->pool, result, err);
}

/* A fresh pool's catalogue is its first checkpoint, of no records. */
static void
format_finished(struct catalogue *cat, int result, const struct thin_error *err)
{
    opened(cat, result, err);
}

static void
format_written(struct catalogue *cat, int result, const struct thin_error *err)
{
    if (result < 0)
        opened(cat, result, err);
    else
        catalogue_checkpoint_finish(cat);
}

void
catalogue_open(struct pool *pool,
               void (*done)(struct pool *pool, int result, const struct thin_error *err))
{
    struct catalogue *cat;
    struct thin_error err;
    int r = create(pool);

    if (r < 0) {
        /* Without an object there is nothing that could call later. */
        thin_error_init(&err);
        thin_fail_code(&err, r, "open the catalogue");
        done(pool, r, &err);
        return;
    }
    cat = pool->catalogue;
    cat->opened = done;
    if (!pool->params->format) {
        catalogue_load(cat, false, (struct pool_done){opened, cat});
        return;
    }
    draw_uuid(cat);
    cat->trailer.generation = 1;
    cat->pool_record.created = pool_wall_clock(pool);
    cat->unrecorded = true;
    cat->checkpoint->written = format_written;
    cat->checkpoint->finished = format_finished;
    catalogue_checkpoint_start(cat);
}

const char *
catalogue_damage(const struct pool *pool)
{
    return pool->catalogue->damage;
}

static void
reloaded(void *arg, int result, const struct thin_error *err)
{
    struct catalogue *cat = arg;

    /* The records are not what stands on disk: no change may be built on them. */
    if (result < 0)
        snprintf(cat->damage, sizeof(cat->damage), "%s", thin_error_text(err, result));
    cat->reloaded(cat->pool, result, err);
}

void
catalogue_reload(struct pool *pool, void (*done)(struct pool *pool, int result,
                                                 const struct thin_error *err))
{
    struct catalogue *cat = pool->catalogue;

    cat->reloaded = done;
    if (!seeded_bug(SEEDED_INCARNATION_KEPT))
        cat->incarnation = random_u64(&pool->rng);
    catalogue_load(cat, true, (struct pool_done){reloaded, cat});
}

void
catalogue_finish_trailer(void *arg, uint8_t *superblock)
{
    struct pool *pool = arg;
    struct catalogue *cat = pool->catalogue;
    uint8_t *bytes = superblock + SUPERBLOCK_TRAILER_OFFSET;
    struct catalogue_trailer trailer;
    bool found = false, closes;

    /* Without a trailer of ours, or with one of a later version: not ours to touch. */
    if (!cat || catalogue_trailer_decode(bytes, &trailer, &found, NULL) < 0 || !found)
        return;
    trailer.generation = cat->trailer.generation;
    trailer.changes = cat->change_base + metadata_txn(pool->md);
    trailer.incarnation = cat->incarnation;
    memcpy(trailer.owner_host, cat->trailer.owner_host, 16);
    memcpy(trailer.owner_boot, cat->trailer.owner_boot, 16);
    trailer.owner_start = cat->trailer.owner_start;
    /* While memory knows what the log does not, the next open must look again. */
    trailer.flags = cat->unrecorded ? CATALOGUE_UNRECORDED : 0;
    /* The mark of an opening acknowledges nothing: what was clean is clean. */
    closes = pool_closes_clean(pool) && !cat->damage[0];
    cat->cut_clean = closes || (!pool->opened && cat->clean);
    if (cat->cut_clean)
        trailer.flags |= CATALOGUE_CLEAN;
    if (closes) {
        /* Nobody's now: the next owner may be on another machine. */
        memset(trailer.owner_host, 0, sizeof(trailer.owner_host));
        memset(trailer.owner_boot, 0, sizeof(trailer.owner_boot));
        trailer.owner_start = 0;
    }
    trailer.stamp = superblock_stamp(superblock);
    catalogue_trailer_encode(&trailer, bytes);
}

void
catalogue_close(struct pool *pool)
{
    destroy(pool->catalogue);
    pool->catalogue = NULL;
}

static void
tell_record(const struct catalogue_record *record, struct catalogue_volume *ret)
{
    ret->dev_id = record->dev_id;
    ret->size = record->size;
    ret->quota = record->quota;
    ret->origin = record->origin && *record->origin ? record->origin : NULL;
    ret->origin_identity = record->origin_identity ? record->origin_identity : "";
    ret->origin_size = ret->origin ? record->origin_size : 0;
    ret->read_only = record->flags & RECORD_READ_ONLY;
    memcpy(ret->name, record->name, strlen(record->name) + 1);
}

bool
catalogue_find(struct pool *pool, const char *name, struct catalogue_volume *ret)
{
    const struct catalogue_record *record =
        catalogue_by_name(&pool->catalogue->records, name);

    if (record)
        tell_record(record, ret);
    return record != NULL;
}

bool
catalogue_find_device(struct pool *pool, uint32_t dev_id, struct catalogue_volume *ret)
{
    const struct catalogue_record *record =
        catalogue_by_id(&pool->catalogue->records, dev_id);

    if (record && !record->name)
        record = NULL;
    if (record)
        tell_record(record, ret);
    return record != NULL;
}

uint64_t
catalogue_incarnation(const struct pool *pool)
{
    return pool->catalogue ? pool->catalogue->incarnation : 0;
}

void
catalogue_uuid(const struct pool *pool, uint8_t ret_uuid[16])
{
    memcpy(ret_uuid, pool->catalogue->trailer.uuid, 16);
}

uint64_t
catalogue_change_base(const struct pool *pool)
{
    return pool->catalogue ? pool->catalogue->change_base : 0;
}

bool
catalogue_is_clean(const struct pool *pool)
{
    return pool->catalogue && pool->catalogue->clean;
}

bool
catalogue_can_be_clean(const struct pool *pool)
{
    const struct catalogue *cat = pool->catalogue;

    /* What is being committed right now takes the mark back. */
    return cat && cat->present && !cat->damage[0] &&
           (!cat->clean || pool->commit.cut_txn || catalogue_can_be_owned(pool));
}

bool
catalogue_can_be_owned(const struct pool *pool)
{
    return pool->catalogue && pool->catalogue->present &&
           !host_id_is_zero(pool->owner_host);
}

int
catalogue_touch(struct metaop *op, struct thin_error *err)
{
    struct catalogue *cat = op->pool->catalogue;

    (void)err;
    catalogue_set_trailer(cat, &cat->trailer.root, cat->trailer.dev_id);
    return 0;
}

void
catalogue_durable(struct pool *pool)
{
    if (pool->catalogue)
        pool->catalogue->clean = pool->catalogue->cut_clean;
}

void
catalogue_count(const struct pool *pool, uint64_t *ret_nr_volumes,
                uint64_t *ret_virtual_bytes)
{
    const struct catalogue *cat = pool->catalogue;

    *ret_nr_volumes = cat ? cat->records.by_name.nr_items : 0;
    *ret_virtual_bytes = cat ? cat->records.virtual_bytes : 0;
}

uint32_t
catalogue_dev_id(const struct pool *pool)
{
    return pool->catalogue ? pool->catalogue->trailer.dev_id : CATALOGUE_NONE;
}
