/*
 * Putting memory in step with the details tree: after somebody else committed, and for
 * pools that have no catalogue. Walks the devices in order of ids, beside the records.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/pool/catalogue_private.h"

#define RECONCILE_BATCH 16u /* devices looked at by one operation */

struct found_device {
    uint32_t dev_id;
    struct device_details details;
    bool known;         /* a record stands for it */
    uint64_t nr_blocks; /* up to the highest mapping; not of a known one */
};

struct catalogue_reconcile {
    struct catalogue *cat;
    struct pool_done done;
    struct metaop op;
    struct thin_task task;
    uint64_t next_id; /* ids below are settled */
    struct found_device found[RECONCILE_BATCH];
    uint32_t nr_found;
    bool at_end;
    uint64_t nr_made_up, nr_dropped;
    struct thin_error err;
    int result;
};

int
catalogue_reconcile_create(struct catalogue *cat)
{
    cat->reconcile = calloc(1, sizeof(*cat->reconcile));
    return cat->reconcile ? 0 : -ENOMEM;
}

void
catalogue_reconcile_destroy(struct catalogue_reconcile *rec)
{
    free(rec);
}

static bool
record_stands(const struct catalogue_record *record, const struct device_details *details)
{
    return record && record->creation_time == details->creation_time &&
           record->transaction_id == details->transaction_id;
}

static int
look_run(struct metaop *op, struct thin_error *err)
{
    struct catalogue_reconcile *rec = container_of(op, struct catalogue_reconcile, op);
    struct catalogue *cat = rec->cat;
    struct metadata *md = cat->pool->md;
    uint64_t id = rec->next_id;
    int r;

    rec->nr_found = 0;
    rec->at_end = false;
    while (rec->nr_found < RECONCILE_BATCH) {
        struct found_device *found = &rec->found[rec->nr_found];
        vblock_t highest = 0;
        bool any = false;

        if (id <= DEV_ID_MAX) {
            r = metadata_next_device(md, (uint32_t)id, &found->dev_id, &found->details,
                                     &any, err);
            /* What was found up to here counts; the next operation waits for the rest. */
            if (r == -THIN_E_WOULD_BLOCK && rec->nr_found > 0)
                return 0;
            if (r < 0)
                return r;
        }
        if (!any) {
            rec->at_end = true;
            return 0;
        }
        id = (uint64_t)found->dev_id + 1;
        found->nr_blocks = 0;
        found->known =
            found->dev_id == cat->trailer.dev_id ||
            record_stands(catalogue_by_id(&cat->records, found->dev_id), &found->details);
        if (!found->known) {
            r = metadata_highest_mapped(md, found->dev_id, &highest, &any, err);
            if (r == -THIN_E_WOULD_BLOCK && rec->nr_found > 0)
                return 0;
            if (r < 0 && r != -THIN_E_CHECKSUM && r != -THIN_E_BAD_BLOCK)
                return r;
            /* A damaged device is listed all the same, as large as what it has mapped. */
            if (r < 0)
                found->nr_blocks = found->details.mapped_blocks;
            else if (any)
                found->nr_blocks = highest + 1;
        }
        rec->nr_found++;
    }
    return 0;
}

/* Names and sizes that the administrator gave. */
static const struct pool_import_volume *
given(const struct catalogue *cat, uint32_t dev_id)
{
    const struct pool_params *params = cat->pool->params;

    for (uint32_t i = 0; params && i < params->nr_import_volumes; i++)
        if (params->import_volumes[i].dev_id == dev_id)
            return &params->import_volumes[i];
    return NULL;
}

/* "thin-7", or the first of "thin-7.1", "thin-7.2"... that is free. */
static void
make_up_name(const struct catalogue *cat, uint32_t dev_id, char name[THIN_NAME_MAX + 1])
{
    snprintf(name, THIN_NAME_MAX + 1, "thin-%" PRIu32, dev_id);
    for (uint32_t n = 1; catalogue_by_name(&cat->records, name); n++)
        snprintf(name, THIN_NAME_MAX + 1, "thin-%" PRIu32 ".%" PRIu32, dev_id, n);
}

