/* What the kinds of changes have in common: names, records, details of new devices. */
#include <errno.h>
#include <string.h>

#include "core/pool/admin_private.h"

int
admin_take_name(char ret[THIN_NAME_MAX + 1], const char *name, struct thin_error *err)
{
    int r = name_check(name, strlen(name), err);

    if (r == 0)
        memcpy(ret, name, strlen(name) + 1);
    return r;
}

int
admin_find(struct pool *pool, const char *name, struct catalogue_record **ret,
           struct thin_error *err)
{
    struct catalogue_record *record = catalogue_by_name(&pool->catalogue->records, name);

    if (!record)
        return thin_fail(err, -THIN_E_NOT_FOUND, "no volume %s", name);
    *ret = record;
    return 0;
}

int
admin_copy(const struct catalogue_record *record, struct catalogue_record **ret,
           struct thin_error *err)
{
    struct catalogue_record *copy = catalogue_record_copy(record);

    if (!copy)
        return thin_fail_code(err, -ENOMEM, "change a record");
    *ret = copy;
    return 0;
}

/* Of a group, each has its own time. */
static struct admin_snap *
snap_of(const struct admin_job *job, uint32_t dev_id)
{
    for (uint32_t i = 0; i < job->nr_snaps; i++)
        if (job->snaps[i].dev_id == dev_id)
            return &job->snaps[i];
    return NULL;
}

void
admin_guess_details(struct admin_job *job, struct catalogue_record *record, bool ticks)
{
    const struct superblock *sb = metadata_superblock(job->pool->md);
    const struct admin_snap *snap = snap_of(job, record->dev_id);

    if (snap && job->ticks_first) {
        record->transaction_id = sb->trans_id;
        record->creation_time = sb->time + 1;
        return;
    }
    if (snap && snap->looked) {
        record->transaction_id = snap->learned_txn;
        record->creation_time = snap->learned_time;
        return;
    }
    record->transaction_id = job->looked ? job->learned_txn : sb->trans_id;
    record->creation_time = job->looked ? job->learned_time : sb->time + (ticks ? 1 : 0);
}

int
admin_check_details(struct admin_job *job, uint32_t dev_id, struct thin_error *err)
{
    struct device_details details;
    struct admin_snap *snap;
    bool found = false;
    int r = metadata_get_device(job->pool->md, dev_id, &details, &found, err);

    if (r < 0)
        return r;
    if (!found)
        return thin_fail(err, -THIN_E_BAD_BLOCK, "device %u is not where it was made",
                         dev_id);
    for (uint32_t i = 0; i < job->change.nr; i++) {
        const struct catalogue_record *record = job->change.items[i].record;

        if (!record || record->dev_id != dev_id ||
            (record->creation_time == details.creation_time &&
             record->transaction_id == details.transaction_id))
            continue;
        /* Whether time ticks is known only here; the record must say what it became. */
        job->again = true;
        snap = snap_of(job, dev_id);
        if (snap) {
            if (snap->looked || job->tries > 2)
                job->ticks_first = true;
            snap->looked = true;
            snap->learned_time = details.creation_time;
            snap->learned_txn = details.transaction_id;
            return thin_fail_code(err, -EAGAIN, "plan again");
        }
        job->looked = true;
        job->learned_time = details.creation_time;
        job->learned_txn = details.transaction_id;
        return thin_fail_code(err, -EAGAIN, "plan again");
    }
    return 0;
}
