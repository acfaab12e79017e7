/*
 * An NBD server as a device: open, close, what a lost connection means, limits in time.
 * nbd_private.h draws the whole.
 */
#include "core/device/device_nbd.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/device/nbd_private.h"

static struct nbd_device *
to_nbd(struct device *dev)
{
    return container_of(dev, struct nbd_device, base);
}

static bool
any_up(const struct nbd_device *n)
{
    for (unsigned i = 0; i < n->nr_links; i++)
        if (n->links[i].state == NBD_LINK_UP)
            return true;
    return false;
}

/* ---- what the server has ----------------------------------------------------------------- */

static int
read_info(struct nbd_handle *h, bool read_only, struct nbd_export_info *info,
          uint64_t *ret_data_end, struct thin_error *err)
{
    int64_t size = nbd_get_size(h);
    int64_t unit = nbd_get_block_size(h, LIBNBD_SIZE_MINIMUM);
    int64_t max = nbd_get_block_size(h, LIBNBD_SIZE_MAXIMUM);

    if (size < 0 || unit < 0 || max < 0)
        return thin_fail(err, -THIN_E_DISCONNECTED, "the server does not tell its size");
    if (unit > NBD_UNIT_MAX || (unit & (unit - 1)) != 0)
        return thin_fail(err, -THIN_E_PROTOCOL,
                         "the server's smallest request is %lld bytes, which is no power "
                         "of two up to %u",
                         (long long)unit, NBD_UNIT_MAX);
    memset(info, 0, sizeof(*info));
    info->unit = unit > (int64_t)SECTOR_SIZE ? (uint32_t)unit : SECTOR_SIZE;
    if (max > 0 && max < info->unit)
        return thin_fail(err, -THIN_E_UNSUPPORTED,
                         "the server's largest request is %lld bytes, %u are needed",
                         (long long)max, info->unit);
    /* A cap that never binds keeps it in 32 bits. */
    info->max_bytes =
        (uint32_t)round_down_u64(min_u64((uint64_t)max, 1u << 30), info->unit);
    info->size = round_down_u64((uint64_t)size, info->unit);
    /* Who only reads gets a last part of a sector too, from servers that count in bytes. */
    if (read_only && unit <= 1)
        info->size = round_up_u64((uint64_t)size, SECTOR_SIZE);
    *ret_data_end = min_u64(info->size, (uint64_t)size);
    info->read_only = nbd_is_read_only(h) > 0;
    info->flush = nbd_can_flush(h) > 0;
    info->fua = nbd_can_fua(h) > 0;
    info->trim = nbd_can_trim(h) > 0;
    info->zero = nbd_can_zero(h) > 0;
    info->fast_zero = nbd_can_fast_zero(h) > 0;
    info->multi_conn = nbd_can_multi_conn(h) > 0;
    info->status = nbd_can_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) > 0;
    return 0;
}

static int
judge_info(const struct nbd_device *n, const struct nbd_export_info *info,
           struct thin_error *err)
{
    if (info->size == 0)
        return thin_fail(err, -THIN_E_INVALID, "the export has no sectors");
    if (info->size < n->base.size)
        return thin_fail(
            err, -THIN_E_RANGE, "the export has shrunk from %llu to %llu bytes",
            (unsigned long long)n->base.size, (unsigned long long)info->size);
    if (n->wants_read_only)
        return 0;
    if (info->read_only)
        return thin_fail(err, -THIN_E_READ_ONLY, "the server exports it read-only");
    if (info->unit != SECTOR_SIZE)
        return thin_fail(err, -THIN_E_UNSUPPORTED,
                         "the server's smallest request is %u bytes, %u are needed to "
                         "write; it can be opened read-only",
                         info->unit, SECTOR_SIZE);
    if (!info->flush)
        return thin_fail(err, -THIN_E_UNSUPPORTED,
                         "the server cannot flush, so nothing would ever be durable; it "
                         "can be opened read-only");
    return 0;
}

static void
set_limits(struct nbd_device *n)
{
    struct device_limits *l = &n->base.limits;

    l->discards = n->info.trim && !n->wants_read_only;
    l->zeroes_fast = n->info.zero && n->info.fast_zero && !n->wants_read_only;
    l->zeroes_fresh = l->discards && n->info.status;
}

