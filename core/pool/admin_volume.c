/* Create, resize, rename, set, attach: changes of one record. */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/pool/admin_private.h"
#include "core/pool/origin.h"

static int
check_size(uint64_t size, struct thin_error *err)
{
    if (size == 0 || size % SECTOR_SIZE)
        return thin_fail(err, -THIN_E_INVALID,
                         "a size of %" PRIu64 " bytes is no multiple of %u above 0", size,
                         SECTOR_SIZE);
    if (size > VOLUME_BYTES_MAX)
        return thin_fail(err, -THIN_E_LIMIT,
                         "a size of %" PRIu64 " bytes, at most %llu are allowed", size,
                         VOLUME_BYTES_MAX);
    return 0;
}

static int
check_free(struct pool *pool, const char *name, struct thin_error *err)
{
    if (catalogue_by_name(&pool->catalogue->records, name))
        return thin_fail(err, -THIN_E_EXISTS, "there is a volume %s already", name);
    return 0;
}

static int
check_limits(uint64_t size, uint64_t reserve, uint64_t quota, struct thin_error *err)
{
    if (reserve > size)
        return thin_fail(err, -THIN_E_INVALID,
                         "a reservation of %" PRIu64 " bytes for a volume of %" PRIu64,
                         reserve, size);
    if (quota && quota < reserve)
        return thin_fail(err, -THIN_E_INVALID,
                         "a quota of %" PRIu64 " bytes under a reservation of %" PRIu64,
                         quota, reserve);
    return 0;
}

/* ---- create -------------------------------------------------------------------------------- */

static int
create_plan(struct admin_job *job, struct thin_error *err)
{
    struct catalogue *cat = job->pool->catalogue;
    struct catalogue_record *record;
    int r;

    r = check_free(job->pool, job->name, err);
    if (r == 0)
        r = catalogue_pick_id(cat, &job->dev_id, err);
    if (r < 0)
        return r;
    record = catalogue_record_create(job->dev_id, job->name);
    if (!record)
        return thin_fail_code(err, -ENOMEM, "make a record");
    record->uid = catalogue_pick_uid(cat);
    record->size = job->value;
    record->reserve = job->reserve;
    record->quota = job->quota;
    record->origin_size = job->origin_size;
    record->created = pool_wall_clock(job->pool);
    admin_guess_details(job, record, false);
    catalogue_change_put(&job->change, record);
    r = catalogue_record_set(&record->origin, job->origin);
    if (r == 0)
        r = catalogue_record_set(&record->origin_identity, job->origin_identity);
    return r < 0 ? thin_fail_code(err, r, "make a record") : 0;
}

static int
create_apply(struct admin_job *job, struct thin_error *err)
{
    int r = limits_prepare(job->pool);

    if (r < 0)
        return thin_fail_code(err, r, "reserve");
    r = limits_judge(job->pool, UINT32_MAX, job->reserve, false, err);
    if (r == 0)
        r = limits_judge_virtual(job->pool, job->value, err);
    if (r == 0)
        r = metadata_create_thin(job->pool->md, job->dev_id, err);
    return r < 0 ? r : admin_check_details(job, job->dev_id, err);
}

static bool
create_applied(struct admin_job *job)
{
    catalogue_id_used(job->pool->catalogue, job->dev_id);
    origin_note_gone(job->pool, job->dev_id);
    if (job->reserve)
        limits_follow(job->pool, job->dev_id, job->reserve, true);
    return false;
}

static const struct admin_kind create_kind = {
    .name = "create a volume",
    .purse = TM_NORMAL,
    .growth = GROWS_NEW,
    .plan = create_plan,
    .apply = create_apply,
    .applied = create_applied,
};

