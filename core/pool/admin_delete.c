/*
 * Deleting, and what is given back in the background: the devices of deleted volumes, and
 * what was beyond the end of shrunk ones. The record says what is to be done, so that it
 * goes on after a crash; between two steps the pool is an ordinary valid pool.
 *
 *    deleting ─ steps ─► device gone ─ tombstone (many at once) ─► no record
 *    trimming ─ steps ─► nothing beyond the end ─► an ordinary record
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/pool/admin_private.h"

static void background_next(struct admin *admin);

/* ---- delete ---------------------------------------------------------------------------------- */

static int
delete_plan(struct admin_job *job, struct thin_error *err)
{
    struct catalogue_record *record, *copy = NULL;
    int r = admin_find(job->pool, job->name, &record, err);

    if (r < 0)
        return r;
    if (volume_core_find(job->pool, record->dev_id))
        return thin_fail(err, -THIN_E_BUSY, "volume %s is open", job->name);
    if (record->flags & RECORD_PROTECTED)
        return thin_fail(err, -THIN_E_BUSY, "volume %s is protected", job->name);
    r = admin_copy(record, &copy, err);
    if (r < 0)
        return r;
    job->dev_id = copy->dev_id;
    copy->flags = RECORD_DELETING;
    copy->name[0] = '\0';
    free(copy->origin);
    free(copy->holder);
    free(copy->origin_identity);
    copy->origin = copy->holder = copy->origin_identity = NULL;
    copy->origin_size = 0;
    catalogue_change_put(&job->change, copy);
    return 0;
}

/*
 * In an imported pool that is full there is no room for a catalogue, and nothing but a
 * delete makes some. Then the device goes step by step before the answer: after a crash
 * what is left of it is there again.
 */
static int
delete_apply_bare(struct admin_job *job, struct thin_error *err)
{
    int r = metadata_delete_step(job->pool->md, job->dev_id,
                                 job->no_first_step ? 1 : DELETE_BUDGET, &job->flag, err);

    if (r == -THIN_E_NOT_FOUND) {
        job->flag = true;
        return 0;
    }
    return r;
}

static int
delete_apply(struct admin_job *job, struct thin_error *err)
{
    bool gone;
    int r;

    if (job->bare)
        return delete_apply_bare(job, err);
    if (volume_core_find(job->pool, job->dev_id))
        return thin_fail(err, -THIN_E_BUSY, "volume %s is open", job->name);
    if (job->no_first_step)
        return 0;
    /* A shared or small tree goes at once. */
    r = metadata_delete_step(job->pool->md, job->dev_id, DELETE_BUDGET, &gone, err);
    if (r < 0 && r != -THIN_E_WOULD_BLOCK && r != -THIN_E_NEED_COMMIT &&
        r != -THIN_E_CACHE_FULL) {
        /* Damage in its tree: the name goes all the same. */
        job->no_first_step = true;
        job->again = true;
    }
    return r;
}

static bool
delete_applied(struct admin_job *job)
{
    if (job->bare) {
        if (job->flag)
            limits_gone(job->pool, job->dev_id);
        if (job->flag)
            catalogue_records_remove(&job->pool->catalogue->records, job->dev_id);
        if (job->flag)
            counts_forget(job->pool, job->dev_id);
        return !job->flag;
    }
    limits_gone(job->pool, job->dev_id);
    counts_forget(job->pool, job->dev_id);
    admin_background_kick(job->pool->admin);
    return false;
}

static const struct admin_kind delete_kind = {
    .name = "delete a volume",
    .purse = TM_RESERVE,
    .bare = true,
    .has_first_step = true,
    .plan = delete_plan,
    .apply = delete_apply,
    .applied = delete_applied,
};

void
pool_volume_delete(struct pool *pool, const char *name, struct pool_done done)
{
    struct admin_job *job = admin_job_create(pool, &delete_kind, done);
    struct thin_error err;
    int r;

    if (!job)
        return;
    thin_error_init(&err);
    r = admin_take_name(job->name, name, &err);
    if (r < 0)
        admin_refuse(pool, job, done, r, &err);
    else
        admin_submit(job, false);
}

/* ---- the records' ends ------------------------------------------------------------------------- */

static int
bury_plan(struct admin_job *job, struct thin_error *err)
{
    (void)err;
    for (uint32_t i = 0; i < job->nr_ids; i++) {
        const struct catalogue_record *record =
            catalogue_by_id(&job->pool->catalogue->records, job->ids[i]);

        if (record && (record->flags & RECORD_DELETING))
            catalogue_change_remove(&job->change, job->ids[i]);
    }
    return 0;
}