/* ---- limits in time ------------------------------------------------------------------------ */

static bool
waits_for_something(const struct nbd_device *n)
{
    if (!TAILQ_EMPTY(&n->queue))
        return true;
    for (unsigned i = 0; i < n->nr_links; i++)
        if (n->links[i].in_flight > 0)
            return true;
    return false;
}

static void
arm_tick(struct nbd_device *n)
{
    struct thin_loop *loop = n->base.loop;
    uint64_t tick_ns = min_u64(NBD_TICK_MS * NS_PER_MS, n->answer_timeout_ns / 4 + 1);

    /* Without it a silent server is found a little later: the next request tries again. */
    if (!n->tick.armed && waits_for_something(n) &&
        loop_timer_set(loop, &n->tick, loop_now_ns(loop) + tick_ns) < 0)
        log_warning("cannot set a timer device=%s", n->base.name);
}

static void
tick_fire(struct thin_timer *timer)
{
    struct nbd_device *n = container_of(timer, struct nbd_device, tick);
    uint64_t now = loop_now_ns(n->base.loop);

    for (unsigned i = 0; i < n->nr_links; i++) {
        struct nbd_link *link = &n->links[i];

        if (link->state == NBD_LINK_UP && link->in_flight > 0 &&
            now - link->heard_ns > n->answer_timeout_ns) {
            snprintf(link->words, sizeof(link->words), "the server does not answer");
            link->broken = true;
        }
    }
    nbd_service(n);
    if (!any_up(n) && now > n->answer_timeout_ns)
        nbd_request_expire(n, now - n->answer_timeout_ns, -THIN_E_TIMED_OUT);
    /* Who closes does not wait for a server to come back. */
    if (!any_up(n) && n->base.closing)
        nbd_request_expire(n, UINT64_MAX, -THIN_E_DISCONNECTED);
}

/* ---- connections ---------------------------------------------------------------------------- */

static const char *
quote_name(const struct nbd_device *n, char *buf, size_t max)
{
    return thin_log_quote(buf, max, n->base.name, strlen(n->base.name));
}

/*
 * A connection is gone. The others go too: they may lead to what is left of a server
 * that is no more, and a flush by a new connection would not cover what they wrote.
 */
static void
lose_connections(struct nbd_device *n, const char *words)
{
    bool owed = n->written != n->flushed || n->writes_in_flight > 0;
    char name[300];
    unsigned dropped = 0;

    for (unsigned i = 0; i < n->nr_links; i++)
        nbd_link_drop(&n->links[i], false);
    if (owed) {
        n->base.lost = true;
        log_error(
            "the connection broke with writes not flushed, the device is lost until "
            "it is opened anew device=%s reason=\"%s\"",
            quote_name(n, name, sizeof(name)), words);
        nbd_request_abort(n, -THIN_E_LOST);
        nbd_renew_failed(n, -THIN_E_LOST);
        return;
    }
    if (thin_log_allowed(&n->link_log, loop_now_ns(n->base.loop) / NS_PER_MS, &dropped))
        log_warning("the connection broke, connecting again device=%s reason=\"%s\" "
                    "not_shown=%u",
                    quote_name(n, name, sizeof(name)), words, dropped);
    nbd_request_abort(n, 0);
    nbd_link_start_later(&n->links[0]);
}

static struct nbd_link *
find_dead(struct nbd_device *n)
{
    for (unsigned i = 0; i < n->nr_links; i++)
        if (n->links[i].state == NBD_LINK_UP && nbd_link_is_dead(&n->links[i]))
            return &n->links[i];
    return NULL;
}

/* Takes in what ended, and deals with a dead connection. */
static void
take_in(struct nbd_device *n)
{
    struct nbd_link *dead;
    char words[NBD_WORDS_MAX];

    for (unsigned i = 0; i < n->nr_links; i++)
        nbd_request_collect(&n->links[i]);
    dead = find_dead(n);
    if (!dead)
        return;
    memcpy(words, dead->words, sizeof(words));
    lose_connections(n, words[0] ? words : "the server closed the connection");
}