/* The origin was looked at: the volume is made of what it is now. */
static void
create_probed(void *arg, int result, const struct thin_error *err, const char *identity,
              uint64_t size)
{
    struct admin_job *job = arg;
    struct admin *admin = job->pool->admin;
    struct thin_error words;

    admin->nr_reads--;
    thin_error_init(&words);
    if (err)
        words = *err;
    if (result == 0) {
        job->origin_size = size;
        job->origin_identity = strdup(identity);
        if (!job->origin_identity)
            result = thin_fail_code(&words, -ENOMEM, "make a record");
    } else {
        thin_wrap(&words, result, "open the origin");
    }
    if (result < 0)
        admin_refuse(job->pool, job, job->done, result, &words);
    else
        admin_submit(job, false);
    admin_check_stopped(admin);
}

static int
take_origin(struct admin_job *job, const char *origin, struct thin_error *err)
{
    if (!job->pool->origin_open)
        return thin_fail(err, -THIN_E_UNSUPPORTED, "external origins are not served");
    if (strlen(origin) >= POOL_ORIGIN_MAX)
        return thin_fail(err, -THIN_E_LIMIT, "an origin's name of more than %u bytes",
                         POOL_ORIGIN_MAX - 1);
    if (job->pool->admin->stopping)
        return thin_fail(err, -THIN_E_SHUTDOWN, "the pool is being closed");
    job->origin = strdup(origin);
    return job->origin ? 0 : thin_fail_code(err, -ENOMEM, "make a record");
}

void
pool_volume_create(struct pool *pool, const struct volume_spec *spec,
                   struct pool_done done)
{
    struct admin_job *job = admin_job_create(pool, &create_kind, done);
    struct thin_error err;
    int r;

    if (!job)
        return;
    thin_error_init(&err);
    r = admin_take_name(job->name, spec->name, &err);
    if (r == 0)
        r = check_size(spec->size, &err);
    if (r == 0 && spec->origin && *spec->origin)
        r = take_origin(job, spec->origin, &err);
    if (r == 0)
        r = check_limits(spec->size, spec->reserve, spec->quota, &err);
    if (r < 0) {
        admin_refuse(pool, job, done, r, &err);
        return;
    }
    job->value = spec->size;
    job->reserve = spec->reserve;
    job->quota = spec->quota;
    if (job->origin) {
        pool->admin->nr_reads++;
        origin_probe(pool, job->origin, create_probed, job);
    } else {
        admin_submit(job, false);
    }
}

/* ---- resize -------------------------------------------------------------------------------- */

static int
resize_plan(struct admin_job *job, struct thin_error *err)
{
    struct catalogue_record *record, *copy = NULL;
    int r = admin_find(job->pool, job->name, &record, err);

    if (r < 0 || (record->size == job->value && !(record->flags & RECORD_SIZE_UNKNOWN)))
        return r;
    if (record->flags & RECORD_READ_ONLY)
        return thin_fail(err, -THIN_E_READ_ONLY, "volume %s is read-only", job->name);
    if (job->value < record->size && !job->flag)
        return thin_fail(err, -THIN_E_INVALID,
                         "volume %s has %" PRIu64 " bytes; shrinking it to %" PRIu64
                         " would discard what is beyond; say --allow-shrink to mean it",
                         job->name, record->size, job->value);
    if (job->value > record->size && (record->flags & RECORD_TRIMMING))
        return thin_fail(err, -THIN_E_BUSY,
                         "what was beyond the end of volume %s is still being given back",
                         job->name);
    if (job->value > record->size) {
        r = limits_judge_virtual(job->pool, job->value - record->size, err);
        if (r < 0)
            return r;
    }
    r = admin_copy(record, &copy, err);
    if (r < 0)
        return r;
    if (job->value < record->size) {
        copy->flags |= RECORD_TRIMMING;
        /* Should it grow again, what is beyond reads as zeros. */
        copy->origin_size = min_u64(copy->origin_size, job->value);
        copy->epoch++; /* who writes by the old size must not go on unseen */
    }
    copy->flags &= ~(uint32_t)RECORD_SIZE_UNKNOWN;
    copy->size = job->value;
    copy->reserve = job->reserve = min_u64(copy->reserve, copy->size);
    job->dev_id = copy->dev_id;
    catalogue_change_put(&job->change, copy);
    return 0;
}

