/*
 * Writing the catalogue anew, in bounded steps, while changes go on in the old area. A
 * record whose id the cursor has passed is noted when it changes, and written again
 * behind the rest. States: catalogue_private.h; each is left in the function named after
 * what has ended.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/pool/catalogue_private.h"

#define TRIM_BUDGET    16u  /* nodes entered by one step of giving back blocks */
#define RECORD_ASSUMED 192u /* bytes of a record that was never encoded */

static void fill(struct catalogue_checkpoint *ck);
static void map_more(struct catalogue_checkpoint *ck, uint64_t nr_pages);

int
catalogue_checkpoint_create(struct catalogue *cat)
{
    struct catalogue_checkpoint *ck = calloc(1, sizeof(*ck));

    if (!ck)
        return -ENOMEM;
    ck->cat = cat;
    cat->checkpoint = ck;
    ck->pages = calloc(CATALOGUE_FILL_PAGES, CATALOGUE_PAGE_BYTES);
    return ck->pages ? 0 : -ENOMEM;
}

void
catalogue_checkpoint_destroy(struct catalogue_checkpoint *ck)
{
    if (!ck)
        return;
    free(ck->changed);
    free(ck->pages);
    free(ck);
}

/* ---- ends ---------------------------------------------------------------------------------- */

static void
fail(struct catalogue_checkpoint *ck, int result, const struct thin_error *err)
{
    bool asked = ck->state >= CHECKPOINT_ENDING;

    ck->state = CHECKPOINT_IDLE;
    ck->nr_changed = 0;
    if (asked)
        ck->finished(ck->cat, result, err);
    else
        ck->written(ck->cat, result, err);
}

/* True if a roll-back came between: then the end is told, and nothing may go on. */
static bool
ended_by_roll_back(struct catalogue_checkpoint *ck)
{
    if (!ck->cancelled)
        return false;
    thin_fail_code(&ck->err, -THIN_E_ROLLED_BACK, "write the catalogue anew");
    fail(ck, -THIN_E_ROLLED_BACK, &ck->err);
    return true;
}

static void
settled(struct catalogue_checkpoint *ck)
{
    ck->state = CHECKPOINT_IDLE;
    if (ck->settled)
        ck->settled(ck->cat);
}

static void
cancelled_run(struct thin_task *task)
{
    struct catalogue_checkpoint *ck =
        container_of(task, struct catalogue_checkpoint, task);

    ended_by_roll_back(ck);
}

void
catalogue_checkpoint_cancel(struct catalogue *cat)
{
    struct catalogue_checkpoint *ck = cat->checkpoint;

    if (ck->state == CHECKPOINT_IDLE || ck->cancelled)
        return;
    ck->cancelled = true;
    if (ck->state == CHECKPOINT_WRITTEN) {
        ck->task.run = cancelled_run;
        loop_defer(cat->pool->loop, &ck->task);
    }
}

void
catalogue_checkpoint_note(struct catalogue *cat, uint32_t dev_id)
{
    struct catalogue_checkpoint *ck = cat->checkpoint;

    if (ck->state == CHECKPOINT_IDLE || ck->state >= CHECKPOINT_ENDING ||
        dev_id >= ck->cursor)
        return;
    if (ck->nr_changed == ck->max_changed) {
        uint32_t max = ck->max_changed ? 2 * ck->max_changed : 64;
        uint32_t *grown = reallocarray(ck->changed, max, sizeof(*grown));

        if (!grown) {
            ck->lost = true;
            return;
        }
        ck->changed = grown;
        ck->max_changed = max;
    }
    ck->changed[ck->nr_changed++] = dev_id;
}

/* ---- giving back ------------------------------------------------------------------------------ */

static int
trim_run(struct metaop *op, struct thin_error *err)
{
    struct catalogue_checkpoint *ck = container_of(op, struct catalogue_checkpoint, op);
    uint64_t unmapped;

    return metadata_unmap_step(ck->cat->pool->md, ck->cat->trailer.dev_id, ck->trim_begin,
                               ck->trim_end, TRIM_BUDGET, &ck->trim_reached, &unmapped,
                               err);
}

static void
trim_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct catalogue_checkpoint *ck = container_of(op, struct catalogue_checkpoint, op);
    struct catalogue *cat = ck->cat;
    struct catalogue_area *area = &cat->areas[!cat->current];

    if (result < 0 || ck->cancelled) {
        if (result < 0 && !ck->cancelled)
            log_warning("room of the catalogue is not given back pool=%s: %s",
                        cat->pool->name, thin_error_text(err, result));
        settled(ck);
        return;
    }
    ck->trim_end = ck->trim_reached;
    area->nr_blocks = ck->trim_end - area->begin / pages_per_block(cat);
    if (ck->trim_end > ck->trim_begin)
        metaop_start(cat->pool, op, false);
    else
        settled(ck);
}

