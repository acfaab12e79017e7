#include "server/pools_watch.h"

#include <errno.h>
#include <stdlib.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"

#define LOOK_MS      500u
#define RETRY_MIN_MS 250u
#define RETRY_MAX_MS 10000u

struct pools_watch {
    struct pools *pools;
    struct thin_loop *loop;
    struct thin_timer timer;
    bool started;
};

static bool
is_lost(const struct server_pool *sp)
{
    return (sp->data_export && sp->data_export->lost) ||
           (sp->metadata_export && sp->metadata_export->lost);
}

static void
look_after(struct pools_watch *w, uint64_t ms)
{
    if (!w->started)
        return;
    /* Without a timer the next change of a pool looks again. */
    (void)loop_timer_set(w->loop, &w->timer, loop_now_ns(w->loop) + ms * NS_PER_MS);
}

static void
look_at(struct pools_watch *w, struct server_pool *sp)
{
    uint64_t now = loop_now_ns(w->loop);

    if (sp->state == POOLS_OPEN && is_lost(sp))
        pools_reopen(w->pools, sp);
    else if (sp->state == POOLS_FAILED && sp->want_open && now >= sp->retry_at_ns)
        pools_open(w->pools, sp->name, false, (struct pools_done){0});
}

static void
look(struct thin_timer *timer)
{
    struct pools_watch *w = container_of(timer, struct pools_watch, timer);
    struct server_pool *sp = NULL;
    bool any = false;

    if (pools_server(w->pools)->stopping)
        return;
    /* None of the calls drops a pool. */
    while ((sp = pools_next(w->pools, sp)))
        if (pools_stands_on_exports(sp)) {
            any = true;
            look_at(w, sp);
        }
    if (any)
        look_after(w, LOOK_MS);
}

int
pools_watch_create(struct pools *pools, struct pools_watch **ret)
{
    struct pools_watch *w = calloc(1, sizeof(*w));

    if (!w)
        return -ENOMEM;
    w->pools = pools;
    w->loop = pools_server(pools)->thin_loop;
    w->timer.fire = look;
    *ret = w;
    return 0;
}

void
pools_watch_destroy(struct pools_watch *w)
{
    if (!w)
        return;
    loop_timer_cancel(w->loop, &w->timer);
    free(w);
}

void
pools_watch_start(struct pools_watch *w)
{
    w->started = true;
    look_after(w, 0);
}

void
pools_watch_look(struct pools_watch *w)
{
    struct server_pool *sp = NULL;

    while ((sp = pools_next(w->pools, sp)))
        sp->retry_at_ns = 0;
    look_after(w, 0);
}

void
pools_watch_failed(struct pools_watch *w, struct server_pool *sp)
{
    if (!pools_stands_on_exports(sp))
        return;
    sp->retry_ms = min_u64(max_u64(2 * sp->retry_ms, RETRY_MIN_MS), RETRY_MAX_MS);
    sp->retry_at_ns = loop_now_ns(w->loop) + sp->retry_ms * NS_PER_MS;
    look_after(w, min_u64(sp->retry_ms, LOOK_MS));
}
