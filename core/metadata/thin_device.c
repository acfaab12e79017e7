/*
 * Devices as records: the cache of them, and create, snapshot, delete.
 *
 * Create and delete change both trees in their operation; later changes of a device's
 * details (mapped blocks, snapshotted time) stand in memory until the merge.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "core/base/log.h"
#include "core/base/seeded_bug.h"
#include "core/metadata/metadata_private.h"

/* ---- the cache -------------------------------------------------------------------- */

static void
device_drop(struct metadata *md, struct md_device *dev)
{
    THIN_ASSERT(!dev->now.changed);
    THIN_ASSERT(!dev->touched);
    THIN_ASSERT(md->by_id);
    HASH_DEL(md->by_id, dev);
    TAILQ_REMOVE(&md->used, dev, use_link);
    md->nr_devices--;
    free(dev);
}

/* Makes room by letting the least recently used go that is neither changed nor part of
   the open operation. */
static void
devices_shrink(struct metadata *md)
{
    struct md_device *dev, *next;

    for (dev = TAILQ_FIRST(&md->used); dev && md->nr_devices >= DEVICES_CACHED_MAX;
         dev = next) {
        next = TAILQ_NEXT(dev, use_link);
        if (!dev->now.changed && !dev->touched)
            device_drop(md, dev);
    }
}

/* Puts a new element with `words` into the cache. NULL: no memory. */
static struct md_device *
device_add(struct metadata *md, uint32_t id, const struct md_words *words)
{
    struct md_device *dev;

    devices_shrink(md);
    dev = calloc(1, sizeof(*dev));
    if (!dev)
        return NULL;
    dev->id = id;
    dev->now = *words;
    HASH_ADD(hh, md->by_id, id, sizeof(dev->id), dev);
    if (!dev->hh.tbl) {
        free(dev);
        return NULL;
    }
    TAILQ_INSERT_TAIL(&md->used, dev, use_link);
    md->nr_devices++;
    return dev;
}

static struct md_device *
device_find(struct metadata *md, uint32_t id)
{
    struct md_device *dev;

    HASH_FIND(hh, md->by_id, &id, sizeof(id), dev);
    return dev;
}

static int
read_details(struct metadata *md, uint32_t id, struct device_details *ret,
             bool *ret_found, struct thin_error *err)
{
    uint8_t value[VALUE_SIZE_DETAILS];
    bool found;
    int r;

    r = btree_lookup(&md->details, md->now.sb.device_details_root, id, value, &found,
                     err);
    if (r < 0)
        return thin_wrap(err, r, "read the details of device %" PRIu32, id);
    if (found)
        device_details_decode(ret, value);
    *ret_found = found;
    return 0;
}

static int
no_such_device(uint32_t id, struct thin_error *err)
{
    return thin_fail(err, -THIN_E_NOT_FOUND, "there is no device %" PRIu32, id);
}

int
device_get(struct metadata *md, uint32_t id, struct md_device **ret_dev,
           struct thin_error *err)
{
    struct md_device *dev = device_find(md, id);
    struct md_words words = {.times_end = 0};
    uint8_t value[VALUE_SIZE_MAPPING];
    bool found;
    int r;

    if (dev) {
        if (dev->now.absent)
            return no_such_device(id, err);
        if (dev != TAILQ_LAST(&md->used, md_device_list)) {
            TAILQ_REMOVE(&md->used, dev, use_link);
            TAILQ_INSERT_TAIL(&md->used, dev, use_link);
        }
        *ret_dev = dev;
        return 0;
    }

    r = md_check_open(md, err);
    if (r < 0)
        return r;
    r = read_details(md, id, &words.details, &found, err);
    if (r < 0)
        return r;
    if (!found)
        return no_such_device(id, err);
    r = btree_lookup(&md->top, md->now.sb.data_mapping_root, id, value, &found, err);
    if (r < 0)
        return thin_wrap(err, r, "find the mappings of device %" PRIu32, id);
    if (!found)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "device %" PRIu32 " has details but no mapping tree", id);
    words.root = load_le64(value);
    /* Had the open operation put a mapping in, the device would be here: so the time
       that counts is the one before its own tick. */
    words.times_end = (md->op_open ? md->before.sb.time : md->now.sb.time) + 1;

    dev = device_add(md, id, &words);
    if (!dev)
        return thin_fail_code(err, -ENOMEM, "remember device %" PRIu32, id);
    *ret_dev = dev;
    return 0;
}