static void
trim(struct catalogue_checkpoint *ck)
{
    struct catalogue *cat = ck->cat;
    struct catalogue_area *area = &cat->areas[!cat->current];
    uint64_t live = catalogue_pages_for(cat->records.live_bytes);
    uint64_t keep = div_up_u64(catalogue_spare_need(cat, 0, 0) + live + CATALOGUE_SLACK,
                               pages_per_block(cat));

    if (area->nr_blocks <= keep) {
        settled(ck);
        return;
    }
    ck->state = CHECKPOINT_TRIMMING;
    ck->trim_begin = area->begin / pages_per_block(cat) + keep;
    ck->trim_end = area->begin / pages_per_block(cat) + area->nr_blocks;
    memset(&ck->op, 0, sizeof(ck->op));
    ck->op.run = trim_run;
    ck->op.done = trim_done;
    ck->op.purse = TM_RESERVE;
    ck->op.name = "catalogue trim";
    metaop_start(cat->pool, &ck->op, false);
}

static void
turn_durable(struct commit_wait *wait, int result)
{
    struct catalogue_checkpoint *ck =
        container_of(wait, struct catalogue_checkpoint, wait);

    if (result < 0 || ck->cancelled)
        settled(ck);
    else
        trim(ck);
}

/* ---- the turn of the root ----------------------------------------------------------------------- */

static int
turn_run(struct metaop *op, struct thin_error *err)
{
    struct catalogue_checkpoint *ck = container_of(op, struct catalogue_checkpoint, op);

    (void)err;
    catalogue_set_trailer(ck->cat, &ck->root, ck->cat->trailer.dev_id);
    return 0;
}

static void
turn_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct catalogue_checkpoint *ck = container_of(op, struct catalogue_checkpoint, op);
    struct catalogue *cat = ck->cat;
    bool first = cat->trailer.root.nr_pages == 0;

    if (ended_by_roll_back(ck))
        return;
    if (result < 0) {
        fail(ck, result, err);
        return;
    }
    cat->trailer.root = ck->root;
    cat->current = ck->area;
    cat->unrecorded = false;
    ck->nr_changed = 0;
    ck->state = CHECKPOINT_SETTLING;
    ck->finished(cat, 0, NULL);
    if (first) {
        /* No durable root reaches the other area. */
        settled(ck);
        return;
    }
    memset(&ck->wait, 0, sizeof(ck->wait));
    ck->wait.done = turn_durable;
    ck->wait.txn = commit_last_txn(cat->pool);
    ck->wait.flush_data = true;
    commit_join(cat->pool, &ck->wait);
}

/* ---- pages --------------------------------------------------------------------------------------- */

/* Appends encoded bytes to the pages being filled; false: no page is left. */
static bool
append(struct catalogue_checkpoint *ck, uint32_t *len_bytes, const uint8_t *bytes,
       uint32_t n)
{
    struct catalogue_root *root = &ck->root;

    if (*len_bytes + n > CATALOGUE_PAYLOAD_BYTES) {
        if (ck->nr_filled + 1 == CATALOGUE_FILL_PAGES)
            return false;
        root->sequence++;
        root->last_crc =
            catalogue_page_seal(ck->pages + (size_t)ck->nr_filled * CATALOGUE_PAGE_BYTES,
                                ck->cat->trailer.uuid, root->first + root->nr_pages,
                                root->sequence, root->last_crc, *len_bytes);
        root->nr_pages++;
        ck->nr_filled++;
        *len_bytes = 0;
    }
    memcpy(ck->pages + (size_t)ck->nr_filled * CATALOGUE_PAGE_BYTES +
               CATALOGUE_HEADER_BYTES + *len_bytes,
           bytes, n);
    *len_bytes += n;
    return true;
}

static void
seal_last(struct catalogue_checkpoint *ck, uint32_t len_bytes)
{
    struct catalogue_root *root = &ck->root;

    if (len_bytes == 0)
        return;
    root->sequence++;
    root->last_crc = catalogue_page_seal(
        ck->pages + (size_t)ck->nr_filled * CATALOGUE_PAGE_BYTES, ck->cat->trailer.uuid,
        root->first + root->nr_pages, root->sequence, root->last_crc, len_bytes);
    root->nr_pages++;
    ck->nr_filled++;
}

static int
append_record(struct catalogue_checkpoint *ck, uint32_t *len_bytes,
              struct catalogue_record *record, bool *ret_fits, struct thin_error *err)
{
    uint8_t one[CATALOGUE_PAYLOAD_BYTES];
    int n = catalogue_encode_record(record, one, err);

