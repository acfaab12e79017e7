/* What there is: names from memory at once, mapped blocks from the details tree. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/pool/admin_private.h"
#include "core/pool/origin.h"

#define DETAILS_A_STEP 16u /* devices looked at by one operation */

struct list_request {
    struct pool *pool;
    admin_list_fn fn;
    void *arg;
    bool one; /* of a name, which must be there */
    bool with_exclusive;
    bool has_after;
    char name[THIN_NAME_MAX + 1]; /* the one, or the one before the first */
    uint32_t max;
    struct volume_info *infos;
    uint32_t nr, pos, stepped;
    struct metaop op;
    struct thin_task task;
};

/* The names' room is the struct's own: a record's name is never longer. */
static void
put_string(char *to, size_t bytes, const char *from)
{
    size_t n = from ? strnlen(from, bytes - 1) : 0;

    if (n)
        memcpy(to, from, n);
    to[n] = '\0';
}

static void
fill_info(struct pool *pool, const struct catalogue_record *record,
          struct volume_info *info)
{
    const struct volume_core *core = volume_core_find(pool, record->dev_id);
    const struct catalogue_record *parent = NULL;

    memset(info, 0, sizeof(*info));
    if (record->parent_uid)
        parent = catalogue_by_uid(&pool->catalogue->records, record->parent_uid);
    put_string(info->name, sizeof(info->name), record->name);
    put_string(info->parent, sizeof(info->parent), parent ? parent->name : NULL);
    put_string(info->origin, sizeof(info->origin), record->origin);
    put_string(info->attachment.holder, sizeof(info->attachment.holder), record->holder);
    info->dev_id = record->dev_id;
    info->size = record->size;
    info->size_unknown = record->flags & RECORD_SIZE_UNKNOWN;
    info->created = record->created;
    info->read_only = record->flags & RECORD_READ_ONLY;
    info->deleting = record->flags & RECORD_DELETING;
    info->is_protected = record->flags & RECORD_PROTECTED;
    info->damaged = pool_volume_is_damaged(pool, record->dev_id);
    info->origin_changed = info->origin[0] && origin_noted_changed(pool, record->dev_id);
    info->reserve = record->reserve;
    info->quota = record->quota;
    info->open_count = core ? core->nr_handles : 0;
    info->attachment.epoch = record->epoch;
    info->attachment.session = record->session;
    info->attachment.shared = record->flags & RECORD_SHARED;
}

bool
pool_volume_peek(struct pool *pool, const char *name, struct volume_info *ret_info)
{
    const struct catalogue_record *record =
        catalogue_by_name(&pool->catalogue->records, name);

    if (!record)
        return false;
    fill_info(pool, record, ret_info);
    return true;
}

bool
pool_volume_next(struct pool *pool, const char *after, struct volume_info *ret_info)
{
    const struct catalogue_record *record =
        catalogue_next_name(&pool->catalogue->records, after);

    if (!record)
        return false;
    fill_info(pool, record, ret_info);
    return true;
}

/* ---- lists ------------------------------------------------------------------------------------ */

static void
list_end(struct list_request *list, int result, const struct thin_error *err)
{
    struct admin *admin = list->pool->admin;

    list->fn(list->arg, result, err, result < 0 ? NULL : list->infos,
             result < 0 ? 0 : list->nr);
    free(list->infos);
    free(list);
    admin->nr_reads--;
    admin_check_stopped(admin);
}

static int
details_run(struct metaop *op, struct thin_error *err)
{
    struct list_request *list = container_of(op, struct list_request, op);
    uint32_t block_size = list->pool->block_size;

    for (list->stepped = 0;
         list->stepped < DETAILS_A_STEP && list->pos + list->stepped < list->nr;
         list->stepped++) {
        struct volume_info *info = &list->infos[list->pos + list->stepped];
        struct device_details details;
        bool found = false;
        int r = metadata_get_device(list->pool->md, info->dev_id, &details, &found, err);

        if (r == -THIN_E_WOULD_BLOCK && list->stepped > 0)
            return 0; /* what is known counts */
        if (r < 0)
            return r;
        info->mapped = found ? details.mapped_blocks * block_size : 0;
    }
    return 0;
}