static bool
has_news(struct nbd_device *n)
{
    for (unsigned i = 0; i < n->nr_links; i++)
        if (!TAILQ_EMPTY(&n->links[i].ended))
            return true;
    return find_dead(n) != NULL;
}

void
nbd_service(struct nbd_device *n)
{
    do {
        take_in(n);
        nbd_renew_step(n);
        nbd_request_pump(n);
        for (unsigned i = 0; i < n->nr_links; i++)
            if (n->links[i].state == NBD_LINK_UP)
                nbd_link_watch(&n->links[i]);
    } while (has_news(n));
    arm_tick(n);
}

static void
finish_open(struct nbd_device *n, int result)
{
    n->opening = false;
    n->open_result = result;
    loop_timer_cancel(n->base.loop, &n->open_timer);
    loop_defer_cancel(n->base.loop, &n->start_task);
    loop_defer(n->base.loop, &n->opened_task);
    if (result < 0)
        nbd_link_drop(&n->links[0], false);
}

static void
first_open(struct nbd_device *n, const struct nbd_export_info *info)
{
    n->info = *info;
    n->base.size = info->size;
    n->base.read_only = n->wants_read_only;
    set_limits(n);
    if (!info->multi_conn)
        n->nr_links = 1;
    finish_open(n, 0);
}

/* The server is back as it should be, and so nothing was owed. */
static void
open_again(struct nbd_device *n, const struct nbd_export_info *info)
{
    bool resized = info->size != n->info.size;
    unsigned dropped = 0;
    char name[300];

    n->info = *info;
    set_limits(n);
    if (!info->multi_conn)
        n->nr_links = 1;
    if (resized && n->base.resized)
        loop_defer(n->base.loop, &n->resized_task);
    if (thin_log_allowed(&n->link_log, loop_now_ns(n->base.loop) / NS_PER_MS, &dropped))
        log_notice("connected again device=%s not_shown=%u",
                   quote_name(n, name, sizeof(name)), dropped);
    nbd_renew_connected(n);
}

static void
start_others(struct nbd_device *n)
{
    for (unsigned i = 1; i < n->nr_links; i++)
        if (n->links[i].state == NBD_LINK_DOWN)
            nbd_link_start(&n->links[i]);
}

/* What has come back is something else: nothing of the old can be reached any more. */
static void
give_up(struct nbd_device *n, const struct thin_error *err, int r)
{
    char name[300];

    n->base.lost = true;
    log_error("the device is lost device=%s reason=\"%s\"",
              quote_name(n, name, sizeof(name)), thin_error_text(err, r));
    for (unsigned i = 0; i < n->nr_links; i++)
        nbd_link_drop(&n->links[i], false);
    nbd_request_abort(n, -THIN_E_LOST);
    nbd_renew_failed(n, -THIN_E_LOST);
}

void
nbd_link_is_up(struct nbd_link *link)
{
    struct nbd_device *n = link->n;
    struct nbd_export_info info;
    uint64_t data_end = 0;
    struct thin_error err;
    int r;

    thin_error_init(&err);
    r = read_info(link->handle, n->wants_read_only, &info, &data_end, &err);
    if (r == 0)
        r = judge_info(n, &info, &err);
    if (link == &n->look) {
        if (r < 0)
            nbd_link_refused(link, &err, r);
        else
            nbd_renew_looked(n, &info);
        nbd_service(n);
        return;
    }
    if (n->opening && r < 0) {
        n->open_error = err;
        finish_open(n, r);
        return;
    }
    if (link != &n->links[0]) {
        /* The same export by another way: whatever differs, it is not. */
        if (r < 0 || memcmp(&info, &n->info, sizeof(info)) != 0) {
            log_warning("a further connection shows another export, it is not used "
                        "device=%s",
                        n->base.name);
            nbd_link_drop(link, false);
            return;
        }
    } else if (n->opening) {
        n->data_end = data_end;
        first_open(n, &info);
        start_others(n);
    } else if (r < 0) {
        give_up(n, &err, r);
        return;
    } else {
        n->data_end = data_end;
        open_again(n, &info);
        start_others(n);
    }
    nbd_service(n);
}