    if (n < 0)
        return n;
    *ret_fits = append(ck, len_bytes, one, (uint32_t)n);
    if (*ret_fits) {
        ck->cat->records.live_bytes += (uint64_t)n - record->encoded_bytes;
        record->encoded_bytes = (uint32_t)n;
    }
    return 0;
}

/* Records by id, then the pool's own. */
static int
fill_records(struct catalogue_checkpoint *ck, uint32_t *len_bytes, struct thin_error *err)
{
    uint8_t one[CATALOGUE_PAYLOAD_BYTES];
    bool fits = true;

    while (!ck->ended && fits) {
        struct catalogue_record *record =
            catalogue_next_id(&ck->cat->records, ck->cursor);

        if (record) {
            int r = append_record(ck, len_bytes, record, &fits, err);

            if (r < 0)
                return r;
            if (fits)
                ck->cursor = record->dev_id + 1;
        } else {
            uint32_t n = catalogue_encode_pool(&ck->cat->pool_record, one);

            /* Also an id that is made later is behind it. */
            ck->cursor = DEV_ID_MAX + 1;
            ck->ended = fits = append(ck, len_bytes, one, n);
        }
    }
    return 0;
}

/* What changed behind the cursor. */
static int
fill_changed(struct catalogue_checkpoint *ck, uint32_t *len_bytes, struct thin_error *err)
{
    uint8_t one[CATALOGUE_PAYLOAD_BYTES];
    bool fits = true;

    while (ck->pos_changed < ck->nr_changed && fits) {
        uint32_t dev_id = ck->changed[ck->pos_changed];
        struct catalogue_record *record = catalogue_by_id(&ck->cat->records, dev_id);

        if (record) {
            int r = append_record(ck, len_bytes, record, &fits, err);

            if (r < 0)
                return r;
        } else {
            fits = append(ck, len_bytes, one, catalogue_encode_tombstone(dev_id, one));
        }
        if (fits)
            ck->pos_changed++;
    }
    return 0;
}

static void
pages_written(struct catalogue_io *cio, int result)
{
    struct catalogue_checkpoint *ck = container_of(cio, struct catalogue_checkpoint, io);

    if (ended_by_roll_back(ck))
        return;
    if (result < 0) {
        thin_fail_code(&ck->err, result, "write the catalogue anew");
        fail(ck, result, &ck->err);
        return;
    }
    ck->nr_filled = 0;
    if (ck->state == CHECKPOINT_WRITING && ck->ended) {
        ck->state = CHECKPOINT_WRITTEN;
        ck->written(ck->cat, 0, NULL);
        return;
    }
    if (ck->state == CHECKPOINT_WRITING || ck->pos_changed < ck->nr_changed) {
        fill(ck);
        return;
    }
    ck->state = CHECKPOINT_TURNING;
    memset(&ck->op, 0, sizeof(ck->op));
    ck->op.run = turn_run;
    ck->op.done = turn_done;
    ck->op.purse = TM_RESERVE;
    ck->op.name = "catalogue turn";
    metaop_start(ck->cat->pool, &ck->op, false);
}

static void
write_pages(struct catalogue_checkpoint *ck)
{
    struct catalogue *cat = ck->cat;

    memset(&ck->io, 0, sizeof(ck->io));
    ck->io.done = pages_written;
    ck->io.pool = cat->pool;
    ck->io.area = &cat->areas[ck->area];
    ck->io.write = true;
    ck->io.page = ck->root.first + ck->root.nr_pages - ck->nr_filled;
    ck->io.nr_pages = ck->nr_filled;
    ck->io.bytes = ck->pages;
    catalogue_io_start(&ck->io);
}

static void
fill(struct catalogue_checkpoint *ck)
{
    uint32_t len_bytes = 0;
    int r;

    ck->nr_filled = 0;
    if (ck->state == CHECKPOINT_WRITING)
        r = fill_records(ck, &len_bytes, &ck->err);
    else
        r = fill_changed(ck, &len_bytes, &ck->err);
    if (r < 0) {
        fail(ck, r, &ck->err);
        return;
    }
    seal_last(ck, len_bytes);
    if (ck->root.nr_pages <= area_pages(ck->cat, ck->area))
        write_pages(ck);
    else
        map_more(ck, ck->root.nr_pages + CATALOGUE_KEEP);
}

/* ---- room ---------------------------------------------------------------------------------------- */

