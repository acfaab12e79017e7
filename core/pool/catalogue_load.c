/*
 * Reading the catalogue, at open and after a roll-back.
 *
 *   superblock ─ no trailer, or import names a device ──────────────► (probe) ─┐
 *        │ trailer                                                             │
 *        ▼                                                                     │
 *      areas (where the hidden device is mapped) ─► pages, one after another ◄─┘
 *        │                                               │
 *        │ anything unsound: damaged, no records         ▼
 *        └───────────────────────────────────────────► names ─► reconcile, unless the
 *                                                               stamp fits
 * Nothing is written. A pool in order costs the pages of its root and nothing else.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/bytes.h"
#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/ondisk/owner_mark.h"
#include "core/pool/catalogue_private.h"

#define INDEX_TURN 64u /* records put in order of names in one turn */

struct catalogue_load {
    struct catalogue *cat;
    struct pool_done done;
    bool reload;
    bool keep; /* nothing of what memory knows was ever written: the details judge it */

    struct device_io io;
    struct iovec iov;
    uint8_t superblock[METADATA_BLOCK_SIZE];
    bool has_trailer, stamp_fits;

    struct metaop op;
    bool device_found;
    unsigned area;
    uint64_t nr_blocks; /* of the area, found so far */
    struct mapping_slot slots[256];
    uint32_t nr_slots;
    vblock_t leaf_end;

    struct catalogue_io cio;
    uint8_t *pages;
    uint32_t in_chunk, pos; /* pages read, pages taken in of them */
    struct catalogue_root root;
    uint32_t index; /* pages taken in of the root */
    uint32_t crc;
    bool probing;           /* there is no root: as many pages as are whole */
    unsigned nr_candidates; /* areas that a probe may try, the newest first */
    unsigned candidates[2];
    struct catalogue_page_header heads[2];
    bool whole; /* a checkpoint's last record was seen */
    uint32_t next_id;

    struct thin_task task;
    int result;
    struct thin_error err;
};

static void read_area(struct catalogue_load *load);
static void read_pages(struct catalogue_load *load);
static void probe_next(struct catalogue_load *load);

static void
defer(struct catalogue_load *load, void (*run)(struct thin_task *task))
{
    load->task.run = run;
    loop_defer(load->cat->pool->loop, &load->task);
}

static void
finish(struct catalogue_load *load, int result, const struct thin_error *err)
{
    struct pool_done done = load->done;

    done.fn(done.arg, result, err);
}

static void
finish_run(struct thin_task *task)
{
    struct catalogue_load *load = container_of(task, struct catalogue_load, task);

    finish(load, load->result, &load->err);
}

/* For errors that stand in load->err, wherever we are. */
static void
fail(struct catalogue_load *load, int result)
{
    load->result = result;
    defer(load, finish_run);
}

static void
reconciled(void *arg, int result, const struct thin_error *err)
{
    finish(arg, result, err);
}

static void
reconcile(struct catalogue_load *load)
{
    catalogue_reconcile(load->cat, (struct pool_done){reconciled, load});
}

/* The pages cannot be believed: devices are served under made-up names. */
static void
damaged(struct catalogue_load *load)
{
    struct catalogue *cat = load->cat;
    const struct pool_params *params = cat->pool->params;

    catalogue_records_fini(&cat->records);
    catalogue_records_init(&cat->records);
    catalogue_area_reset(cat);
    cat->present = false;
    cat->unrecorded = true;
    if (params && params->import) {
        /* The administrator asks for a fresh start; the old device is one like others. */
        log_warning("the catalogue is damaged and left behind pool=%s device=%u: %s",
                    cat->pool->name, cat->trailer.dev_id, load->err.text);
        cat->trailer.dev_id = CATALOGUE_NONE;
        memset(&cat->trailer.root, 0, sizeof(cat->trailer.root));
    } else {
        memcpy(cat->damage, load->err.text, sizeof(cat->damage));
        log_error("the catalogue is damaged, volumes have made-up names; import the pool "
                  "again, naming the catalogue pool=%s device=%u: %s",
                  cat->pool->name, cat->trailer.dev_id, load->err.text);
    }
    reconcile(load);
}

/* ---- names ----------------------------------------------------------------------------------- */

