/* What a pool may do, and why it may not. */
#include <inttypes.h>
#include <stdarg.h>

#include "core/pool/io_private.h"

const char *
pool_mode_name(enum pool_mode mode)
{
    switch (mode) {
    case POOL_WRITE:
        return "write";
    case POOL_OUT_OF_DATA_SPACE:
        return "out-of-data-space";
    case POOL_OUT_OF_METADATA_SPACE:
        return "out-of-metadata-space";
    case POOL_READ_ONLY:
        return "read-only";
    case POOL_FAIL:
        return "fail";
    }
    return "unknown";
}

int
pool_may_change(const struct pool *pool, struct thin_error *err)
{
    if (pool->mode == POOL_FAIL)
        return thin_fail(err, -THIN_E_FAILED, "the pool has failed: %s", pool->why);
    if (pool->mode == POOL_READ_ONLY)
        return thin_fail(err, -THIN_E_READ_ONLY, "the pool is read-only: %s", pool->why);
    return 0;
}

void
pool_tell(struct pool *pool, const char *event, const char *words)
{
    if (pool->event)
        pool->event(pool->event_arg, pool, event, words);
}

void
pool_set_mode(struct pool *pool, enum pool_mode mode, const char *what_to_do,
              const char *why_fmt, ...)
{
    enum pool_mode old = pool->mode;
    va_list args;

    va_start(args, why_fmt);
    vsnprintf(pool->why, sizeof(pool->why), why_fmt, args);
    va_end(args);
    snprintf(pool->what_to_do, sizeof(pool->what_to_do), "%s", what_to_do);
    pool->mode = mode;
    if (old == mode)
        return;
    if (mode == POOL_WRITE)
        log_notice("the pool is back in service pool=%s was=%s", pool->name,
                   pool_mode_name(old));
    else
        log_warning("the pool's mode changed: %s; %s pool=%s mode=%s", pool->why,
                    pool->what_to_do, pool->name, pool_mode_name(mode));
    pool_tell(pool, "mode", pool_mode_name(mode));
}

void
pool_write_failed(struct pool *pool, int code, const struct thin_error *err)
{
    if (code == -THIN_E_NO_METADATA_SPACE && pool->mode == POOL_WRITE)
        pool_set_mode(pool, POOL_OUT_OF_METADATA_SPACE,
                      "grow the metadata device, or delete volumes or snapshots", "%s",
                      thin_error_text(err, code));
}

void
pool_damaged(struct pool *pool, dblock_t begin, dblock_t end, const char *words)
{
    log_error(
        "the counts of some data blocks are damaged, they are neither allocated nor "
        "freed any more: %s pool=%s begin=%" PRIu64 " end=%" PRIu64,
        words, pool->name, begin, end);
    pool->wants_check = true;
    if (!pool->damage[0]) {
        snprintf(pool->damage, sizeof(pool->damage),
                 "counts of data blocks %" PRIu64 " to %" PRIu64
                 ", perhaps of others too, are damaged: they are neither allocated nor "
                 "freed (%s)",
                 begin, end - 1, words);
        pool_tell(pool, "damaged", pool->damage);
    }
    space_distrust(pool);
}

bool
pool_volume_is_damaged(const struct pool *pool, uint32_t dev_id)
{
    for (unsigned i = 0; i < pool->nr_damaged; i++)
        if (pool->damaged_ids[i] == dev_id)
            return true;
    return false;
}

void
volume_damaged(struct volume_core *core, int code)
{
    struct pool *pool = core->pool;
    char words[THIN_ERROR_TEXT_MAX];

    if (!pool || pool->nr_damaged == POOL_DAMAGED_MAX ||
        pool_volume_is_damaged(pool, core->dev_id))
        return;
    pool->damaged_ids[pool->nr_damaged++] = core->dev_id;
    snprintf(
        words, sizeof(words),
        "mappings of volume %s are damaged (%s): what needs them fails, the rest of it "
        "and other volumes go on",
        core->name, thin_strerror(code));
    log_error("%s pool=%s", words, pool->name);
    if (!pool->damage[0])
        snprintf(pool->damage, sizeof(pool->damage), "%s", words);
    pool_tell(pool, "damaged", words);
}