static const struct admin_kind bury_kind = {
    .name = "forget a volume",
    .purse = TM_RESERVE,
    .plan = bury_plan,
};

static int
trimmed_plan(struct admin_job *job, struct thin_error *err)
{
    const struct catalogue_record *record =
        catalogue_by_id(&job->pool->catalogue->records, job->dev_id);
    struct catalogue_record *copy;
    int r;

    /* Shrunk once more meanwhile: another round will come to it. */
    if (!record || !(record->flags & RECORD_TRIMMING) || record->size != job->value)
        return 0;
    r = admin_copy(record, &copy, err);
    if (r < 0)
        return r;
    copy->flags &= ~(uint32_t)RECORD_TRIMMING;
    catalogue_change_put(&job->change, copy);
    return 0;
}

static const struct admin_kind trimmed_kind = {
    .name = "end a shrink",
    .purse = TM_RESERVE,
    .plan = trimmed_plan,
};

/* ---- the background ---------------------------------------------------------------------------- */

static void
background_run(struct thin_task *task)
{
    background_next(container_of(task, struct admin, background.task));
}

static void
background_defer(struct admin *admin)
{
    admin->background.task.run = background_run;
    loop_defer(admin->pool->loop, &admin->background.task);
}

void
admin_background_kick(struct admin *admin)
{
    struct admin_background *bg = &admin->background;

    bg->again = true;
    if (bg->running || admin->stopping)
        return;
    bg->running = true;
    background_defer(admin);
}

static void
background_end(struct admin *admin)
{
    admin->background.running = false;
    admin->background.nr_buried = 0;
    admin_check_stopped(admin);
}

/* The device at hand cannot be dealt with now; others can. */
static void
background_skip(struct admin *admin, const char *what, int result,
                const struct thin_error *err)
{
    struct admin_background *bg = &admin->background;

    if (result != -THIN_E_ROLLED_BACK && result != -THIN_E_SHUTDOWN)
        log_warning("%s fails, it goes on when the pool is opened again pool=%s "
                    "device=%u: %s",
                    what, admin->pool->name, bg->dev_id, thin_error_text(err, result));
    bg->next_id = (uint64_t)bg->dev_id + 1;
    background_defer(admin);
}

static int
delete_run(struct metaop *op, struct thin_error *err)
{
    struct admin *admin = container_of(op, struct admin, background.op);
    struct admin_background *bg = &admin->background;
    int r;

    bg->gone = false;
    r = metadata_delete_step(admin->pool->md, bg->dev_id, bg->budget, &bg->gone, err);
    if (r == -THIN_E_NOT_FOUND) {
        bg->gone = true;
        return 0;
    }
    return r;
}

static void trim_look(struct admin *admin);

static void
delete_stepped(struct metaop *op, int result, const struct thin_error *err)
{
    struct admin *admin = container_of(op, struct admin, background.op);
    struct admin_background *bg = &admin->background;

    if (result == -THIN_E_NO_METADATA_SPACE && bg->budget > 1) {
        /* The fewer nodes it enters, the fewer counts change: that needs less room. */
        bg->budget = 1;
        metaop_start(admin->pool, op, false);
    } else if (result == -THIN_E_NO_METADATA_SPACE && !bg->empties) {
        bg->empties = true;
        bg->size = 0;
        trim_look(admin);
    } else if (result < 0) {
        background_skip(admin, "deleting a volume", result, err);
    } else if (bg->gone) {
        bg->buried[bg->nr_buried++] = bg->dev_id;
        bg->next_id = (uint64_t)bg->dev_id + 1;
        background_defer(admin);
    } else if (admin->stopping) {
        background_end(admin);
    } else {
        metaop_start(admin->pool, op, false);
    }
}

static void
delete_go_on(struct admin *admin)
{
    struct admin_background *bg = &admin->background;

    memset(&bg->op, 0, sizeof(bg->op));
    bg->op.run = delete_run;
    bg->op.done = delete_stepped;
    bg->op.purse = TM_RESERVE;
    bg->op.name = "delete step";
    metaop_start(admin->pool, &bg->op, false);
}

static void
record_ended(void *arg, int result, const struct thin_error *err)
{
    struct admin *admin = arg;

    if (result < 0 && result != -THIN_E_ROLLED_BACK)
        log_warning("a record could not be ended pool=%s: %s", admin->pool->name,
                    thin_error_text(err, result));
    background_defer(admin);
}

