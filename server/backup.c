#include "server/backup.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/log.h"
#include "server/backup_file.h"
#include "server/events.h"
#include "server/metaview.h"
#include "server/pools.h"

/* Somebody waits for a copy, or the interval has ended. */
struct wanted {
    char kind[BACKUP_KIND_MAX];
    struct pool_done done; /* fn NULL: nobody waits */
    TAILQ_ENTRY(wanted) link;
};

/* One answer on a turn of its own. */
struct answer {
    struct thin_task task;
    struct pool_done done;
    int result;
    struct thin_error err;
};

struct backup {
    struct server *server;
    struct server_pool *sp;
    TAILQ_ENTRY(backup) link;
    TAILQ_HEAD(, wanted) wants;
    struct thin_timer interval;
    uint64_t copied_txn; /* of the last copy; what has not changed since is not copied */
    bool copied;

    /* The copy at work. */
    struct wanted *at;
    struct pool_pin *pin;
    uint64_t pinned_txn;
    const void *superblock;
    pthread_t thread;
    bool has_thread;
    char path[POOLS_PATH_MAX];
    char pool_name[THIN_NAME_MAX + 1];
    struct loop_post post;
    _Atomic int stop; /* a code: the view is lost, or the pool closes */
    int result;
    struct thin_error err;

    /* The last superblocks. Slot n of the ring is that of sequence base + n. */
    uint8_t slots[KEPT_MAX][KEPT_SLOT_BYTES];
    uint64_t nr_seen, nr_written;
    struct thin_timer keep_timer;
    struct blocking_job keep_job;
    bool keeping; /* keep_job is at work */
    bool anew;
    char *folder; /* NULL until the helper made it */
    int kept_fd;
    uint64_t kept_base;
    uint8_t out[KEPT_MAX][KEPT_SLOT_BYTES]; /* what keep_job writes */
    uint64_t out_from, out_nr;
    bool out_flush, unflushed; /* with this one; since the last one that did */
    uint64_t flushed_ns;
    bool keep_failed;

    bool stopping;
    void (*stopped)(void *arg);
    void *stopped_arg;
    struct thin_task last_task;
};

static TAILQ_HEAD(, backup) all = TAILQ_HEAD_INITIALIZER(all);
static unsigned nr_copies;

/* ---- answers ------------------------------------------------------------------------------- */

static void
answer_run(struct thin_task *task)
{
    struct answer *a = container_of(task, struct answer, task);

    a->done.fn(a->done.arg, a->result, &a->err);
    free(a);
}

static void
answer(struct server *server, struct pool_done done, int result,
       const struct thin_error *err)
{
    struct answer *a;

    if (!done.fn)
        return;
    a = calloc(1, sizeof(*a));
    if (!a) {
        done.fn(done.arg, -ENOMEM, NULL);
        return;
    }
    a->task.run = answer_run;
    a->done = done;
    a->result = result;
    thin_error_init(&a->err);
    if (err)
        a->err = *err;
    loop_defer(server->thin_loop, &a->task);
}

/* ---- the thread of a copy ------------------------------------------------------------------ */

static int
copy_tick(void *arg, const char *what, uint64_t done, uint64_t total)
{
    struct backup *b = arg;

    (void)what;
    (void)done;
    (void)total;
    return atomic_load(&b->stop) != 0;
}

static void *
copy_main(void *arg)
{
    struct backup *b = arg;
    struct metaview view = {.fd = -1};
    struct meta_source *src = NULL;
    AUTO_FREE char *folder = NULL;
    int r;

    (void)setpriority(PRIO_PROCESS, (id_t)gettid(), BACKUP_NICE);
    r = backup_folder(b->server->config.state_dir, b->pool_name, &folder, &b->err);
    if (r == 0)
        r = metaview_open(&view, b->path, b->pool_name, b->superblock, &src, &b->err);
    if (r == 0) {
        src->progress.tick = copy_tick;
        src->progress.arg = b;
        r = backup_write_pack(folder, b->at->kind, (uint64_t)time(NULL), src,
                              b->server->config.backup_keep, &b->err);
    }
    source_close(src);
    metaview_close(&view);
    b->result = r;
    server_loop_post(b->server->loop, &b->post);
    return NULL;
}