static bool
resize_applied(struct admin_job *job)
{
    struct volume_core *core = volume_core_find(job->pool, job->dev_id);

    if (core) {
        if (job->value < core->size)
            core->origin_size = min_u64(core->origin_size, job->value);
        volume_core_set_size(core, job->value);
    }
    limits_follow(job->pool, job->dev_id, job->reserve, false);
    admin_background_kick(job->pool->admin);
    return false;
}

static const struct admin_kind resize_kind = {
    .name = "resize a volume",
    .purse = TM_RESERVE,
    .plan = resize_plan,
    .applied = resize_applied,
};

/*
 * The last block of a volume that shrinks stays mapped if a part of it is left; what is
 * beyond the new end must read as zeros should the volume grow again. So it is zeroed
 * while the volume still has its old size.
 */
struct shrink_tail {
    struct admin_job *job;
    struct volume *volume;
    struct volume_io io;
};

static void
tail_end(struct shrink_tail *tail, int result, const struct thin_error *err)
{
    struct admin_job *job = tail->job;
    struct admin *admin = job->pool->admin;

    free(tail);
    admin->nr_reads--;
    if (result < 0)
        admin_refuse(job->pool, job, job->done, result, err);
    else
        admin_submit(job, false);
}

static void
tail_zeroed(struct volume_io *io, int result)
{
    struct shrink_tail *tail = container_of(io, struct shrink_tail, io);
    struct thin_error err;

    thin_error_init(&err);
    if (result < 0)
        thin_fail_code(&err, result, "zero what is beyond the new end");
    volume_close(tail->volume);
    tail_end(tail, result, &err);
}

static void
tail_opened(void *arg, struct volume *volume, int result, const struct thin_error *err)
{
    struct shrink_tail *tail = arg;
    struct admin_job *job = tail->job;
    uint64_t bs = job->pool->block_size, end, size;

    if (result < 0) {
        tail_end(tail, result, err);
        return;
    }
    /* Also beyond the old end: an external origin's data may stand there. */
    size = round_up_u64(volume_size(volume), bs);
    end = min_u64(size, round_up_u64(job->value, bs));
    tail->volume = volume;
    tail->io.op = VOLUME_WRITE_ZEROES;
    tail->io.flags = IO_LAST_BLOCK;
    tail->io.offset = min_u64(job->value, end);
    tail->io.len = end - tail->io.offset;
    tail->io.done = tail_zeroed;
    volume_submit(volume, &tail->io);
}

void
pool_volume_resize(struct pool *pool, const char *name, uint64_t size, bool allow_shrink,
                   struct pool_done done)
{
    struct admin_job *job = admin_job_create(pool, &resize_kind, done);
    const struct catalogue_record *record;
    struct shrink_tail *tail;
    struct thin_error err;
    int r;

    if (!job)
        return;
    thin_error_init(&err);
    r = admin_take_name(job->name, name, &err);
    if (r == 0)
        r = check_size(size, &err);
    if (r < 0) {
        admin_refuse(pool, job, done, r, &err);
        return;
    }
    job->value = size;
    job->flag = allow_shrink;
    record = catalogue_by_name(&pool->catalogue->records, name);
    if (!record || !allow_shrink || size >= record->size ||
        (record->flags & RECORD_READ_ONLY) || size % pool->block_size == 0 ||
        pool->admin->stopping) {
        admin_submit(job, false);
        return;
    }
    tail = calloc(1, sizeof(*tail));
    if (!tail) {
        thin_fail_code(&err, -ENOMEM, "%s", resize_kind.name);
        admin_refuse(pool, job, done, -ENOMEM, &err);
        return;
    }
    tail->job = job;
    pool->admin->nr_reads++;
    pool_volume_open(pool, name, false, tail_opened, tail);
}