void
device_touch(struct metadata *md, struct md_device *dev)
{
    THIN_ASSERT(md->op_open);
    if (dev->touched)
        return;
    dev->before = dev->now;
    dev->touched = true;
    TAILQ_INSERT_TAIL(&md->touched, dev, touched_link);
}

static void
device_mark_changed(struct metadata *md, struct md_device *dev)
{
    if (dev->now.changed)
        return;
    dev->now.changed = true;
    TAILQ_INSERT_TAIL(&md->changed, dev, changed_link);
    md->nr_changed++;
}

int
device_note_details(struct metadata *md, struct md_device *dev, struct thin_error *err)
{
    THIN_ASSERT(dev->touched);
    if (!dev->now.changed && md->nr_changed >= DEVICES_CHANGED_MAX)
        return thin_fail(err, -THIN_E_NEED_COMMIT,
                         "%u devices changed in one transaction", DEVICES_CHANGED_MAX);
    device_mark_changed(md, dev);
    return 0;
}

void
device_clear_changed(struct metadata *md, struct md_device *dev)
{
    if (!dev->now.changed)
        return;
    dev->now.changed = false;
    TAILQ_REMOVE(&md->changed, dev, changed_link);
    md->nr_changed--;
}

void
devices_undo(struct metadata *md)
{
    struct md_device *dev;

    while ((dev = TAILQ_FIRST(&md->touched))) {
        TAILQ_REMOVE(&md->touched, dev, touched_link);
        dev->touched = false;
        if (dev->before.changed)
            device_mark_changed(md, dev);
        else
            device_clear_changed(md, dev);
        dev->now = dev->before;
        if (dev->now.absent)
            device_drop(md, dev);
    }
}

void
devices_keep(struct metadata *md)
{
    struct md_device *dev;

    while ((dev = TAILQ_FIRST(&md->touched))) {
        TAILQ_REMOVE(&md->touched, dev, touched_link);
        dev->touched = false;
        if (dev->now.absent)
            device_drop(md, dev);
    }
}

void
devices_forget(struct metadata *md)
{
    struct md_device *dev;

    while ((dev = TAILQ_FIRST(&md->used))) {
        device_clear_changed(md, dev);
        if (dev->touched)
            TAILQ_REMOVE(&md->touched, dev, touched_link);
        dev->touched = false;
        device_drop(md, dev);
    }
}

/* ---- the two levels ---------------------------------------------------------------- */

static int
replace_root(struct metadata *md, uint32_t id, mblock_t root, struct thin_error *err)
{
    uint8_t value[VALUE_SIZE_MAPPING];
    mblock_t top;
    bool inserted;
    int r;

    store_le64(value, root);
    r = btree_insert(&md->top_replace, md->now.sb.data_mapping_root, id, value, &top,
                     &inserted, err);
    if (r < 0)
        return thin_wrap(err, r, "store the root of device %" PRIu32, id);
    if (inserted)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "device %" PRIu32 " has no entry in the top-level tree", id);
    md->now.sb.data_mapping_root = top;
    return 0;
}

int
device_make_private(struct metadata *md, struct md_device *dev, struct thin_error *err)
{
    int r;

    device_touch(md, dev);
    if (dev->now.private_txn == md->txn && dev->now.private_gen == md->now.share_gen)
        return 0;
    r = replace_root(md, dev->id, dev->now.root, err);
    if (r < 0)
        return r;
    dev->now.private_txn = md->txn;
    dev->now.private_gen = md->now.share_gen;
    md->now.changed = true;
    return 0;
}

int
device_set_root(struct metadata *md, struct md_device *dev, mblock_t root,
                struct thin_error *err)
{
    int r;

    THIN_ASSERT(dev->touched);
    if (root == dev->now.root)
        return 0;
    r = replace_root(md, dev->id, root, err);
    if (r < 0)
        return r;
    dev->now.root = root;
    return 0;
}

/* ---- reading ----------------------------------------------------------------------- */

int
metadata_get_device(struct metadata *md, uint32_t id, struct device_details *ret,
                    bool *ret_found, struct thin_error *err)
{
    const struct md_device *dev = device_find(md, id);
    int r;

    if (dev) {
        if (!dev->now.absent)
            *ret = dev->now.details;
        *ret_found = !dev->now.absent;
        return 0;
    }
    r = md_check_open(md, err);
    if (r < 0)
        return r;
    return read_details(md, id, ret, ret_found, err);
}