static int
make_up(struct catalogue_reconcile *rec, const struct found_device *found)
{
    struct catalogue *cat = rec->cat;
    const struct pool_import_volume *volume = given(cat, found->dev_id);
    struct catalogue_record *record;
    char name[THIN_NAME_MAX + 1];
    int r;

    r = catalogue_records_reserve(&cat->records, 1);
    if (r < 0)
        return thin_fail_code(&rec->err, r, "make up a record");
    if (cat->records.by_id.nr_items >= POOL_VOLUMES_MAX)
        return thin_fail(&rec->err, -THIN_E_LIMIT, "more than %u devices",
                         POOL_VOLUMES_MAX);
    /* Not at the import itself but later: the name may have gone to another one since. */
    if (volume && volume->name && !cat->pool->params->import &&
        catalogue_by_name(&cat->records, volume->name)) {
        make_up_name(cat, found->dev_id, name);
    } else if (volume && volume->name) {
        r = name_check(volume->name, strlen(volume->name), &rec->err);
        if (r < 0)
            return thin_wrap(&rec->err, r, "device %u", found->dev_id);
        if (catalogue_by_name(&cat->records, volume->name))
            return thin_fail(&rec->err, -THIN_E_EXISTS, "device %u: name %s is taken",
                             found->dev_id, volume->name);
        snprintf(name, sizeof(name), "%s", volume->name);
    } else {
        make_up_name(cat, found->dev_id, name);
    }
    record = catalogue_record_create(found->dev_id, name);
    if (!record)
        return thin_fail_code(&rec->err, -ENOMEM, "make up a record");
    record->uid = catalogue_pick_uid(cat);
    record->transaction_id = found->details.transaction_id;
    record->creation_time = found->details.creation_time;
    if (volume && volume->size) {
        record->size = round_up_u64(volume->size, SECTOR_SIZE);
    } else {
        record->size = found->nr_blocks * cat->pool->block_size;
        record->flags |= RECORD_SIZE_UNKNOWN;
    }
    catalogue_records_put(&cat->records, record);
    rec->nr_made_up++;
    return 0;
}

/* Records of ids in [begin, end) have no device; with `mismatch` begin's is another's. */
static void
drop_records(struct catalogue_reconcile *rec, uint64_t begin, uint64_t end)
{
    struct catalogue_records *records = &rec->cat->records;

    while (begin < end) {
        struct catalogue_record *record = catalogue_next_id(records, (uint32_t)begin);

        if (!record || record->dev_id >= end)
            return;
        begin = (uint64_t)record->dev_id + 1;
        catalogue_records_remove(records, record->dev_id);
        rec->nr_dropped++;
    }
}

static void
finish(struct catalogue_reconcile *rec, int result, const struct thin_error *err)
{
    struct catalogue *cat = rec->cat;
    struct pool_done done = rec->done;

    if (result == 0 && rec->nr_made_up + rec->nr_dropped > 0) {
        cat->unrecorded = true;
        log_notice("volumes were put in step with the devices pool=%s made_up=%" PRIu64
                   " dropped=%" PRIu64,
                   cat->pool->name, rec->nr_made_up, rec->nr_dropped);
    }
    done.fn(done.arg, result, err);
}

static void
look_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct catalogue_reconcile *rec = container_of(op, struct catalogue_reconcile, op);
    int r = 0;

    if (result < 0) {
        finish(rec, result, err);
        return;
    }
    for (uint32_t i = 0; i < rec->nr_found && r == 0; i++) {
        const struct found_device *found = &rec->found[i];

        /* Every id up to this one without a device, and this one's if it is another's. */
        drop_records(
            rec, rec->next_id,
            (uint64_t)found->dev_id +
                (found->known && found->dev_id != rec->cat->trailer.dev_id ? 0 : 1));
        if (!found->known)
            r = make_up(rec, found);
        rec->next_id = (uint64_t)found->dev_id + 1;
    }
    if (r == 0 && rec->at_end)
        drop_records(rec, rec->next_id, (uint64_t)DEV_ID_MAX + 1);
    if (r < 0 || rec->at_end)
        finish(rec, r, &rec->err);
    else
        metaop_start(rec->cat->pool, op, false);
}

void
catalogue_reconcile(struct catalogue *cat, struct pool_done done)
{
    struct catalogue_reconcile *rec = cat->reconcile;

    memset(rec, 0, sizeof(*rec));
    rec->cat = cat;
    rec->done = done;
    cat->records.loading = false;
    rec->op.run = look_run;
    rec->op.done = look_done;
    rec->op.name = "catalogue reconcile";
    rec->op.reads_only = true;
    metaop_start(cat->pool, &rec->op, false);
}