/* ---- copies --------------------------------------------------------------------------------- */

static void kick_all(void);
static void stop_continue(struct backup *b);

static void
interval_arm(struct backup *b)
{
    uint64_t ms = b->server->config.backup_interval_ms;

    if (ms && !b->stopping &&
        loop_timer_set(b->server->thin_loop, &b->interval,
                       loop_now_ns(b->server->thin_loop) + ms * NS_PER_MS) < 0)
        log_warning("no memory for the timer of metadata backups pool=%s", b->sp->name);
}

static void
copy_end(struct backup *b)
{
    struct wanted *w = take(b->at);
    int stopped = atomic_load(&b->stop);

    if (b->has_thread) {
        pthread_join(b->thread, NULL); /* it has posted, and only has to return */
        b->has_thread = false;
    }
    pool_unpin(take(b->pin));
    nr_copies--;
    if (stopped && b->result < 0)
        thin_fail(&b->err, stopped, "%s", thin_strerror(stopped));
    if (b->result == 0) {
        b->copied = true;
        b->copied_txn = b->pinned_txn;
        log_debug("the metadata was copied pool=%s kind=%s", b->pool_name, w->kind);
    } else if (stopped != -THIN_E_SHUTDOWN) {
        log_warning("the metadata could not be copied: %s pool=%s kind=%s",
                    thin_error_text(&b->err, b->result), b->pool_name, w->kind);
        events_tell(b->server, "backup-failed", b->pool_name,
                    "the metadata could not be copied");
    }
    answer(b->server, w->done, b->result, &b->err);
    free(w);
    kick_all();
    if (b->stopping)
        stop_continue(b);
}

static void
copy_posted(struct loop_post *post)
{
    copy_end(container_of(post, struct backup, post));
}

static void
copy_lost(void *arg, int why)
{
    struct backup *b = arg;

    atomic_store(&b->stop, why);
}

static void
copy_pinned(void *arg, const void *superblock, int result, const struct thin_error *err)
{
    struct backup *b = arg;
    int r = result;

    if (r < 0) {
        b->pin = NULL;
        if (err)
            b->err = *err;
    } else {
        b->superblock = superblock;
        if (b->nr_seen == 0)
            backup_superblock(b, superblock);
        r = atomic_load(&b->stop);
    }
    if (r == 0) {
        r = -pthread_create(&b->thread, NULL, copy_main, b);
        b->has_thread = r == 0;
        if (r < 0)
            thin_fail_code(&b->err, r, "start a thread");
    }
    if (r < 0) {
        b->result = r;
        copy_end(b);
    }
}

static bool
is_unchanged(const struct backup *b, const struct wanted *w)
{
    struct pool_info info;

    if (w->done.fn || !b->copied || strcmp(w->kind, "regular") != 0)
        return false;
    pool_get_info(b->sp->pool, &info);
    return info.txn == b->copied_txn;
}

/* A pool that closes may not be asked anything. If it stays open after all, the next
   interval, or who wants a copy, comes here again. */
static bool
may_copy(const struct backup *b)
{
    return !b->at && !b->stopping && nr_copies < BACKUP_COPIES_MAX && b->sp->pool &&
           b->sp->state != POOLS_CLOSING;
}

