/*
 * The mapping cache: pages of 512 slots found by volume and virtual block; one budget
 * over all volumes, given back by a clock. See io_private.h.
 */
#include <stdlib.h>

#include "core/pool/io_private.h"

#define MAPCACHE_PAGES_MIN 8u
#define MAPCACHE_FILL_MAX  4u  /* pages that one leaf fills beside the one asked for */
#define CLOCK_LOOKS        64u /* pages passed for one that gives way */

struct mapcache {
    struct map_page *pages;
    struct map_page **buckets;
    uint32_t nr_pages, hand, nr_buckets;
    uint32_t nr_begun; /* pages that were ever used: the rest is untouched memory */
    struct map_page *free;
    uint64_t hits, misses;
};

static uint32_t
bucket_of(const struct mapcache *mc, const struct volume_core *core, uint64_t index)
{
    uint64_t h = (index + ((uint64_t)core->dev_id << 40)) * 0x9E3779B97F4A7C15ull;

    return (uint32_t)(h >> 40) & (mc->nr_buckets - 1);
}

int
mapcache_create(struct pool *pool, uint32_t nr_pages)
{
    struct mapcache *mc = calloc(1, sizeof(*mc));

    if (!mc)
        return -ENOMEM;
    pool->mapcache = mc;
    mc->nr_pages = nr_pages < MAPCACHE_PAGES_MIN ? MAPCACHE_PAGES_MIN : nr_pages;
    mc->nr_buckets = 8;
    while (mc->nr_buckets < mc->nr_pages && mc->nr_buckets < (1u << 23))
        mc->nr_buckets *= 2;
    mc->pages = calloc(mc->nr_pages, sizeof(*mc->pages));
    mc->buckets = calloc(mc->nr_buckets, sizeof(struct map_page *));
    if (!mc->pages || !mc->buckets)
        return -ENOMEM;
    return 0;
}

void
mapcache_destroy(struct pool *pool)
{
    struct mapcache *mc = pool->mapcache;

    if (!mc)
        return;
    free(mc->pages);
    free(mc->buckets);
    free(mc);
    pool->mapcache = NULL;
}

struct map_page *
mapcache_find(struct volume_core *core, uint64_t index)
{
    struct mapcache *mc = core->pool->mapcache;
    struct map_page *page = mc->buckets[bucket_of(mc, core, index)];

    while (page && (page->core != core || page->index != index))
        page = page->next;
    if (page) {
        mc->hits++;
        core->map_hot = page;
    }
    return page;
}

static void
page_unlink(struct mapcache *mc, struct map_page *page)
{
    struct map_page **at;

    THIN_ASSERT(page->core);
    at = &mc->buckets[bucket_of(mc, page->core, page->index)];
    while (*at != page)
        at = &(*at)->next;
    *at = page->next;
    if (page->core->map_hot == page)
        page->core->map_hot = NULL;
    LIST_REMOVE(page, of_core);
    page->core = NULL;
}

static struct map_page *
page_get(struct mapcache *mc)
{
    struct map_page *page = mc->free;

    if (page) {
        mc->free = page->next;
        return page;
    }
    if (mc->nr_begun < mc->nr_pages)
        return &mc->pages[mc->nr_begun++];
    /* A clock that goes a bounded way. */
    for (unsigned looks = 0;; looks++) {
        page = &mc->pages[mc->hand];
        mc->hand = mc->hand + 1 == mc->nr_pages ? 0 : mc->hand + 1;
        if (page->used && looks < CLOCK_LOOKS) {
            page->used = false;
            continue;
        }
        page_unlink(mc, page);
        return page;
    }
}

static struct map_page *
page_make(struct volume_core *core, uint64_t index)
{
    struct mapcache *mc = core->pool->mapcache;
    struct map_page *page = mapcache_find(core, index);
    uint32_t bucket;

    if (page)
        return page;
    page = page_get(mc);
    page->core = core;
    LIST_INSERT_HEAD(&core->pages, page, of_core);
    page->index = index;
    page->used = true;
    memset(page->slots, 0xff, sizeof(page->slots)); /* MAP_UNKNOWN */
    bucket = bucket_of(mc, core, index);
    page->next = mc->buckets[bucket];
    mc->buckets[bucket] = page;
    return page;
}