static void
mapped(struct catalogue_mapping *m, int result, const struct thin_error *err)
{
    struct catalogue_checkpoint *ck =
        container_of(m, struct catalogue_checkpoint, mapping);
    struct catalogue *cat = ck->cat;

    if (ended_by_roll_back(ck))
        return;
    if (ck->state == CHECKPOINT_MAPPING) {
        /* More than it must be: without it, what is mapped may be enough. */
        if (result < 0 && area_pages(cat, ck->area) == 0) {
            fail(ck, result, err);
            return;
        }
        ck->state = CHECKPOINT_WRITING;
        fill(ck);
    } else if (ck->root.nr_pages <= area_pages(cat, ck->area)) {
        write_pages(ck);
    } else {
        fail(ck, result, err);
    }
}

static void
map_more(struct catalogue_checkpoint *ck, uint64_t nr_pages)
{
    ck->mapping.done = mapped;
    ck->mapping.area = ck->area;
    ck->mapping.nr_blocks = div_up_u64(nr_pages, pages_per_block(ck->cat));
    catalogue_map(ck->cat, &ck->mapping);
}

static void
begin_writing(struct catalogue_checkpoint *ck)
{
    struct catalogue *cat = ck->cat;
    uint64_t live_bytes = cat->records.live_bytes;

    if (cat->unrecorded)
        live_bytes = max_u64(live_bytes, cat->records.by_id.nr_items * RECORD_ASSUMED);
    ck->area = !cat->current;
    ck->root.first = cat->areas[ck->area].begin;
    ck->root.nr_pages = 0;
    ck->root.last_crc = 0;
    ck->root.sequence = ((cat->trailer.root.sequence >> 32) + 1) << 32;
    ck->state = CHECKPOINT_MAPPING;
    map_more(ck, catalogue_pages_for(live_bytes) + CATALOGUE_KEEP + CATALOGUE_SLACK);
}

static int
make_run(struct metaop *op, struct thin_error *err)
{
    struct catalogue_checkpoint *ck = container_of(op, struct catalogue_checkpoint, op);
    static const struct catalogue_root no_root;
    int r;

    r = metadata_create_thin(ck->cat->pool->md, ck->new_dev_id, err);
    if (r < 0)
        return thin_wrap(err, r, "make the catalogue's device %u", ck->new_dev_id);
    catalogue_set_trailer(ck->cat, &no_root, ck->new_dev_id);
    return 0;
}

static void
make_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct catalogue_checkpoint *ck = container_of(op, struct catalogue_checkpoint, op);
    struct catalogue *cat = ck->cat;

    if (ended_by_roll_back(ck))
        return;
    if (result < 0) {
        fail(ck, result, err);
        return;
    }
    catalogue_area_reset(cat);
    cat->trailer.dev_id = ck->new_dev_id;
    memset(&cat->trailer.root, 0, sizeof(cat->trailer.root));
    cat->present = true;
    cat->current = 1;
    begin_writing(ck);
}

static void
start_run(struct thin_task *task)
{
    struct catalogue_checkpoint *ck =
        container_of(task, struct catalogue_checkpoint, task);
    struct catalogue *cat = ck->cat;
    int r;

    if (ended_by_roll_back(ck))
        return;
    if (cat->present) {
        begin_writing(ck);
        return;
    }
    r = catalogue_pick_hidden_id(cat, &ck->new_dev_id, &ck->err);
    if (r < 0) {
        fail(ck, r, &ck->err);
        return;
    }
    memset(&ck->op, 0, sizeof(ck->op));
    ck->op.run = make_run;
    ck->op.done = make_done;
    ck->op.purse = TM_NORMAL;
    ck->op.name = "catalogue make";
    metaop_start(cat->pool, &ck->op, false);
}

void
catalogue_checkpoint_start(struct catalogue *cat)
{
    struct catalogue_checkpoint *ck = cat->checkpoint;

    THIN_ASSERT(ck->state == CHECKPOINT_IDLE);
    ck->state = CHECKPOINT_MAKING;
    ck->cancelled = false;
    ck->lost = false;
    ck->ended = false;
    ck->cursor = 0;
    ck->nr_changed = ck->pos_changed = 0;
    ck->nr_filled = 0;
    ck->task.run = start_run;
    loop_defer(cat->pool->loop, &ck->task);
}

static void
finish_run(struct thin_task *task)
{
    struct catalogue_checkpoint *ck =
        container_of(task, struct catalogue_checkpoint, task);

    if (ended_by_roll_back(ck))
        return;
    if (ck->lost) {
        thin_fail_code(&ck->err, -ENOMEM, "write the catalogue anew");
        fail(ck, -ENOMEM, &ck->err);
        return;
    }
    fill(ck);
}

void
catalogue_checkpoint_finish(struct catalogue *cat)
{
    struct catalogue_checkpoint *ck = cat->checkpoint;

    THIN_ASSERT(ck->state == CHECKPOINT_WRITTEN);
    ck->state = CHECKPOINT_ENDING;
    ck->task.run = finish_run;
    loop_defer(cat->pool->loop, &ck->task);
}
