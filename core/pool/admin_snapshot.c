/* Snapshots, alone and in groups, and rolling a volume back to one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "core/base/seeded_bug.h"
#include "core/pool/admin_private.h"

/* ---- waiting for the origins' older writes ---------------------------------------------------- */

static void
quiesced(struct quiesce *q)
{
    struct admin_snap *snap = container_of(q, struct admin_snap, quiesce);
    struct admin_job *job = snap->job;

    volume_core_put(snap->core);
    if (--job->nr_quiescing == 0)
        admin_job_commit(job);
}

/*
 * Writes in flight when the root was shared belong to the snapshot: it is durable when
 * they have ended and a data flush and a commit begun after that have succeeded.
 */
static bool
snapshot_after(struct admin_job *job)
{
    job->nr_quiescing = 0;
    if (seeded_bug(SEEDED_SNAPSHOT_EARLY))
        return false;
    for (uint32_t i = 0; i < job->nr_snaps; i++) {
        struct admin_snap *snap = &job->snaps[i];
        struct volume_core *core = volume_core_find(job->pool, snap->origin_id);

        if (!core)
            continue;
        snap->job = job;
        snap->core = core;
        snap->quiesce.done = quiesced;
        volume_core_hold(core); /* its last handle may close meanwhile */
        job->nr_quiescing++;
        volume_core_quiesce(core, &snap->quiesce);
    }
    return job->nr_quiescing > 0;
}

/* What the origins have reserved must fit once more, since all that they map is shared;
   and their sizes, where over-commit has a limit. */
static int
judge_reserved(struct admin_job *job, struct thin_error *err)
{
    uint32_t ids[POOL_GROUP_MAX];
    uint64_t more = 0;
    int r;

    for (uint32_t i = 0; i < job->nr_snaps; i++) {
        const struct catalogue_record *record =
            catalogue_by_id(&job->pool->catalogue->records, job->snaps[i].origin_id);

        ids[i] = job->snaps[i].origin_id;
        more += record ? record->size : 0;
    }
    r = limits_judge_virtual(job->pool, more, err);
    return r < 0 ? r : limits_judge_shared(job->pool, ids, job->nr_snaps, err);
}

static int
snapshot_apply(struct admin_job *job, struct thin_error *err)
{
    int result = judge_reserved(job, err);

    if (result == 0 && job->ticks_first)
        result = metadata_tick(job->pool->md, err);
    if (result < 0)
        return result;
    for (uint32_t i = 0; i < job->nr_snaps; i++) {
        struct admin_snap *snap = &job->snaps[i];
        struct device_details details;
        bool found = false;
        int r;

        r = metadata_create_snap(job->pool->md, snap->dev_id, snap->origin_id, err);
        if (r == 0)
            r = admin_check_details(job, snap->dev_id, err);
        /* All of a group are looked at before it is planned again, and those whose blocks
           have to be read first are waited for. */
        if (r == -EAGAIN && job->again) {
            result = r;
            continue;
        }
        if (r == 0)
            r = metadata_get_device(job->pool->md, snap->origin_id, &details, &found,
                                    err);
        if (r != 0)
            return r;
        snap->snapshotted_time = details.snapshotted_time;
    }
    return result;
}

/* The pool's time has 24 bits: its end is told early, at each half of what was left. */
static void
ticks_look(struct pool *pool)
{
    uint32_t left = POOL_TIME_MAX - metadata_superblock(pool->md)->time;
    char words[96];

    if (left > POOL_TICKS_FEW || (left & (left - 1)) != 0)
        return;
    snprintf(words, sizeof(words), "only %u more snapshots can be told apart", left);
    log_warning("%s pool=%s", words, pool->name);
    pool_tell(pool, "few-snapshots-left", words);
}

static bool
snapshot_applied(struct admin_job *job)
{
    for (uint32_t i = 0; i < job->nr_snaps; i++) {
        struct admin_snap *snap = &job->snaps[i];
        struct volume_core *core = volume_core_find(job->pool, snap->origin_id);

        catalogue_id_used(job->pool->catalogue, snap->dev_id);
        if (core)
            volume_core_set_time(core, snap->snapshotted_time);
        limits_shared(job->pool, snap->origin_id);
    }
    ticks_look(job->pool);
    admin_background_kick(job->pool->admin);
    return false;
}

/* ---- snapshot ------------------------------------------------------------------------------------ */