void
mapcache_set(struct volume_core *core, vblock_t v, uint64_t value)
{
    struct map_page *page = core->map_hot;
    uint64_t index = v >> MAP_PAGE_SHIFT;

    if (!page || page->index != index)
        page = mapcache_find(core, index);
    if (page)
        page->slots[v & (MAP_PAGE_SLOTS - 1)] = value;
}

/* Holes over the part of [begin, end) that lies in the page. */
static void
page_set_holes(struct map_page *page, vblock_t begin, vblock_t end)
{
    uint64_t first = page->index << MAP_PAGE_SHIFT;
    uint64_t from = begin > first ? begin - first : 0;
    uint64_t to = end > first ? min_u64(end - first, MAP_PAGE_SLOTS) : 0;

    for (uint64_t i = from; i < to; i++)
        page->slots[i] = MAP_HOLE;
}

void
mapcache_fill(struct volume_core *core, vblock_t v, const struct mapping_slot *slots,
              uint32_t nr, vblock_t begin, vblock_t end)
{
    struct map_page *page = page_make(core, v >> MAP_PAGE_SHIFT);
    unsigned extra = 0;

    page_set_holes(page, begin, end);
    for (uint32_t i = 0; i < nr; i++) {
        uint64_t index = slots[i].vblock >> MAP_PAGE_SHIFT;

        if (slots[i].vblock < begin || slots[i].vblock >= end)
            continue;
        if (page->index != index) {
            /* Only forwards: readers that go through a volume come there next. */
            if (index < v >> MAP_PAGE_SHIFT || extra == MAPCACHE_FILL_MAX)
                continue;
            extra++;
            page = page_make(core, index);
            page_set_holes(page, begin, end);
        }
        page->slots[slots[i].vblock & (MAP_PAGE_SLOTS - 1)] = slots[i].value;
    }
    /* The page that was asked for must not be the one that made room for the others. */
    if (page->index != v >> MAP_PAGE_SHIFT) {
        page = mapcache_find(core, v >> MAP_PAGE_SHIFT);
        if (page)
            page->used = true;
    }
}

void
mapcache_set_holes(struct volume_core *core, vblock_t begin, vblock_t end)
{
    uint64_t last = end ? (end - 1) >> MAP_PAGE_SHIFT : 0;

    if (begin >= end)
        return;
    for (uint64_t index = begin >> MAP_PAGE_SHIFT; index <= last; index++) {
        struct map_page *page = mapcache_find(core, index);

        if (page)
            page_set_holes(page, begin, end);
    }
}

void
mapcache_drop_core(struct volume_core *core)
{
    struct mapcache *mc = core->pool->mapcache;
    struct map_page *page;

    while ((page = LIST_FIRST(&core->pages))) {
        page_unlink(mc, page);
        page->next = mc->free;
        mc->free = page;
    }
}

void
mapcache_drop_all(struct pool *pool)
{
    struct mapcache *mc = pool->mapcache;
    struct volume_core *core;

    TAILQ_FOREACH(core, &pool->cores, link) {
        core->map_hot = NULL;
        LIST_INIT(&core->pages);
    }
    memset(mc->buckets, 0, mc->nr_buckets * sizeof(struct map_page *));
    mc->free = NULL;
    mc->hand = 0;
    mc->nr_begun = 0;
}

void
mapcache_stats(const struct pool *pool, uint64_t *ret_hits, uint64_t *ret_misses)
{
    *ret_hits = pool->mapcache->hits;
    *ret_misses = pool->mapcache->misses;
}

void
mapcache_count_miss(struct pool *pool)
{
    pool->mapcache->misses++;
}