static void
index_run(struct thin_task *task)
{
    struct catalogue_load *load = container_of(task, struct catalogue_load, task);
    struct catalogue *cat = load->cat;
    int r = catalogue_records_reserve(&cat->records, INDEX_TURN);

    if (r < 0) {
        fail(load, thin_fail_code(&load->err, r, "load the catalogue"));
        return;
    }
    for (uint32_t i = 0; i < INDEX_TURN; i++) {
        struct catalogue_record *record = catalogue_next_id(&cat->records, load->next_id);

        if (!record) {
            cat->trailer.root = load->root;
            cat->present = true;
            if (load->stamp_fits && !(cat->trailer.flags & CATALOGUE_UNRECORDED))
                finish(load, 0, NULL);
            else
                reconcile(load);
            return;
        }
        if (!catalogue_records_index(&cat->records, record->dev_id)) {
            thin_fail(&load->err, -THIN_E_CATALOGUE, "device %u has another one's name",
                      record->dev_id);
            damaged(load);
            return;
        }
        load->next_id = record->dev_id + 1;
    }
    defer(load, index_run);
}

static void
index_names(struct catalogue_load *load)
{
    load->cat->records.loading = false;
    load->next_id = 0;
    defer(load, index_run);
}

/* ---- pages ------------------------------------------------------------------------------------- */

static int
take_item(struct catalogue_load *load, struct catalogue_item *item)
{
    struct catalogue *cat = load->cat;

    switch (item->kind) {
    case CATALOGUE_VOLUME: {
        int r = catalogue_records_reserve(&cat->records, 1);

        if (r == 0 && cat->records.by_id.nr_items >= POOL_VOLUMES_MAX &&
            !catalogue_by_id(&cat->records, item->record->dev_id))
            r = -THIN_E_CATALOGUE;
        if (r < 0) {
            catalogue_record_destroy(item->record);
            return thin_fail_code(&load->err, r, "load a record");
        }
        catalogue_records_put(&cat->records, item->record);
        return 0;
    }
    case CATALOGUE_TOMBSTONE:
        catalogue_records_remove(&cat->records, item->dev_id);
        return 0;
    case CATALOGUE_POOL:
        cat->pool_record = item->pool;
        load->whole = true;
        return 0;
    default:
        return 0; /* of a later version */
    }
}

/* One page. Errors stand in load->err. */
static int
take_page(struct catalogue_load *load, const uint8_t *page)
{
    uint64_t sequence = load->root.sequence - load->root.nr_pages + 1 + load->index;
    uint32_t crc, len_bytes, pos = 0;
    int r;

    if (load->probing)
        sequence = load->heads[load->area].sequence + load->index;
    r = catalogue_page_judge(page, load->cat->trailer.uuid,
                             load->root.first + load->index, sequence, load->crc, &crc,
                             &len_bytes, &load->err);
    while (r == 0 && pos < len_bytes) {
        struct catalogue_item item;

        r = catalogue_decode(page + CATALOGUE_HEADER_BYTES, len_bytes, &pos, &item,
                             &load->err);
        if (r == 0)
            r = take_item(load, &item);
        if (r < 0)
            thin_wrap(&load->err, r, "catalogue page %llu",
                      (unsigned long long)(load->root.first + load->index));
    }
    if (r < 0)
        return r;
    load->crc = crc;
    load->index++;
    return 0;
}

static void
pages_done(struct catalogue_load *load)
{
    if (load->probing) {
        if (!load->whole) {
            probe_next(load);
            return;
        }
        load->root.nr_pages = load->index;
        load->root.last_crc = load->crc;
        load->root.sequence = load->heads[load->area].sequence + load->index - 1;
        load->stamp_fits = false;
    } else if (load->crc != load->root.last_crc) {
        thin_fail(&load->err, -THIN_E_CATALOGUE,
                  "the last page's checksum is %08x, the superblock names %08x",
                  load->crc, load->root.last_crc);
        damaged(load);
        return;
    }
    index_names(load);
}

static void
take_run(struct thin_task *task)
{
    struct catalogue_load *load = container_of(task, struct catalogue_load, task);

    for (uint32_t i = 0; i < CATALOGUE_TURN_PAGES && load->pos < load->in_chunk; i++) {
        int r = take_page(load, load->pages + (size_t)load->pos * CATALOGUE_PAGE_BYTES);

        if (r == -ENOMEM) {
            fail(load, r);
            return;
        }
        if (r < 0) {
            if (load->probing)
                pages_done(load);
            else
                damaged(load);
            return;
        }
        load->pos++;
    }
    if (load->pos < load->in_chunk)
        defer(load, take_run);
    else
        read_pages(load);
}