int
metadata_next_device(struct metadata *md, uint32_t id, uint32_t *ret_id,
                     struct device_details *ret, bool *ret_found, struct thin_error *err)
{
    uint8_t value[VALUE_SIZE_DETAILS];
    const struct md_device *dev;
    uint64_t key;
    bool found;
    int r;

    r = md_check_open(md, err);
    if (r < 0)
        return r;
    r = btree_lookup_next(&md->details, md->now.sb.device_details_root, id, &key, value,
                          &found, err);
    if (r < 0)
        return thin_wrap(err, r, "find the device after %" PRIu32, id);
    if (!found) {
        *ret_found = false;
        return 0;
    }
    if (key > DEV_ID_MAX)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "details of device %" PRIu64 ", ids end at %u", key, DEV_ID_MAX);
    dev = device_find(md, (uint32_t)key);
    if (dev)
        *ret = dev->now.details;
    else
        device_details_decode(ret, value);
    *ret_id = (uint32_t)key;
    *ret_found = true;
    return 0;
}

/* ---- create ------------------------------------------------------------------------ */

static int
check_new_id(struct metadata *md, uint32_t id, struct thin_error *err)
{
    struct device_details unused;
    bool found;
    int r;

    if (id > DEV_ID_MAX)
        return thin_fail(err, -THIN_E_INVALID, "device id %" PRIu32 ", ids end at %u", id,
                         DEV_ID_MAX);
    r = metadata_get_device(md, id, &unused, &found, err);
    if (r < 0)
        return r;
    if (found)
        return thin_fail(err, -THIN_E_EXISTS, "device %" PRIu32 " exists already", id);
    return 0;
}

/* Puts a new device in both trees and in the cache. One reference to words->root
   becomes the top level's. */
static int
put_device(struct metadata *md, uint32_t id, const struct md_words *words,
           struct thin_error *err)
{
    struct md_words absent = {.absent = true};
    uint8_t details[VALUE_SIZE_DETAILS], root[VALUE_SIZE_MAPPING];
    struct md_device *dev;
    mblock_t tree;
    bool inserted;
    int r;

    store_le64(root, words->root);
    r = btree_insert(&md->top, md->now.sb.data_mapping_root, id, root, &tree, &inserted,
                     err);
    if (r < 0)
        return thin_wrap(err, r, "store the root of device %" PRIu32, id);
    if (!inserted)
        return thin_fail(err, -THIN_E_BAD_BLOCK,
                         "device %" PRIu32 " has a mapping tree but no details", id);
    md->now.sb.data_mapping_root = tree;

    device_details_encode(&words->details, details);
    r = btree_insert(&md->details, md->now.sb.device_details_root, id, details, &tree,
                     &inserted, err);
    if (r < 0)
        return thin_wrap(err, r, "store the details of device %" PRIu32, id);
    md->now.sb.device_details_root = tree;

    /* An entry is there already if the device was deleted in this same operation. */
    dev = device_find(md, id);
    if (!dev) {
        dev = device_add(md, id, &absent);
        if (!dev)
            return thin_fail_code(err, -ENOMEM, "remember device %" PRIu32, id);
    }
    device_touch(md, dev);
    dev->now = *words;
    md->now.changed = true;
    return 0;
}

int
metadata_create_thin(struct metadata *md, uint32_t id, struct thin_error *err)
{
    struct md_words words = {.times_end = 0};
    int r;

    r = md_check_changing(md, err);
    if (r < 0)
        return r;
    r = check_new_id(md, id, err);
    if (r < 0)
        return r;
    r = btree_create(&md->bottom, &words.root, err);
    if (r < 0)
        return thin_wrap(err, r, "create device %" PRIu32, id);
    words.details = (struct device_details){
        .mapped_blocks = 0,
        .transaction_id = md->now.sb.trans_id,
        .creation_time = md->now.sb.time,
        .snapshotted_time = md->now.sb.time,
    };
    words.private_txn = md->txn;
    words.private_gen = md->now.share_gen;
    return put_device(md, id, &words, err);
}