static void
kick(struct backup *b)
{
    struct pool_info info;
    struct wanted *w;
    int r;

    while (may_copy(b) && (w = TAILQ_FIRST(&b->wants))) {
        TAILQ_REMOVE(&b->wants, w, link);
        if (is_unchanged(b, w)) {
            free(w);
            continue;
        }
        pool_get_info(b->sp->pool, &info);
        b->at = w;
        b->pinned_txn = info.txn;
        b->result = 0;
        atomic_store(&b->stop, 0);
        thin_error_init(&b->err);
        nr_copies++;
        r = pool_pin(b->sp->pool, copy_pinned, copy_lost, b, &b->pin, &b->err);
        if (r < 0) {
            b->pin = NULL;
            b->result = r;
            copy_end(b);
        }
    }
}

static void
kick_all(void)
{
    struct backup *b;

    TAILQ_FOREACH(b, &all, link)
        kick(b);
}

static int
want(struct backup *b, const char *kind, struct pool_done done)
{
    struct wanted *w = calloc(1, sizeof(*w));

    if (!w)
        return -ENOMEM;
    snprintf(w->kind, sizeof(w->kind), "%s", kind);
    w->done = done;
    TAILQ_INSERT_TAIL(&b->wants, w, link);
    return 0;
}

static void
interval_ended(struct thin_timer *timer)
{
    struct backup *b = container_of(timer, struct backup, interval);

    if (TAILQ_EMPTY(&b->wants) && !b->at)
        (void)want(b, "regular", (struct pool_done){0}); /* no memory: the next time */
    interval_arm(b);
    kick(b);
}

void
backup_now(struct backup *b, struct server *server, const char *kind,
           struct pool_done done)
{
    struct thin_error err;

    thin_error_init(&err);
    if (!b || b->stopping || server->config.backup_interval_ms == 0)
        answer(server, done,
               thin_fail(&err, -THIN_E_UNSUPPORTED, "no copies are made of the metadata"),
               &err);
    else if (want(b, kind, done) < 0)
        answer(server, done, -ENOMEM, NULL);
    else
        kick(b);
}

/* ---- the last superblocks --------------------------------------------------------------------- */

static void
keep_work(struct blocking_job *job)
{
    struct backup *b = container_of(job, struct backup, keep_job);
    struct thin_error err;
    int r = 0;

    thin_error_init(&err);
    if (!b->folder)
        r = backup_folder(b->server->config.state_dir, b->pool_name, &b->folder, &err);
    if (r == 0 && b->kept_fd < 0)
        r = backup_open_kept(b->folder, b->path, b->anew, &b->kept_fd, &b->kept_base,
                             &err);
    for (uint64_t i = 0; i < b->out_nr && r == 0; i++) {
        uint64_t sequence = b->kept_base + b->out_from + i;
        const uint8_t *block = b->out[i] + KEPT_SLOT_BYTES - METADATA_BLOCK_SIZE;
        uint8_t slot[KEPT_SLOT_BYTES];

        kept_encode_slot(sequence, (uint64_t)time(NULL), block, slot);
        r = backup_write_kept(b->kept_fd, sequence, slot, &err);
    }
    if (r == 0 && b->out_flush)
        r = backup_flush_kept(b->kept_fd, &err);
    if (r < 0 && !b->keep_failed)
        log_warning("superblocks cannot be kept: %s pool=%s", err.text, b->pool_name);
    b->keep_failed = r < 0;
}

static void
keep_done(struct blocking_job *job)
{
    struct backup *b = container_of(job, struct backup, keep_job);

    b->keeping = false;
    if (b->stopping)
        stop_continue(b);
}

static void
keep_write(struct backup *b)
{
    uint64_t from, now = loop_now_ns(b->server->thin_loop);

    if (b->keeping || (b->nr_written == b->nr_seen && !(b->stopping && b->unflushed)))
        return;
    /* A flush costs all that work on that disk; what one lacks the pool's own device has. */
    b->out_flush = b->stopping || b->flushed_ns == 0 ||
                   now - b->flushed_ns >= BACKUP_FLUSH_MS * NS_PER_MS;
    b->unflushed = !b->out_flush;
    if (b->out_flush)
        b->flushed_ns = now;
    from = b->nr_seen > KEPT_MAX ? b->nr_seen - KEPT_MAX : 0;
    if (from < b->nr_written)
        from = b->nr_written;
    b->out_from = from;
    b->out_nr = b->nr_seen - from;
    for (uint64_t i = 0; i < b->out_nr; i++)
        memcpy(b->out[i], b->slots[(from + i) % KEPT_MAX], KEPT_SLOT_BYTES);
    b->nr_written = b->nr_seen;
    b->keeping = true;
    blocking_submit(b->server->blocking, &b->keep_job);
}