/* Tombstones for all that are gone. */
static void
bury(struct admin *admin)
{
    struct admin_background *bg = &admin->background;
    struct admin_job *job = admin_job_create(admin->pool, &bury_kind,
                                             (struct pool_done){record_ended, admin});

    if (job)
        job->ids = calloc(bg->nr_buried, sizeof(*job->ids));
    if (job && job->ids) {
        memcpy(job->ids, bg->buried, bg->nr_buried * sizeof(*job->ids));
        job->nr_ids = bg->nr_buried;
        admin_submit(job, true);
    } else if (job) {
        admin_refuse(admin->pool, job, job->done, -ENOMEM, NULL);
    }
    /* In any case record_ended follows. */
    bg->nr_buried = 0;
}

static void
trim_stepped(struct unmap *u, int result, const struct thin_error *err)
{
    struct admin *admin = container_of(u, struct admin, background.unmap);

    if (result < 0)
        background_skip(admin, "giving back what was beyond a volume's end", result, err);
    else if (admin->stopping)
        background_end(admin);
    else
        trim_look(admin); /* a write that was in flight may have mapped one more */
}

static void
trim_ended(struct admin *admin)
{
    struct admin_background *bg = &admin->background;
    struct admin_job *job = admin_job_create(admin->pool, &trimmed_kind,
                                             (struct pool_done){record_ended, admin});

    bg->next_id = (uint64_t)bg->dev_id + 1;
    if (!job)
        return; /* record_ended was arranged */
    job->dev_id = bg->dev_id;
    job->value = bg->size;
    admin_submit(job, true);
}

static int
highest_run(struct metaop *op, struct thin_error *err)
{
    struct admin *admin = container_of(op, struct admin, background.op);
    struct admin_background *bg = &admin->background;

    bg->mapped = false;
    return metadata_highest_mapped(admin->pool->md, bg->dev_id, &bg->highest, &bg->mapped,
                                   err);
}

static void
highest_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct admin *admin = container_of(op, struct admin, background.op);
    struct admin_background *bg = &admin->background;
    uint64_t begin = div_up_u64(bg->size, admin->pool->block_size);

    if (result < 0) {
        background_skip(admin, "giving back what was beyond a volume's end", result, err);
        return;
    }
    if (!bg->mapped || bg->highest < begin) {
        if (bg->empties)
            delete_go_on(admin);
        else
            trim_ended(admin);
        return;
    }
    memset(&bg->unmap, 0, sizeof(bg->unmap));
    bg->unmap.done = trim_stepped;
    bg->unmap.dev_id = bg->dev_id;
    bg->unmap.purse = TM_RESERVE;
    bg->unmap.begin = begin;
    bg->unmap.end = bg->highest + 1;
    unmap_start(admin->pool, &bg->unmap);
}

static void
trim_look(struct admin *admin)
{
    struct admin_background *bg = &admin->background;

    memset(&bg->op, 0, sizeof(bg->op));
    bg->op.run = highest_run;
    bg->op.done = highest_done;
    bg->op.name = "look beyond the end";
    bg->op.reads_only = true;
    metaop_start(admin->pool, &bg->op, false);
}

static void
background_next(struct admin *admin)
{
    struct admin_background *bg = &admin->background;
    struct pool *pool = admin->pool;
    const struct catalogue_record *record = NULL;

    if (admin->stopping || pool_may_change(pool, NULL) < 0) {
        background_end(admin);
        return;
    }
    if (bg->again) {
        bg->again = false;
        bg->next_id = 0;
        /* Those that are gone already stand there until they are buried. */
        if (bg->nr_buried > 0) {
            bury(admin);
            return;
        }
    }
    if (bg->next_id <= DEV_ID_MAX)
        record = catalogue_next_pending(&pool->catalogue->records, (uint32_t)bg->next_id);
    if (bg->nr_buried > 0 && (!record || bg->nr_buried == POOL_GROUP_MAX)) {
        bury(admin);
        return;
    }
    if (!record) {
        background_end(admin);
        return;
    }
    bg->dev_id = record->dev_id;
    bg->empties = false;
    if (record->flags & RECORD_DELETING) {
        bg->budget = DELETE_BUDGET;
        delete_go_on(admin);
    } else {
        bg->size = record->size;
        trim_look(admin);
    }
}