/*
 * The first that is read of the data device. An export that does not answer may wait for
 * this very pool, if it stands on it by way of a server that could not be asked.
 */
static void
page_unread(struct catalogue_load *load, int result)
{
    const struct pool *pool = load->cat->pool;

    if (strcmp(pool->data->ops->kind, "nbd") == 0)
        thin_fail(
            &load->err, result,
            "read the catalogue: %s; see whether the server of the data device answers, "
            "and that nothing behind it stands on this pool",
            thin_strerror(result));
    else
        thin_fail_code(&load->err, result, "read the catalogue");
}

static void
pages_read(struct catalogue_io *cio, int result)
{
    struct catalogue_load *load = container_of(cio, struct catalogue_load, cio);

    if (result < 0) {
        page_unread(load, result);
        finish(load, result, &load->err);
        return;
    }
    load->pos = 0;
    defer(load, take_run);
}

static void
read_pages(struct catalogue_load *load)
{
    struct catalogue *cat = load->cat;
    uint32_t left = load->root.nr_pages - load->index;

    if (left == 0) {
        pages_done(load);
        return;
    }
    load->in_chunk = left < CATALOGUE_IO_PAGES ? left : CATALOGUE_IO_PAGES;
    memset(&load->cio, 0, sizeof(load->cio));
    load->cio.done = pages_read;
    load->cio.pool = cat->pool;
    load->cio.area = &cat->areas[cat->current];
    load->cio.page = load->root.first + load->index;
    load->cio.nr_pages = load->in_chunk;
    load->cio.bytes = load->pages;
    catalogue_io_start(&load->cio);
}

static void
begin_pages(struct catalogue_load *load, unsigned area)
{
    struct catalogue *cat = load->cat;

    catalogue_records_fini(&cat->records);
    catalogue_records_init(&cat->records);
    cat->records.loading = true;
    cat->current = area;
    load->area = area;
    load->index = 0;
    load->crc = 0;
    load->whole = false;
    read_pages(load);
}

/* ---- a root that must be found -------------------------------------------------------------- */

static void
probe_next(struct catalogue_load *load)
{
    struct catalogue *cat = load->cat;
    unsigned area;

    if (load->nr_candidates == 0) {
        fail(load, thin_fail(&load->err, -THIN_E_CATALOGUE,
                             "device %u holds no whole catalogue", cat->trailer.dev_id));
        return;
    }
    area = load->candidates[0];
    load->candidates[0] = load->candidates[1];
    load->nr_candidates--;
    memcpy(cat->trailer.uuid, load->heads[area].uuid, 16);
    load->root.first = cat->areas[area].begin;
    load->root.nr_pages = (uint32_t)area_pages(cat, area);
    begin_pages(load, area);
}

static void probe_head(struct catalogue_load *load);

static void
head_read(struct catalogue_io *cio, int result)
{
    struct catalogue_load *load = container_of(cio, struct catalogue_load, cio);
    struct catalogue_page_header *head = &load->heads[load->area];

    if (result < 0) {
        page_unread(load, result);
        finish(load, result, &load->err);
        return;
    }
    if (catalogue_page_looks(load->pages, head) &&
        head->address == load->cat->areas[load->area].begin) {
        load->candidates[load->nr_candidates++] = load->area;
        if (load->nr_candidates == 2 && head->sequence > load->heads[0].sequence) {
            load->candidates[0] = 1;
            load->candidates[1] = 0;
        }
    }
    load->area++;
    probe_head(load);
}

static void
probe_head(struct catalogue_load *load)
{
    struct catalogue *cat = load->cat;

    while (load->area < 2 && cat->areas[load->area].nr_blocks == 0)
        load->area++;
    if (load->area == 2) {
        probe_next(load);
        return;
    }
    memset(&load->cio, 0, sizeof(load->cio));
    load->cio.done = head_read;
    load->cio.pool = cat->pool;
    load->cio.area = &cat->areas[load->area];
    load->cio.page = cat->areas[load->area].begin;
    load->cio.nr_pages = 1;
    load->cio.bytes = load->pages;
    catalogue_io_start(&load->cio);
}

/* ---- areas ------------------------------------------------------------------------------------ */