static int
plan_one(struct admin_job *job, struct admin_snap *snap, struct thin_error *err)
{
    struct catalogue *cat = job->pool->catalogue;
    struct catalogue_record *origin, *record = NULL;
    int r = admin_find(job->pool, snap->origin, &origin, err);

    if (r == 0 && catalogue_by_name(&cat->records, snap->name))
        r = thin_fail(err, -THIN_E_EXISTS, "there is a volume %s already", snap->name);
    if (r == 0)
        r = admin_copy(origin, &record, err);
    if (r != 0)
        return r;
    /* What is beyond a trimming origin's end is beyond the snapshot's too. */
    record->flags &= RECORD_TRIMMING | RECORD_SIZE_UNKNOWN;
    record->dev_id = snap->dev_id;
    record->uid = catalogue_pick_uid(cat);
    record->parent_uid = origin->uid;
    record->created = pool_wall_clock(job->pool);
    record->epoch = record->session = 0;
    record->reserve = record->quota = 0;
    record->encoded_bytes = 0;
    admin_guess_details(job, record, true);
    catalogue_change_put(&job->change, record);
    snap->origin_id = origin->dev_id;
    r = catalogue_record_set(&record->holder, NULL);
    if (r == 0)
        r = catalogue_record_set(&record->name, snap->name);
    return r < 0 ? thin_fail_code(err, r, "take a snapshot") : 0;
}

static int
snapshot_plan(struct admin_job *job, struct thin_error *err)
{
    struct catalogue *cat = job->pool->catalogue;
    uint32_t next = cat->next_dev_id;
    int r = 0;

    for (uint32_t i = 0; i < job->nr_snaps && r == 0; i++) {
        struct admin_snap *snap = &job->snaps[i];

        r = catalogue_pick_id(cat, &snap->dev_id, err);
        if (r == 0) {
            /* So that the next pick is another one. */
            catalogue_id_used(cat, snap->dev_id);
            r = plan_one(job, snap, err);
        }
    }
    cat->next_dev_id = next;
    /* Round about the end of the ids two picks could meet. */
    for (uint32_t i = 0; i < job->nr_snaps && r == 0; i++)
        for (uint32_t j = 0; j < i && r == 0; j++)
            if (job->snaps[i].dev_id == job->snaps[j].dev_id)
                r = thin_fail(err, -THIN_E_LIMIT, "every device id is in use");
    return r;
}

static const struct admin_kind snapshot_kind = {
    .name = "take a snapshot",
    .purse = TM_NORMAL,
    .growth = GROWS_NEW,
    .plan = snapshot_plan,
    .apply = snapshot_apply,
    .applied = snapshot_applied,
    .after = snapshot_after,
};

static int
take_snap(struct admin_job *job, uint32_t i, const char *origin, const char *name,
          struct thin_error *err)
{
    struct admin_snap *snap = &job->snaps[i];
    int r = admin_take_name(snap->origin, origin, err);

    if (r == 0)
        r = admin_take_name(snap->name, name, err);
    for (uint32_t j = 0; j < i && r == 0; j++)
        if (strcmp(job->snaps[j].name, snap->name) == 0)
            r = thin_fail(err, -THIN_E_EXISTS, "%s is named twice", snap->name);
    return r;
}

void
pool_volume_snapshot(struct pool *pool, const char *const *origins,
                     const char *const *names, uint32_t nr, struct pool_done done)
{
    struct admin_job *job = admin_job_create(pool, &snapshot_kind, done);
    struct thin_error err;
    int r = 0;

    if (!job)
        return;
    thin_error_init(&err);
    if (nr == 0 || nr > POOL_GROUP_MAX)
        r = thin_fail(&err, -THIN_E_INVALID, "a group of %u volumes, 1 to %u are allowed",
                      nr, POOL_GROUP_MAX);
    if (r == 0) {
        job->snaps = calloc(nr, sizeof(*job->snaps));
        if (!job->snaps)
            r = thin_fail_code(&err, -ENOMEM, "take a snapshot");
    }
    for (uint32_t i = 0; i < nr && r == 0; i++)
        r = take_snap(job, i, origins[i], names[i], &err);
    if (r < 0) {
        admin_refuse(pool, job, done, r, &err);
        return;
    }
    job->nr_snaps = nr;
    admin_submit(job, false);
}

/* ---- rollback --------------------------------------------------------------------------------------- */

