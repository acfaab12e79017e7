/*
 * Tells that space gets low before it is gone, and how long what is left will last: by the
 * rate at which blocks were taken of late, smoothed over RATE_S seconds. Each level is
 * told once, and again only after there was clearly more.
 */
#include <inttypes.h>

#include "core/pool/limits.h"
#include "core/pool/space_private.h"

#define RATE_S          30.0 /* what is older than that counts little */
#define SAMPLE_NS       (NS_PER_SEC / 4)
#define DATA_LEVELS     4u
#define METADATA_PART   8u /* the metadata is low when less than this part of it is free */
#define METADATA_AGAIN  6u /* and told again after more than this part was */
#define LASTS_LONGEST_S (10.0 * 365 * 86400)

/* Parts of all blocks, as divisors: less than a tenth is free, a twentieth, ... */
static const uint64_t levels[DATA_LEVELS] = {10, 20, 50, 100};

static void
take_sample(struct pool *pool, uint64_t used)
{
    struct low_water *lw = &pool->space->low_water;
    uint64_t now = loop_now_ns(pool->loop);
    double passed, share, taken;

    if (!lw->sampled) {
        lw->sampled = true;
        lw->at_ns = now;
        lw->used = used;
        return;
    }
    if (now - lw->at_ns < SAMPLE_NS)
        return;
    passed = (double)(now - lw->at_ns) / (double)NS_PER_SEC;
    taken = used > lw->used ? (double)(used - lw->used) : 0.0;
    share = passed / (passed + RATE_S);
    /* The first moments weigh in full: there is nothing older to smooth with. */
    if (lw->watched_s < RATE_S)
        share = passed / (passed + lw->watched_s);
    lw->rate += share * (taken / passed - lw->rate);
    lw->watched_s += passed;
    lw->at_ns = now;
    lw->used = used;
}

/* "12.5 GiB"; `text` is returned. */
static const char *
put_size(char *text, size_t room, uint64_t bytes)
{
    static const char *const units[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB"};
    double value = (double)bytes;
    unsigned unit = 0;

    while (value >= 1024.0 && unit < 5) {
        value /= 1024.0;
        unit++;
    }
    snprintf(text, room, unit ? "%.1f %s" : "%.0f %s", value, units[unit]);
    return text;
}

static const char *
put_lasts(char *text, size_t room, int64_t seconds)
{
    if (seconds < 120)
        snprintf(text, room, "%" PRId64 " seconds", seconds);
    else if (seconds < 7200)
        snprintf(text, room, "%" PRId64 " minutes", seconds / 60);
    else if (seconds < 172800)
        snprintf(text, room, "%" PRId64 " hours", seconds / 3600);
    else
        snprintf(text, room, "%" PRId64 " days", seconds / 86400);
    return text;
}

int64_t
low_water_lasts_s(const struct pool *pool, uint64_t free_blocks)
{
    const struct low_water *lw = &pool->space->low_water;

    if (lw->rate * LASTS_LONGEST_S <= (double)free_blocks)
        return -1;
    return (int64_t)((double)free_blocks / lw->rate);
}

/* Why it does not grow by itself, and what to do; NULL: it does. */
static const char *
what_helps(const struct pool *pool)
{
    const struct pool_auto_extend *x = &pool->config.extend_data;
    uint64_t size = pool->nr_data_blocks * pool->block_size;

    if (pool->data->limits.grows && !x->percent)
        return "it does not grow by itself (auto_extend is off): thincli pool grow";
    if (pool->data->limits.grows && size + pool->block_size > x->limit_bytes)
        return "it has grown to its limit: raise auto_extend, or thincli pool grow";
    if (pool->data->limits.grows && pool->space->extend_failed)
        return "it could not grow by itself: see to the file system below";
    if (pool->data->limits.grows)
        return NULL;
    return "a device of a fixed size does not grow by itself: enlarge it, then thincli "
           "pool grow";
}

static void
tell_data(struct pool *pool, uint64_t free_blocks, uint64_t all)
{
    char left[32], size[32], lasts[32], words[THIN_ERROR_TEXT_MAX];
    int64_t seconds = low_water_lasts_s(pool, free_blocks);
    uint64_t bs = pool->block_size;

    put_size(left, sizeof(left), free_blocks * bs);
    put_size(size, sizeof(size), all * bs);
    if (seconds >= 0)
        snprintf(words, sizeof(words),
                 "%s of %s are free for data, at the present rate for %s; %s", left, size,
                 put_lasts(lasts, sizeof(lasts), seconds), what_helps(pool));
    else
        snprintf(words, sizeof(words), "%s of %s are free for data; %s", left, size,
                 what_helps(pool));
    pool_tell(pool, "low-water", words);
}

static void
look_at_data(struct pool *pool)
{
    struct low_water *lw = &pool->space->low_water;
    struct metadata_space ms;
    uint64_t free_blocks;
    unsigned level = 0;

    metadata_data_space(pool->md, &ms);
    free_blocks = ms.nr_free + ms.nr_pending;
    take_sample(pool, ms.nr_blocks - free_blocks);
    while (level < DATA_LEVELS && free_blocks < ms.nr_blocks / levels[level])
        level++;
    if (level > lw->told && what_helps(pool))
        tell_data(pool, free_blocks, ms.nr_blocks);
    else if (level > lw->told)
        return; /* told when growing ends */
    /* Up by half a level more, so that what swings about it is told once. */
    if (level > lw->told ||
        (lw->told > 0 && 2 * free_blocks > 3 * (ms.nr_blocks / levels[lw->told - 1])))
        lw->told = level;
}

static void
look_at_metadata(struct pool *pool)
{
    struct low_water *lw = &pool->space->low_water;
    bool grows = pool->config.extend_metadata && pool->metadata_dev->limits.grows &&
                 !pool->space->extend_metadata_failed;
    char left[32], size[32], words[THIN_ERROR_TEXT_MAX];
    struct metadata_space ms;
    uint64_t reserve;

    metadata_own_space(pool->md, &ms, &reserve);
    /* Ordinary changes are refused before the reserve is touched. */
    ms.nr_free = ms.nr_free > reserve ? ms.nr_free - reserve : 0;
    if (ms.nr_free > ms.nr_blocks / METADATA_AGAIN)
        lw->metadata_told = false;
    if (lw->metadata_told || grows || ms.nr_free >= ms.nr_blocks / METADATA_PART)
        return;
    lw->metadata_told = true;
    put_size(left, sizeof(left), ms.nr_free * METADATA_BLOCK_SIZE);
    put_size(size, sizeof(size), ms.nr_blocks * METADATA_BLOCK_SIZE);
    snprintf(words, sizeof(words),
             "%s of %s are free for metadata, which does not grow by itself: enlarge the "
             "device, then thincli pool grow --metadata",
             left, size);
    pool_tell(pool, "low-water", words);
}

void
low_water_look(struct pool *pool)
{
    look_at_data(pool);
    look_at_metadata(pool);
}