/* The hidden device is gone: somebody deleted it. */
static void
device_gone(struct catalogue_load *load)
{
    struct catalogue *cat = load->cat;

    log_warning("the catalogue's device is gone, volumes have made-up names pool=%s "
                "device=%u",
                cat->pool->name, cat->trailer.dev_id);
    cat->trailer.dev_id = CATALOGUE_NONE;
    memset(&cat->trailer.root, 0, sizeof(cat->trailer.root));
    cat->unrecorded = true;
    reconcile(load);
}

static void
areas_known(struct catalogue_load *load)
{
    struct catalogue *cat = load->cat;
    struct catalogue_root *root = &cat->trailer.root;

    load->root = *root;
    load->area = 0;
    if (load->probing) {
        probe_head(load);
        return;
    }
    if (root->nr_pages == 0) {
        /* Made, but no checkpoint was ended yet. */
        cat->present = true;
        cat->unrecorded = true;
        reconcile(load);
        return;
    }
    cat->current = root->first == cat->areas[1].begin;
    if (load->keep) {
        cat->present = true;
        reconcile(load);
        return;
    }
    if (root->first != cat->areas[cat->current].begin ||
        root->nr_pages > area_pages(cat, cat->current)) {
        thin_fail(&load->err, -THIN_E_CATALOGUE,
                  "root of %u pages at page %llu: not all of them are there",
                  root->nr_pages, (unsigned long long)root->first);
        damaged(load);
        return;
    }
    begin_pages(load, cat->current);
}

static int
area_run(struct metaop *op, struct thin_error *err)
{
    struct catalogue_load *load = container_of(op, struct catalogue_load, op);
    struct catalogue *cat = load->cat;
    struct device_details details;
    vblock_t begin, wanted;
    int r;

    load->nr_slots = 0;
    r = metadata_get_device(cat->pool->md, cat->trailer.dev_id, &details,
                            &load->device_found, err);
    if (r < 0 || !load->device_found)
        return r;
    wanted = cat->areas[load->area].begin / pages_per_block(cat) + load->nr_blocks;
    return metadata_read_leaf(cat->pool->md, cat->trailer.dev_id, wanted, load->slots,
                              &load->nr_slots, &begin, &load->leaf_end, err);
}

static void
area_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct catalogue_load *load = container_of(op, struct catalogue_load, op);
    struct catalogue *cat = load->cat;
    struct catalogue_area *area = &cat->areas[load->area];
    vblock_t wanted = area->begin / pages_per_block(cat) + load->nr_blocks;
    uint64_t had = load->nr_blocks;

    if (is_damage(result)) {
        load->err = *err;
        damaged(load);
        return;
    }
    if (result < 0) {
        finish(load, result, err);
        return;
    }
    if (!load->device_found && load->probing) {
        fail(load, thin_fail(&load->err, -THIN_E_NOT_FOUND, "no catalogue: no device %u",
                             cat->trailer.dev_id));
        return;
    }
    if (!load->device_found) {
        device_gone(load);
        return;
    }
    for (uint32_t i = 0; i < load->nr_slots; i++) {
        int r;

        if (load->slots[i].vblock < wanted)
            continue;
        if (load->slots[i].vblock > wanted ||
            load->nr_blocks * pages_per_block(cat) >= CATALOGUE_AREA_PAGES)
            break;
        r = catalogue_area_add(area, mapping_block(load->slots[i].value));
        if (r < 0) {
            fail(load, thin_fail_code(&load->err, r, "load the catalogue"));
            return;
        }
        load->nr_blocks++;
        wanted++;
    }
    if (load->nr_blocks > had && load->leaf_end <= wanted) {
        metaop_start(cat->pool, op, false); /* goes on in the next leaf */
        return;
    }
    load->area++;
    load->nr_blocks = 0;
    if (load->area < 2)
        metaop_start(cat->pool, op, false);
    else
        areas_known(load);
}

static void
read_area(struct catalogue_load *load)
{
    load->area = 0;
    load->nr_blocks = 0;
    memset(&load->op, 0, sizeof(load->op));
    load->op.run = area_run;
    load->op.done = area_done;
    load->op.name = "catalogue load";
    load->op.reads_only = true;
    metaop_start(load->cat->pool, &load->op, false);
}

/* ---- the superblock ----------------------------------------------------------------------------- */