/* ---- rename -------------------------------------------------------------------------------- */

static int
rename_plan(struct admin_job *job, struct thin_error *err)
{
    struct catalogue_record *record, *copy = NULL;
    int r = admin_find(job->pool, job->name, &record, err);

    if (r < 0 || strcmp(job->name, job->other) == 0)
        return r;
    r = check_free(job->pool, job->other, err);
    if (r == 0)
        r = admin_copy(record, &copy, err);
    if (r < 0)
        return r;
    job->dev_id = copy->dev_id;
    catalogue_change_put(&job->change, copy);
    r = catalogue_record_set(&copy->name, job->other);
    return r < 0 ? thin_fail_code(err, r, "rename") : 0;
}

static bool
rename_applied(struct admin_job *job)
{
    struct volume_core *core = volume_core_find(job->pool, job->dev_id);

    if (core)
        volume_core_set_name(core, job->other);
    return false;
}

static const struct admin_kind rename_kind = {
    .name = "rename a volume",
    .purse = TM_RESERVE,
    .growth = GROWS_NEW,
    .plan = rename_plan,
    .applied = rename_applied,
};

void
pool_volume_rename(struct pool *pool, const char *name, const char *new_name,
                   struct pool_done done)
{
    struct admin_job *job = admin_job_create(pool, &rename_kind, done);
    struct thin_error err;
    int r;

    if (!job)
        return;
    thin_error_init(&err);
    r = admin_take_name(job->name, name, &err);
    if (r == 0)
        r = admin_take_name(job->other, new_name, &err);
    if (r < 0)
        admin_refuse(pool, job, done, r, &err);
    else
        admin_submit(job, false);
}

/* ---- set ------------------------------------------------------------------------------------- */

static int
set_limit_plan(struct admin_job *job, const struct catalogue_record *record,
               struct thin_error *err)
{
    bool is_reserve = job->key == VOLUME_RESERVE;
    uint64_t reserve = is_reserve ? job->value : record->reserve;
    uint64_t quota = is_reserve ? record->quota : job->value;
    struct catalogue_record *copy = NULL;
    int r = check_limits(record->size, reserve, quota, err);

    job->dev_id = record->dev_id;
    if (r < 0 || (reserve == record->reserve && quota == record->quota))
        return r;
    r = admin_copy(record, &copy, err);
    if (r < 0)
        return r;
    copy->reserve = reserve;
    copy->quota = quota;
    catalogue_change_put(&job->change, copy);
    return 0;
}

static int
set_apply(struct admin_job *job, struct thin_error *err)
{
    int r;

    if (job->key != VOLUME_RESERVE)
        return 0;
    r = limits_prepare(job->pool);
    if (r < 0)
        return thin_fail_code(err, r, "reserve");
    return limits_judge(job->pool, job->dev_id, job->value, false, err);
}

static int
set_plan(struct admin_job *job, struct thin_error *err)
{
    struct catalogue_record *record, *copy = NULL;
    uint32_t flag = job->key == VOLUME_READ_ONLY ? RECORD_READ_ONLY : RECORD_PROTECTED;
    uint32_t flags;
    int r = admin_find(job->pool, job->name, &record, err);

    if (r < 0)
        return r;
    if (job->key == VOLUME_RESERVE || job->key == VOLUME_QUOTA)
        return set_limit_plan(job, record, err);
    flags = job->value ? record->flags | flag : record->flags & ~flag;
    if (flags == record->flags)
        return 0;
    r = admin_copy(record, &copy, err);
    if (r < 0)
        return r;
    copy->flags = flags;
    job->dev_id = copy->dev_id;
    catalogue_change_put(&job->change, copy);
    return 0;
}