int
metadata_tick(struct metadata *md, struct thin_error *err)
{
    int r = md_check_changing(md, err);

    if (r < 0)
        return r;
    if (md->now.sb.time >= POOL_TIME_MAX)
        return thin_fail(err, -THIN_E_LIMIT,
                         "no snapshot time is left: the pool's clock is at %u, its "
                         "highest",
                         POOL_TIME_MAX);
    md->now.sb.time += seeded_bug(SEEDED_TIME_STANDS) ? 0 : 1;
    return 0;
}

int
metadata_create_snap(struct metadata *md, uint32_t id, uint32_t origin,
                     struct thin_error *err)
{
    struct md_words words;
    struct md_device *dev;
    int r;

    r = md_check_changing(md, err);
    if (r < 0)
        return r;
    r = check_new_id(md, id, err);
    if (r < 0)
        return r;
    r = device_get(md, origin, &dev, err);
    if (r < 0)
        return thin_wrap(err, r, "snapshot device %" PRIu32, origin);

    /*
     * What either has must look shared afterwards: older than snapshotted_time. Time
     * moves on only if a mapping may be as young as the pool, since 24 bits must last.
     */
    device_touch(md, dev);
    if (dev->now.times_end > md->now.sb.time) {
        r = metadata_tick(md, err);
        if (r < 0)
            return r;
        dev->now.times_end = md->now.sb.time;
    }
    r = tm_inc(md->tm, dev->now.root, 1, err);
    if (r < 0)
        return thin_wrap(err, r, "share the root of device %" PRIu32, origin);
    /* A snapshot of a device that was snapshotted at this very time changes nothing of
       the origin's record. */
    if (dev->now.details.snapshotted_time != md->now.sb.time) {
        dev->now.details.snapshotted_time = md->now.sb.time;
        r = device_note_details(md, dev, err);
        if (r < 0)
            return r;
    }

    words = (struct md_words){
        .details = {.mapped_blocks = dev->now.details.mapped_blocks,
                    .transaction_id = md->now.sb.trans_id,
                    .creation_time = md->now.sb.time,
                    .snapshotted_time = md->now.sb.time},
        .root = dev->now.root,
        .private_txn = md->txn,
        .private_gen = md->now.share_gen,
        .times_end = dev->now.times_end,
    };
    return put_device(md, id, &words, err);
}

/* ---- delete ------------------------------------------------------------------------ */

/* Takes the device, whose tree is empty or has other holders, out of both trees. */
static int
remove_device(struct metadata *md, struct md_device *dev, struct thin_error *err)
{
    mblock_t root;
    bool removed;
    int r;

    r = btree_remove(&md->top, md->now.sb.data_mapping_root, dev->id, &root, &removed,
                     err);
    if (r < 0)
        return thin_wrap(err, r, "remove the root of device %" PRIu32, dev->id);
    md->now.sb.data_mapping_root = root;
    r = btree_remove(&md->details, md->now.sb.device_details_root, dev->id, &root,
                     &removed, err);
    if (r < 0)
        return thin_wrap(err, r, "remove the details of device %" PRIu32, dev->id);
    md->now.sb.device_details_root = root;

    device_touch(md, dev);
    device_clear_changed(md, dev);
    dev->now.absent = true;
    md->now.changed = true;
    return 0;
}

int
metadata_delete_step(struct metadata *md, uint32_t id, uint32_t budget, bool *ret_done,
                     struct thin_error *err)
{
    struct md_device *dev;
    uint64_t removed;
    vblock_t end;
    uint32_t count;
    int r;

    r = md_check_changing(md, err);
    if (r == 0)
        r = sm_learn(md->data_sm, err);
    if (r < 0)
        return r;
    r = device_get(md, id, &dev, err);
    if (r < 0)
        return r;
    /* Only now does the root's count tell whether anybody else reaches it. */
    r = device_make_private(md, dev, err);
    if (r < 0)
        return r;
    r = tm_ref(md->tm, dev->now.root, &count, err);
    if (r < 0)
        return thin_wrap(err, r, "delete device %" PRIu32, id);
    if (count <= 1) {
        r = device_trim(md, dev, 0, UINT64_MAX, budget, &end, &removed, err);
        if (r < 0)
            return r;
        if (end > 0) {
            *ret_done = false;
            return 0;
        }
    }
    r = remove_device(md, dev, err);
    if (r < 0)
        return r;
    *ret_done = true;
    return 0;
}