static void
details_done(struct metaop *op, int result, const struct thin_error *err)
{
    struct list_request *list = container_of(op, struct list_request, op);

    list->pos += list->stepped;
    if (result < 0 || list->pos == list->nr)
        list_end(list, result, err);
    else
        metaop_start(list->pool, op, false);
}

static void
list_read(struct list_request *list)
{
    struct pool *pool = list->pool;
    const struct catalogue_records *records = &pool->catalogue->records;
    const struct catalogue_record *record;
    struct thin_error err;

    if (list->one)
        record = catalogue_by_name(records, list->name);
    else
        record = catalogue_next_name(records, list->has_after ? list->name : NULL);
    if (list->one && !record) {
        thin_error_init(&err);
        list_end(list, thin_fail(&err, -THIN_E_NOT_FOUND, "no volume %s", list->name),
                 &err);
        return;
    }
    while (record && list->nr < list->max) {
        struct volume_info *info = &list->infos[list->nr++];

        fill_info(pool, record, info);
        if (list->with_exclusive)
            info->exclusive = record->exclusive * pool->block_size;
        record = catalogue_next_name(records, record->name);
    }
    if (list->nr == 0) {
        list_end(list, 0, NULL);
        return;
    }
    list->op.run = details_run;
    list->op.done = details_done;
    list->op.name = "list volumes";
    list->op.reads_only = true;
    metaop_start(pool, &list->op, false);
}

static void
counted(void *arg, int result, const struct thin_error *err)
{
    struct list_request *list = arg;

    if (result < 0)
        list_end(list, result, err);
    else
        list_read(list);
}

static void
list_run(struct thin_task *task)
{
    list_read(container_of(task, struct list_request, task));
}

static void
list_start(struct pool *pool, const char *name, bool one, uint32_t max,
           bool with_exclusive, admin_list_fn fn, void *arg)
{
    struct list_request *list = NULL;
    struct thin_error err;
    int r = 0;

    thin_error_init(&err);
    if (pool->admin->stopping)
        r = thin_fail(&err, -THIN_E_SHUTDOWN, "the pool is being closed");
    else if (name && strlen(name) > THIN_NAME_MAX)
        r = thin_fail(&err, -THIN_E_INVALID, "name of more than %d bytes", THIN_NAME_MAX);
    if (r == 0) {
        list = calloc(1, sizeof(*list));
        max = max < ADMIN_LIST_MAX ? max : ADMIN_LIST_MAX;
        if (list)
            list->infos = calloc(max ? max : 1, sizeof(*list->infos));
        if (!list || !list->infos)
            r = thin_fail_code(&err, -ENOMEM, "list volumes");
    }
    if (r < 0) {
        free(list);
        admin_refuse_list(pool, fn, arg, r, &err);
        return;
    }
    list->pool = pool;
    list->fn = fn;
    list->arg = arg;
    list->one = one;
    list->max = max;
    list->with_exclusive = with_exclusive;
    list->has_after = name != NULL;
    put_string(list->name, sizeof(list->name), name);
    pool->admin->nr_reads++;
    if (with_exclusive) {
        exclusive_count(pool, (struct pool_done){counted, list});
    } else {
        list->task.run = list_run;
        loop_defer(pool->loop, &list->task);
    }
}

void
pool_volume_list(struct pool *pool, const char *after, uint32_t max, bool with_exclusive,
                 void (*fn)(void *arg, int result, const struct thin_error *err,
                            const struct volume_info *infos, uint32_t nr),
                 void *arg)
{
    list_start(pool, after, false, max, with_exclusive, fn, arg);
}

void
pool_volume_show(struct pool *pool, const char *name, bool with_exclusive,
                 void (*fn)(void *arg, int result, const struct thin_error *err,
                            const struct volume_info *infos, uint32_t nr),
                 void *arg)
{
    list_start(pool, name, true, 1, with_exclusive, fn, arg);
}