void
nbd_link_refused(struct nbd_link *link, const struct thin_error *err, int code)
{
    struct nbd_device *n = link->n;
    char name[300];

    if (link == &n->look) {
        log_warning("the export cannot be looked at again device=%s reason=\"%s\"",
                    quote_name(n, name, sizeof(name)), thin_error_text(err, code));
        nbd_renew_failed(n, code);
    } else if (n->opening) {
        n->open_error = *err;
        finish_open(n, code);
    } else {
        give_up(n, err, code);
    }
}

void
nbd_link_failed(struct nbd_link *link, int code, const char *words)
{
    struct nbd_device *n = link->n;
    unsigned dropped = 0;
    char name[300];

    if (n->opening) {
        thin_fail(&n->open_error, code, "%s", words);
        finish_open(n, code);
        return;
    }
    if (link == &n->look) {
        log_warning("the export cannot be looked at again device=%s reason=\"%s\"",
                    quote_name(n, name, sizeof(name)), words);
        nbd_renew_failed(n, code);
        return;
    }
    if (link == &n->links[0])
        nbd_renew_failed(n, code);
    if (thin_log_allowed(&n->link_log, loop_now_ns(n->base.loop) / NS_PER_MS, &dropped))
        log_warning("cannot connect, trying again device=%s reason=\"%s\" not_shown=%u",
                    quote_name(n, name, sizeof(name)), words, dropped);
    nbd_link_start_later(link);
}

/* ---- life ------------------------------------------------------------------------------------- */

static void
nbd_free(struct nbd_device *n)
{
    struct thin_loop *loop = n->base.loop;

    for (unsigned i = 0; i < DEVICE_NBD_CONNECTIONS_MAX; i++)
        nbd_link_drop(&n->links[i], true);
    nbd_link_drop(&n->look, true);
    loop_timer_cancel(loop, &n->tick);
    loop_timer_cancel(loop, &n->open_timer);
    loop_defer_cancel(loop, &n->start_task);
    loop_defer_cancel(loop, &n->opened_task);
    loop_defer_cancel(loop, &n->resized_task);
    if (n->ask.gone)
        n->ask.gone(n->ask.arg);
    free(n->bounce_mem);
    free(n->query);
    free(n->uri);
    free(n);
}

static void
nbd_submit(struct device *dev, struct device_io *io)
{
    struct nbd_device *n = to_nbd(dev);

    nbd_request_submit(n, io);
    nbd_service(n);
}

static void
nbd_device_close(struct device *dev, void (*closed)(void *arg), void *arg)
{
    nbd_free(to_nbd(dev));
    if (closed)
        closed(arg);
}

static const struct device_ops nbd_ops = {
    .kind = "nbd",
    .submit = nbd_submit,
    .close = nbd_device_close,
};

static void
start_run(struct thin_task *task)
{
    nbd_link_start(&container_of(task, struct nbd_device, start_task)->links[0]);
}

static void
open_timer_fire(struct thin_timer *timer)
{
    struct nbd_device *n = container_of(timer, struct nbd_device, open_timer);

    thin_fail(&n->open_error, -THIN_E_TIMED_OUT, "no connection within %u ms",
              n->connect_timeout_ms);
    finish_open(n, -THIN_E_TIMED_OUT);
}

static void
opened_run(struct thin_task *task)
{
    struct nbd_device *n = container_of(task, struct nbd_device, opened_task);
    device_nbd_opened_fn *opened = n->opened;
    struct thin_error err = n->open_error;
    void *arg = n->opened_arg;
    int r = n->open_result;

    if (r < 0) {
        thin_wrap(&err, r, "open %s", n->base.name);
        nbd_free(n);
        opened(arg, NULL, r, &err);
        return;
    }
    opened(arg, &n->base, 0, &err);
}

static void
resized_run(struct thin_task *task)
{
    struct nbd_device *n = container_of(task, struct nbd_device, resized_task);

    if (n->base.resized)
        n->base.resized(&n->base, n->info.size, n->base.resized_arg);
}