static void
keep_fire(struct thin_timer *timer)
{
    keep_write(container_of(timer, struct backup, keep_timer));
}

void
backup_superblock(struct backup *b, const void *block)
{
    uint8_t *slot;

    if (!b || b->server->config.backup_interval_ms == 0)
        return;
    slot = b->slots[b->nr_seen % KEPT_MAX];
    memcpy(slot + KEPT_SLOT_BYTES - METADATA_BLOCK_SIZE, block, METADATA_BLOCK_SIZE);
    b->nr_seen++;
    if (!b->keep_timer.armed && loop_timer_set(b->server->thin_loop, &b->keep_timer,
                                               loop_now_ns(b->server->thin_loop) +
                                                   BACKUP_KEPT_MS * NS_PER_MS) < 0)
        keep_write(b);
}

/* ---- life ------------------------------------------------------------------------------------ */

struct backup *
backup_start(struct server *server, struct server_pool *sp, bool anew)
{
    struct backup *b = calloc(1, sizeof(*b));

    if (!b) {
        log_warning("no memory for backups of the metadata pool=%s", sp->name);
        return NULL;
    }
    b->server = server;
    b->sp = sp;
    b->anew = anew;
    b->kept_fd = -1;
    TAILQ_INIT(&b->wants);
    b->interval.fire = interval_ended;
    b->keep_timer.fire = keep_fire;
    b->keep_job.work = keep_work;
    b->keep_job.done = keep_done;
    b->keep_job.loop = server->loop;
    b->post.run = copy_posted;
    snprintf(b->path, sizeof(b->path), "%s", sp->metadata_path);
    snprintf(b->pool_name, sizeof(b->pool_name), "%s", sp->name);
    TAILQ_INSERT_TAIL(&all, b, link);
    if (server->config.backup_interval_ms) {
        /* No memory: then at the next time. */
        (void)want(b, anew ? "create" : "open", (struct pool_done){0});
        interval_arm(b);
        kick(b);
    }
    return b;
}

static void
last_run(struct thin_task *task)
{
    struct backup *b = container_of(task, struct backup, last_task);
    void (*stopped)(void *arg) = b->stopped;
    void *arg = b->stopped_arg;

    if (b->kept_fd >= 0)
        close(b->kept_fd);
    free(b->folder);
    free(b);
    stopped(arg);
}

static void
stop_continue(struct backup *b)
{
    if (b->at || b->keeping)
        return;
    if (b->nr_written < b->nr_seen || b->unflushed) {
        keep_write(b);
        return;
    }
    TAILQ_REMOVE(&all, b, link);
    b->last_task.run = last_run;
    loop_defer(b->server->thin_loop, &b->last_task);
}

void
backup_stop(struct backup *b, void (*stopped)(void *arg), void *arg)
{
    struct wanted *w;

    b->stopping = true;
    b->stopped = stopped;
    b->stopped_arg = arg;
    loop_timer_cancel(b->server->thin_loop, &b->interval);
    loop_timer_cancel(b->server->thin_loop, &b->keep_timer);
    atomic_store(&b->stop, -THIN_E_SHUTDOWN);
    while ((w = TAILQ_FIRST(&b->wants))) {
        TAILQ_REMOVE(&b->wants, w, link);
        answer(b->server, w->done, -THIN_E_SHUTDOWN, NULL);
        free(w);
    }
    stop_continue(b);
}