/* Sets cat->trailer from the superblock. 0, or the code of a trailer not for us. */
static int
read_trailer(struct catalogue_load *load)
{
    struct catalogue *cat = load->cat;
    struct catalogue_trailer found;
    uint64_t generation = cat->trailer.generation;
    int r;

    r = catalogue_trailer_decode(load->superblock + SUPERBLOCK_TRAILER_OFFSET, &found,
                                 &load->has_trailer, &load->err);
    if (r < 0)
        return r;
    if (load->has_trailer) {
        uint8_t host[16], boot[16];
        uint32_t start = cat->trailer.owner_start;

        memcpy(host, cat->trailer.owner_host, 16);
        memcpy(boot, cat->trailer.owner_boot, 16);
        cat->trailer = found;
        memcpy(cat->trailer.owner_host, host, 16);
        memcpy(cat->trailer.owner_boot, boot, 16);
        cat->trailer.owner_start = start;
        load->stamp_fits = found.stamp == superblock_stamp(load->superblock);
    } else {
        cat->trailer.dev_id = CATALOGUE_NONE;
        memset(&cat->trailer.root, 0, sizeof(cat->trailer.root));
        cat->trailer.flags = 0;
        load->stamp_fits = false;
    }
    /* What the disk says is at most what we know, but for the first time. */
    cat->trailer.generation = load->reload ? generation : cat->trailer.generation + 1;
    cat->clean = load->stamp_fits && (cat->trailer.flags & CATALOGUE_CLEAN);
    if (!load->reload) {
        cat->change_base = load->has_trailer ? cat->trailer.changes : 0;
        if (cat->clean && cat->trailer.incarnation)
            cat->incarnation = cat->trailer.incarnation;
    }
    return 0;
}

static void
superblock_read(struct device_io *io, int result)
{
    struct catalogue_load *load = container_of(io, struct catalogue_load, io);
    struct catalogue *cat = load->cat;
    const struct pool_params *params = cat->pool->params;
    int r;

    if (result < 0) {
        thin_fail_code(&load->err, result, "read the superblock's trailer");
        finish(load, result, &load->err);
        return;
    }
    if (params && owner_mark_judge(load->superblock, params->owner_host, params->takeover,
                                   &load->err) == -THIN_E_BUSY) {
        finish(load, -THIN_E_BUSY, &load->err);
        return;
    }
    r = read_trailer(load);
    if (r < 0) {
        memcpy(cat->damage, load->err.text, sizeof(cat->damage));
        cat->trailer.dev_id = CATALOGUE_NONE;
        cat->unrecorded = true;
        reconcile(load);
        return;
    }
    if (params && params->import && params->import_catalogue_id) {
        /* The administrator names it: the newest whole root that it holds. */
        cat->trailer.dev_id = params->import_catalogue_id;
        load->probing = true;
        read_area(load);
        return;
    }
    if (!load->has_trailer || cat->trailer.dev_id == CATALOGUE_NONE) {
        cat->unrecorded = true;
        if (!load->reload) {
            cat->pool_record.created = 0;
            cat->pool_record.imported = true;
        }
        reconcile(load);
        return;
    }
    read_area(load);
}

int
catalogue_load_create(struct catalogue *cat)
{
    struct catalogue_load *load = calloc(1, sizeof(*load));

    if (!load)
        return -ENOMEM;
    cat->load = load;
    load->cat = cat;
    load->pages = malloc((size_t)CATALOGUE_IO_PAGES * CATALOGUE_PAGE_BYTES);
    return load->pages ? 0 : -ENOMEM;
}

void
catalogue_load_destroy(struct catalogue_load *load)
{
    if (!load)
        return;
    free(load->pages);
    free(load);
}

void
catalogue_load(struct catalogue *cat, bool reload, struct pool_done done)
{
    struct catalogue_load *load = cat->load;
    uint8_t *pages = load->pages;

    memset(load, 0, sizeof(*load));
    load->pages = pages;
    load->cat = cat;
    load->done = done;
    load->reload = reload;
    load->keep = reload && cat->unrecorded && !cat->damage[0];
    cat->present = false;
    cat->damage[0] = '\0';
    if (!load->keep) {
        catalogue_records_fini(&cat->records);
        catalogue_records_init(&cat->records);
        cat->unrecorded = false;
    }
    catalogue_area_reset(cat);
    load->iov.iov_base = load->superblock;
    load->iov.iov_len = sizeof(load->superblock);
    load->io.op = DEVICE_READ;
    load->io.len = sizeof(load->superblock);
    load->io.iov = &load->iov;
    load->io.nr_iov = 1;
    load->io.done = superblock_read;
    device_submit(cat->pool->metadata_dev, &load->io);
}