static int
rollback_judge(struct admin_job *job, const struct catalogue_record *volume,
               const struct catalogue_record *from, struct thin_error *err)
{
    if (volume == from)
        return thin_fail(err, -THIN_E_INVALID, "%s cannot be rolled back to itself",
                         job->name);
    if (volume_core_find(job->pool, volume->dev_id))
        return thin_fail(err, -THIN_E_BUSY, "volume %s is open", job->name);
    if (volume->flags & RECORD_READ_ONLY)
        return thin_fail(err, -THIN_E_READ_ONLY, "volume %s is read-only", job->name);
    if (volume->flags & RECORD_PROTECTED)
        return thin_fail(err, -THIN_E_BUSY, "volume %s is protected", job->name);
    return 0;
}

/* A snapshot of the snapshot takes the volume's place; the volume's device is deleted. */
static int
rollback_plan(struct admin_job *job, struct thin_error *err)
{
    struct catalogue *cat = job->pool->catalogue;
    struct catalogue_record *volume, *from = NULL, *old = NULL, *new;
    struct admin_snap *snap = &job->snaps[0];
    int r = admin_find(job->pool, job->name, &volume, err);

    if (r == 0)
        r = admin_find(job->pool, job->other, &from, err);
    if (r == 0)
        r = rollback_judge(job, volume, from, err);
    if (r == 0)
        r = catalogue_pick_id(cat, &snap->dev_id, err);
    if (r == 0)
        r = admin_copy(volume, &old, err);
    if (r != 0)
        return r;
    job->dev_id = volume->dev_id;
    snap->origin_id = from->dev_id;
    old->flags = RECORD_DELETING;
    catalogue_change_put(&job->change, old);
    old->name[0] = '\0';
    r = admin_copy(volume, &new, err);
    if (r < 0)
        return r;
    new->dev_id = snap->dev_id;
    new->size = from->size;
    new->reserve = job->reserve = min_u64(new->reserve, new->size);
    new->flags &= ~(uint32_t)(RECORD_TRIMMING | RECORD_SIZE_UNKNOWN);
    new->flags |= from->flags &(RECORD_TRIMMING | RECORD_SIZE_UNKNOWN);
    new->epoch++;
    new->encoded_bytes = 0;
    new->origin_size = from->origin_size;
    admin_guess_details(job, new, true);
    catalogue_change_put(&job->change, new);
    r = catalogue_record_set(&new->origin, from->origin);
    if (r == 0)
        r = catalogue_record_set(&new->origin_identity, from->origin_identity);
    return r < 0 ? thin_fail_code(err, r, "roll back a volume") : 0;
}

static int
rollback_apply(struct admin_job *job, struct thin_error *err)
{
    int r;

    if (volume_core_find(job->pool, job->dev_id))
        return thin_fail(err, -THIN_E_BUSY, "volume %s is open", job->name);
    if (limits_prepare(job->pool) < 0)
        return thin_fail_code(err, -ENOMEM, "reserve");
    /* All that it maps will be shared, under its new number. */
    r = limits_judge_rollback(job->pool, job->dev_id, job->reserve,
                              job->snaps[0].origin_id, err);
    return r < 0 ? r : snapshot_apply(job, err);
}

static bool
rollback_applied(struct admin_job *job)
{
    limits_gone(job->pool, job->dev_id);
    if (job->reserve)
        limits_follow(job->pool, job->snaps[0].dev_id, job->reserve, false);
    return snapshot_applied(job);
}

static const struct admin_kind rollback_kind = {
    .name = "roll back a volume",
    .purse = TM_NORMAL,
    .growth = GROWS_NEW,
    .plan = rollback_plan,
    .apply = rollback_apply,
    .applied = rollback_applied,
    .after = snapshot_after,
};

void
pool_volume_rollback(struct pool *pool, const char *name, const char *snapshot,
                     struct pool_done done)
{
    struct admin_job *job = admin_job_create(pool, &rollback_kind, done);
    struct thin_error err;
    int r;

    if (!job)
        return;
    thin_error_init(&err);
    r = admin_take_name(job->name, name, &err);
    if (r == 0)
        r = admin_take_name(job->other, snapshot, &err);
    if (r == 0) {
        job->snaps = calloc(1, sizeof(*job->snaps));
        if (!job->snaps)
            r = thin_fail_code(&err, -ENOMEM, "roll back a volume");
    }
    if (r < 0) {
        admin_refuse(pool, job, done, r, &err);
        return;
    }
    job->nr_snaps = 1;
    admin_submit(job, false);
}