static int
allocate(struct nbd_device *n, const struct device_nbd_params *params)
{
    n->uri = strdup(params->uri);
    if (params->ask.query) {
        n->query = strdup(params->ask.query);
        if (!n->query)
            return -ENOMEM;
    }
    n->bounce_mem = malloc((size_t)NBD_BOUNCES * NBD_PIECE_BYTES);
    if (!n->uri || !n->bounce_mem)
        return -ENOMEM;
    for (unsigned i = 0; i < NBD_BOUNCES; i++)
        n->bounces[i] = n->bounce_mem + (size_t)i * NBD_PIECE_BYTES;
    n->nr_bounces = NBD_BOUNCES;
    return 0;
}

static void
init(struct nbd_device *n, const struct device_nbd_params *params)
{
    uint64_t answer_ms =
        params->answer_timeout_ms ? params->answer_timeout_ms : DEVICE_NBD_ANSWER_MS;

    n->wants_read_only = params->read_only;
    n->connect_timeout_ms =
        params->connect_timeout_ms ? params->connect_timeout_ms : DEVICE_NBD_CONNECT_MS;
    n->answer_timeout_ns = answer_ms * NS_PER_MS;
    n->nr_links = params->connections ? params->connections : 1;
    for (unsigned i = 0; i < DEVICE_NBD_CONNECTIONS_MAX; i++)
        nbd_link_init(&n->links[i], n);
    nbd_link_init(&n->look, n);
    TAILQ_INIT(&n->queue);
    TAILQ_INIT(&n->growing);
    n->tick.fire = tick_fire;
    n->open_timer.fire = open_timer_fire;
    n->start_task.run = start_run;
    n->opened_task.run = opened_run;
    n->resized_task.run = resized_run;
    n->io_log = (struct thin_log_limit){.period_ms = 10000, .burst = 5};
    n->link_log = (struct thin_log_limit){.period_ms = 10000, .burst = 5};
    thin_error_init(&n->open_error);
}

int
device_nbd_open(struct thin_loop *loop, const struct device_nbd_params *params,
                device_nbd_opened_fn *opened, void *arg, struct thin_error *err)
{
    struct nbd_device *n;
    int r;

    if (!params->uri || params->uri[0] == '\0')
        return thin_fail(err, -THIN_E_INVALID, "no URI");
    if (params->connections > DEVICE_NBD_CONNECTIONS_MAX)
        return thin_fail(err, -THIN_E_INVALID, "%u connections, %u are possible",
                         params->connections, DEVICE_NBD_CONNECTIONS_MAX);
    n = calloc(1, sizeof(*n));
    if (!n)
        return thin_fail_code(err, -ENOMEM, "open %s", params->uri);
    device_init(&n->base, &nbd_ops, loop, params->uri);
    init(n, params);
    n->opened = opened;
    n->opened_arg = arg;
    r = allocate(n, params);
    if (r == 0)
        r = loop_timer_set(loop, &n->open_timer,
                           loop_now_ns(loop) + n->connect_timeout_ms * NS_PER_MS);
    if (r < 0) {
        nbd_free(n);
        return thin_fail_code(err, r, "open %s", params->uri);
    }
    n->ask = params->ask;
    n->ask.query = n->query;
    n->opening = true;
    loop_defer(loop, &n->start_task);
    return 0;
}

struct open_waiting {
    struct device *dev;
    int result;
    bool ended;
    struct thin_error *err;
};

static void
open_waited(void *arg, struct device *dev, int result, const struct thin_error *err)
{
    struct open_waiting *w = arg;

    w->dev = dev;
    w->result = result;
    w->ended = true;
    if (result < 0 && w->err)
        *w->err = *err;
}

int
device_nbd_open_wait(struct thin_loop *loop, const struct device_nbd_params *params,
                     struct device **ret_dev, struct thin_error *err)
{
    struct open_waiting w = {.err = err};
    int r = device_nbd_open(loop, params, open_waited, &w, err);

    if (r < 0)
        return r;
    while (!w.ended) {
        r = loop_run_once(loop);
        THIN_ASSERT(r == 0 || r == -ENOMEM);
    }
    if (w.result < 0)
        return w.result;
    *ret_dev = w.dev;
    return 0;
}