static bool
set_applied(struct admin_job *job)
{
    struct volume_core *core = volume_core_find(job->pool, job->dev_id);

    if (core && job->key == VOLUME_READ_ONLY)
        core->read_only = job->value != 0;
    if (core && job->key == VOLUME_QUOTA)
        core->quota = div_up_u64(job->value, job->pool->block_size);
    if (job->key == VOLUME_RESERVE)
        limits_follow(job->pool, job->dev_id, job->value, false);
    return false;
}

static const struct admin_kind set_kind = {
    .name = "set a volume",
    .purse = TM_RESERVE,
    .growth = GROWS_RECORDS,
    .plan = set_plan,
    .apply = set_apply,
    .applied = set_applied,
};

void
pool_volume_set(struct pool *pool, const char *name, enum volume_key key, uint64_t value,
                struct pool_done done)
{
    struct admin_job *job = admin_job_create(pool, &set_kind, done);
    struct thin_error err;
    int r;

    if (!job)
        return;
    thin_error_init(&err);
    r = admin_take_name(job->name, name, &err);
    if (r == 0 && (key == VOLUME_READ_ONLY || key == VOLUME_PROTECTED) && value > 1)
        r = thin_fail(&err, -THIN_E_INVALID, "%" PRIu64 " is neither 0 nor 1", value);
    if (r < 0) {
        admin_refuse(pool, job, done, r, &err);
        return;
    }
    job->key = key;
    job->value = value;
    admin_submit(job, false);
}

/* ---- attach ---------------------------------------------------------------------------------- */

static int
attach_plan(struct admin_job *job, struct thin_error *err)
{
    const struct pool_attachment *attachment = job->attachment;
    struct catalogue_record *record, *copy = NULL;
    uint32_t flags;
    int r = admin_find(job->pool, job->name, &record, err);

    if (r < 0)
        return r;
    if (attachment->epoch < record->epoch)
        return thin_fail(err, -THIN_E_STALE,
                         "volume %s is at attachment %" PRIu64 ", not at %" PRIu64,
                         job->name, record->epoch, attachment->epoch);
    flags = (record->flags & ~(uint32_t)RECORD_SHARED) |
            (attachment->shared ? RECORD_SHARED : 0);
    if (attachment->epoch == record->epoch && attachment->session == record->session &&
        flags == record->flags &&
        strcmp(attachment->holder, record->holder ? record->holder : "") == 0)
        return 0;
    r = admin_copy(record, &copy, err);
    if (r < 0)
        return r;
    copy->flags = flags;
    copy->epoch = attachment->epoch;
    copy->session = attachment->session;
    catalogue_change_put(&job->change, copy);
    r = catalogue_record_set(&copy->holder, attachment->holder);
    return r < 0 ? thin_fail_code(err, r, "attach") : 0;
}

static const struct admin_kind attach_kind = {
    .name = "attach a volume",
    .purse = TM_RESERVE,
    .growth = GROWS_RECORDS,
    .bare = true, /* a full imported pool is served; its epochs live in memory */
    .plan = attach_plan,
};

void
pool_volume_attach(struct pool *pool, const char *name,
                   const struct pool_attachment *attachment, struct pool_done done)
{
    struct admin_job *job = admin_job_create(pool, &attach_kind, done);
    struct thin_error err;
    int r;

    if (!job)
        return;
    thin_error_init(&err);
    r = admin_take_name(job->name, name, &err);
    if (r == 0 && !memchr(attachment->holder, 0, sizeof(attachment->holder)))
        r = thin_fail(&err, -THIN_E_INVALID, "a holder's name of more than %u bytes",
                      POOL_HOLDER_MAX - 1);
    if (r == 0) {
        job->attachment = malloc(sizeof(*job->attachment));
        if (!job->attachment)
            r = thin_fail_code(&err, -ENOMEM, "attach");
    }
    if (r < 0) {
        admin_refuse(pool, job, done, r, &err);
        return;
    }
    *job->attachment = *attachment;
    admin_submit(job, false);
}
