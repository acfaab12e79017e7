/* The records in memory: by name, by device id, by uid. */
#include "core/pool/catalogue.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"

struct catalogue_record *
catalogue_record_create(uint32_t dev_id, const char *name)
{
    struct catalogue_record *record = calloc(1, sizeof(*record));

    if (!record)
        return NULL;
    record->dev_id = dev_id;
    record->name = strdup(name);
    if (!record->name) {
        free(record);
        return NULL;
    }
    return record;
}

void
catalogue_record_destroy(struct catalogue_record *record)
{
    if (!record)
        return;
    free(record->name);
    free(record->origin);
    free(record->holder);
    free(record->origin_identity);
    free(record->unknown);
    free(record);
}

struct catalogue_record *
catalogue_record_copy(const struct catalogue_record *record)
{
    struct catalogue_record *copy = malloc(sizeof(*copy));
    bool whole;

    if (!copy)
        return NULL;
    *copy = *record;
    copy->name = strdup(record->name);
    copy->origin = record->origin ? strdup(record->origin) : NULL;
    copy->holder = record->holder ? strdup(record->holder) : NULL;
    copy->origin_identity =
        record->origin_identity ? strdup(record->origin_identity) : NULL;
    copy->unknown = record->unknown_bytes ? malloc(record->unknown_bytes) : NULL;
    whole = copy->name && (copy->origin || !record->origin) &&
            (copy->holder || !record->holder) &&
            (copy->origin_identity || !record->origin_identity) &&
            (copy->unknown || !record->unknown_bytes);
    if (!whole) {
        catalogue_record_destroy(copy);
        return NULL;
    }
    if (record->unknown_bytes)
        memcpy(copy->unknown, record->unknown, record->unknown_bytes);
    return copy;
}

int
catalogue_record_set(char **field, const char *value)
{
    char *copy = NULL;

    if (value && *value) {
        copy = strdup(value);
        if (!copy)
            return -ENOMEM;
    }
    free(*field);
    *field = copy;
    return 0;
}

/* ---- orders ------------------------------------------------------------------------------- */

static const void *
key_name(const void *item)
{
    return ((const struct catalogue_record *)item)->name;
}

static int
compare_name(const void *key, const void *item)
{
    return strcmp(key, ((const struct catalogue_record *)item)->name);
}

static const void *
key_id(const void *item)
{
    return &((const struct catalogue_record *)item)->dev_id;
}

static int
compare_id(const void *key, const void *item)
{
    uint32_t a = *(const uint32_t *)key;
    uint32_t b = ((const struct catalogue_record *)item)->dev_id;

    return (a > b) - (a < b);
}

static const void *
key_uid(const void *item)
{
    return &((const struct catalogue_record *)item)->uid;
}

static int
compare_uid(const void *key, const void *item)
{
    uint64_t a = *(const uint64_t *)key;
    uint64_t b = ((const struct catalogue_record *)item)->uid;

    return (a > b) - (a < b);
}

void
catalogue_records_init(struct catalogue_records *records)
{
    order_init(&records->by_name, compare_name, key_name);
    order_init(&records->by_id, compare_id, key_id);
    order_init(&records->by_uid, compare_uid, key_uid);
    order_init(&records->pending, compare_id, key_id);
    records->live_bytes = 0;
    records->virtual_bytes = 0;
    records->loading = false;
}

void
catalogue_records_fini(struct catalogue_records *records)
{
    for (uint32_t c = 0; c < records->by_id.nr_chunks; c++)
        for (uint32_t i = 0; i < records->by_id.chunks[c]->nr; i++)
            catalogue_record_destroy(records->by_id.chunks[c]->items[i]);
    order_fini(&records->by_name);
    order_fini(&records->by_id);
    order_fini(&records->by_uid);
    order_fini(&records->pending);
    records->live_bytes = 0;
    records->virtual_bytes = 0;
}

int
catalogue_records_reserve(struct catalogue_records *records, uint32_t n)
{
    int r = order_reserve(&records->by_id, n);

    if (r == 0)
        r = order_reserve(&records->by_name, n);
    if (r == 0)
        r = order_reserve(&records->by_uid, n);
    if (r == 0)
        r = order_reserve(&records->pending, n);
    return r;
}

static bool
has_name(const struct catalogue_records *records, const struct catalogue_record *record)
{
    return !records->loading && !(record->flags & RECORD_DELETING);
}

static bool
is_pending(const struct catalogue_records *records, const struct catalogue_record *record)
{
    return !records->loading && (record->flags & (RECORD_DELETING | RECORD_TRIMMING));
}

/* Takes the record out of what is counted and ordered by what may change. */
static void
unindex(struct catalogue_records *records, struct catalogue_record *record)
{
    records->live_bytes -= record->encoded_bytes;
    if (is_pending(records, record))
        order_remove(&records->pending, record);
    if (!has_name(records, record))
        return;
    records->virtual_bytes -= record->size;
    order_remove(&records->by_name, record);
    order_remove(&records->by_uid, record);
}

static void
index_record(struct catalogue_records *records, struct catalogue_record *record)
{
    records->live_bytes += record->encoded_bytes;
    if (is_pending(records, record))
        order_insert(&records->pending, record);
    if (!has_name(records, record))
        return;
    records->virtual_bytes += record->size;
    order_insert(&records->by_name, record);
    order_insert(&records->by_uid, record);
}

void
catalogue_records_put(struct catalogue_records *records, struct catalogue_record *record)
{
    struct catalogue_record *old = catalogue_by_id(records, record->dev_id);

    if (!old) {
        order_insert(&records->by_id, record);
        index_record(records, record);
        return;
    }
    unindex(records, old);
    free(old->name);
    free(old->origin);
    free(old->holder);
    free(old->origin_identity);
    free(old->unknown);
    *old = *record;
    free(record);
    index_record(records, old);
}

void
catalogue_records_remove(struct catalogue_records *records, uint32_t dev_id)
{
    struct catalogue_record *record = catalogue_by_id(records, dev_id);

    if (!record)
        return;
    unindex(records, record);
    order_remove(&records->by_id, record);
    catalogue_record_destroy(record);
}

bool
catalogue_records_index(struct catalogue_records *records, uint32_t dev_id)
{
    struct catalogue_record *record = catalogue_by_id(records, dev_id);

    THIN_ASSERT(!records->loading);
    if (!(record->flags & RECORD_DELETING) && (catalogue_by_name(records, record->name) ||
                                               catalogue_by_uid(records, record->uid)))
        return false;
    records->live_bytes -= record->encoded_bytes;
    index_record(records, record);
    return true;
}

struct catalogue_record *
catalogue_by_name(const struct catalogue_records *records, const char *name)
{
    return order_find(&records->by_name, name);
}

struct catalogue_record *
catalogue_by_id(const struct catalogue_records *records, uint32_t dev_id)
{
    return order_find(&records->by_id, &dev_id);
}

struct catalogue_record *
catalogue_by_uid(const struct catalogue_records *records, uint64_t uid)
{
    return order_find(&records->by_uid, &uid);
}

struct catalogue_record *
catalogue_next_name(const struct catalogue_records *records, const char *after)
{
    return order_above(&records->by_name, after);
}

struct catalogue_record *
catalogue_next_id(const struct catalogue_records *records, uint32_t dev_id)
{
    return order_at_or_above(&records->by_id, &dev_id);
}

struct catalogue_record *
catalogue_next_pending(const struct catalogue_records *records, uint32_t dev_id)
{
    return order_at_or_above(&records->pending, &dev_id);
}
