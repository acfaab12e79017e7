/*
 * One connection of the NBD device. nbd_private.h draws its states.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/device/nbd_private.h"

int
nbd_last_error(char *words, size_t max)
{
    const char *text = nbd_get_error();
    int code = nbd_get_errno();

    snprintf(words, max, "%s", text ? text : "unknown error");
    return code > 0 ? -code : -THIN_E_DISCONNECTED;
}

/* ---- the resolver: begins to connect, on a thread ------------------------------------- */

/*
 * libnbd looks the name up inside nbd_aio_connect_uri, which may take long. The handle is
 * the thread's until `done`. Whoever comes last of thread and loop frees it.
 */
struct nbd_resolver {
    struct nbd_handle *handle;
    char *uri;
    int wake_fd;
    pthread_mutex_t lock; /* guards what follows */
    bool done, abandoned;
    int result;
    char words[NBD_WORDS_MAX];
};

static void
resolver_free(struct nbd_resolver *v)
{
    if (!v)
        return;
    nbd_close(v->handle);
    if (v->wake_fd >= 0)
        close(v->wake_fd);
    pthread_mutex_destroy(&v->lock);
    free(v->uri);
    free(v);
}

static void *
resolver_main(void *arg)
{
    struct nbd_resolver *v = arg;
    char words[NBD_WORDS_MAX] = "";
    uint64_t one = 1;
    bool abandoned;
    int r = 0;

    if (nbd_aio_connect_uri(v->handle, v->uri) < 0)
        r = nbd_last_error(words, sizeof(words));
    pthread_mutex_lock(&v->lock);
    v->done = true;
    v->result = r;
    memcpy(v->words, words, sizeof(words));
    abandoned = v->abandoned;
    /* Under the lock: once it is free the loop may close the descriptor. An eventfd takes
       a count of 1. */
    while (!abandoned && write(v->wake_fd, &one, sizeof(one)) < 0 && errno == EINTR)
        continue;
    pthread_mutex_unlock(&v->lock);
    if (abandoned)
        resolver_free(v);
    return NULL;
}

static int
set_up_handle(struct nbd_handle *h, bool asks)
{
    /* Certificates are named in the URI. A read is counted, so that what a server leaves
       out never passes for data: no need to clear the buffer first. */
    if (nbd_set_uri_allow_local_file(h, true) < 0 ||
        nbd_add_meta_context(h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
        nbd_set_pread_initialize(h, false) < 0 || nbd_set_opt_mode(h, asks) < 0)
        return -ENOMEM;
    return 0;
}

/* Signals are for the threads that expect them. */
static int
start_thread(struct nbd_resolver *v)
{
    sigset_t all, old;
    pthread_attr_t attr;
    pthread_t id;
    int r;

    r = pthread_attr_init(&attr);
    if (r != 0)
        return -r;
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(&id, &attr, resolver_main, v);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    pthread_attr_destroy(&attr);
    return -r;
}

static int
resolver_create(const char *uri, bool asks, struct nbd_resolver **ret)
{
    struct nbd_resolver *v = calloc(1, sizeof(*v));
    int r = -ENOMEM;

    if (!v)
        return r;
    r = pthread_mutex_init(&v->lock, NULL);
    if (r != 0) {
        free(v);
        return -r;
    }
    v->uri = strdup(uri);
    v->handle = nbd_create();
    v->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (v->wake_fd < 0)
        r = -errno;
    else if (!v->uri || !v->handle)
        r = -ENOMEM;
    else
        r = set_up_handle(v->handle, asks);
    if (r < 0) {
        resolver_free(v);
        return r;
    }
    *ret = v;
    return 0;
}

static void
resolver_abandon(struct nbd_resolver *v)
{
    bool done;

    pthread_mutex_lock(&v->lock);
    done = v->done;
    v->abandoned = true;
    pthread_mutex_unlock(&v->lock);
    if (done)
        resolver_free(v);
}

/* ---- watching ------------------------------------------------------------------------- */

static void
unwatch(struct nbd_link *link)
{
    if (!link->watched)
        return;
    loop_watch_cancel(link->n->base.loop, &link->watch);
    link->watched = false;
}

static int
watch(struct nbd_link *link, int fd, unsigned wanted)
{
    int r;

    if (link->watched && link->watch.fd == fd && link->watch.wanted == wanted)
        return 0;
    if (link->watched && link->watch.fd != fd)
        unwatch(link);
    link->watch.fd = fd;
    r = loop_watch_set(link->n->base.loop, &link->watch, wanted);
    if (r < 0)
        return r;
    link->watched = true;
    return 0;
}

void
nbd_link_watch(struct nbd_link *link)
{
    unsigned direction, wanted = 0;
    int r;

    if (link->state != NBD_LINK_CONNECTING && link->state != NBD_LINK_UP)
        return;
    /* While it connects libnbd may try one address after another, and the next socket
       may have the number of the one before. */
    if (link->state == NBD_LINK_CONNECTING)
        unwatch(link);
    direction = nbd_aio_get_direction(link->handle);
    if (direction & LIBNBD_AIO_DIRECTION_READ)
        wanted |= THIN_WATCH_READ;
    if (direction & LIBNBD_AIO_DIRECTION_WRITE)
        wanted |= THIN_WATCH_WRITE;
    r = watch(link, nbd_aio_get_fd(link->handle), wanted);
    if (r < 0) {
        snprintf(link->words, sizeof(link->words), "cannot watch the socket: %s",
                 thin_strerror(r));
        link->broken = true;
    }
}

bool
nbd_link_is_dead(const struct nbd_link *link)
{
    return link->broken || nbd_aio_is_dead(link->handle) > 0 ||
           nbd_aio_is_closed(link->handle) > 0;
}

/* ---- from state to state ---------------------------------------------------------------- */

static void
fail(struct nbd_link *link, int code, const char *words)
{
    char copy[NBD_WORDS_MAX];

    snprintf(copy, sizeof(copy), "%s", words);
    nbd_link_drop(link, false);
    nbd_link_failed(link, code, copy);
}

/* Both are called by libnbd with its handle locked. */
static int
note_context(void *arg, const char *name)
{
    struct nbd_answer *answer = arg;

    if (answer->nr == DEVICE_NBD_ASK_NAMES_MAX ||
        strlen(name) >= DEVICE_NBD_ASK_NAME_MAX) {
        answer->too_many = true;
        return 0;
    }
    snprintf(answer->names[answer->nr++], DEVICE_NBD_ASK_NAME_MAX, "%s", name);
    return 0;
}

static int
note_answer(void *arg, int *error)
{
    struct nbd_answer *answer = arg;

    (void)error; /* who does not know the question has nothing to say */
    answer->ended = true;
    return 1;
}

static int
put_question(struct nbd_link *link)
{
    nbd_context_callback found = {.callback = note_context};
    nbd_completion_callback ended = {.callback = note_answer};

    link->answer = calloc(1, sizeof(*link->answer));
    if (!link->answer)
        return -ENOMEM;
    found.user_data = link->answer;
    ended.user_data = link->answer;
    if (nbd_clear_meta_contexts(link->handle) < 0 ||
        nbd_add_meta_context(link->handle, link->n->query) < 0)
        return -ENOMEM;
    return nbd_aio_opt_list_meta_context(link->handle, found, ended) < 0
               ? nbd_last_error(link->words, sizeof(link->words))
               : 0;
}

static int
judge_answer(struct nbd_link *link, struct thin_error *err)
{
    const struct nbd_answer *answer = link->answer;
    const char *names[DEVICE_NBD_ASK_NAMES_MAX];

    if (answer->too_many)
        return thin_fail(err, -THIN_E_LIMIT, "the server lists more than %u names",
                         DEVICE_NBD_ASK_NAMES_MAX);
    for (unsigned i = 0; i < answer->nr; i++)
        names[i] = answer->names[i];
    return link->n->ask.answered(link->n->ask.arg, names, answer->nr, err);
}

static int
note_go(void *arg, int *error)
{
    struct nbd_answer *answer = arg;

    answer->go_error = *error;
    return 1;
}

/* Judges what was answered, and asks for the export. */
static int
judge_and_go(struct nbd_link *link, struct thin_error *err, bool *ret_refused)
{
    nbd_completion_callback ended = {.callback = note_go, .user_data = link->answer};
    int r = judge_answer(link, err);

    *ret_refused = r < 0;
    if (r < 0)
        return r;
    link->answer->judged = true;
    if (nbd_clear_meta_contexts(link->handle) < 0 ||
        nbd_add_meta_context(link->handle, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0)
        return -ENOMEM;
    return nbd_aio_opt_go(link->handle, ended) < 0
               ? nbd_last_error(link->words, sizeof(link->words))
               : 0;
}

/* The question, its answer, the wish for the export. False: it has ended. */
static bool
negotiate(struct nbd_link *link)
{
    struct thin_error err;
    bool refused = false;
    int r = 0;

    thin_error_init(&err);
    if (!link->answer)
        r = put_question(link);
    else if (link->answer->judged)
        r = link->answer->go_error ? -link->answer->go_error : -THIN_E_NOT_FOUND;
    else if (link->answer->ended)
        r = judge_and_go(link, &err, &refused);
    else
        r = -THIN_E_PROTOCOL; /* libnbd would be here without having called back */
    if (refused) {
        nbd_link_drop(link, false);
        nbd_link_refused(link, &err, r);
    } else if (r < 0) {
        fail(link, r,
             link->words[0] ? link->words : "the server does not open the export");
    }
    return r == 0;
}

static void
settle_connecting(struct nbd_link *link, int code)
{
    struct nbd_device *n = link->n;

    while (!nbd_link_is_dead(link) && nbd_aio_is_negotiating(link->handle) > 0)
        if (!negotiate(link))
            return;
    if (nbd_link_is_dead(link)) {
        fail(link, code < 0 ? code : -THIN_E_DISCONNECTED,
             link->words[0] ? link->words : "the server closed the connection");
    } else if (nbd_aio_is_ready(link->handle) > 0) {
        loop_timer_cancel(n->base.loop, &link->timer);
        link->state = NBD_LINK_UP;
        free(take(link->answer));
        nbd_link_watch(link);
        nbd_link_is_up(link);
    } else {
        nbd_link_watch(link);
        if (link->broken)
            fail(link, -ENOMEM, link->words);
    }
}

static void
start_connecting(struct nbd_link *link)
{
    struct nbd_device *n = link->n;
    int r;

    link->state = NBD_LINK_CONNECTING;
    r = loop_timer_set(n->base.loop, &link->timer,
                       loop_now_ns(n->base.loop) + n->connect_timeout_ms * NS_PER_MS);
    if (r < 0)
        fail(link, r, "cannot set a timer");
    else
        settle_connecting(link, 0);
}

static void
resolver_ready(struct nbd_link *link)
{
    struct nbd_resolver *v = link->resolver;
    char words[NBD_WORDS_MAX];
    bool done;
    int r;

    pthread_mutex_lock(&v->lock);
    done = v->done;
    pthread_mutex_unlock(&v->lock);
    if (!done)
        return;
    unwatch(link);
    r = v->result;
    memcpy(words, v->words, sizeof(words));
    link->handle = take(v->handle);
    resolver_free(take(link->resolver));
    if (r < 0)
        fail(link, r, words);
    else
        start_connecting(link);
}

static void
watch_ready(struct thin_watch *w, unsigned events)
{
    struct nbd_link *link = container_of(w, struct nbd_link, watch);
    unsigned direction;
    int r = 0;

    if (link->state == NBD_LINK_RESOLVING) {
        resolver_ready(link);
        return;
    }
    link->heard_ns = loop_now_ns(link->n->base.loop);
    direction = nbd_aio_get_direction(link->handle);
    if ((events & THIN_WATCH_READ) && (direction & LIBNBD_AIO_DIRECTION_READ))
        r = nbd_aio_notify_read(link->handle);
    else if ((events & THIN_WATCH_WRITE) && (direction & LIBNBD_AIO_DIRECTION_WRITE))
        r = nbd_aio_notify_write(link->handle);
    if (r < 0)
        r = nbd_last_error(link->words, sizeof(link->words));
    if (link->state == NBD_LINK_CONNECTING)
        settle_connecting(link, r);
    else
        nbd_service(link->n);
}

static void
timer_fire(struct thin_timer *timer)
{
    struct nbd_link *link = container_of(timer, struct nbd_link, timer);

    if (link->state == NBD_LINK_WAITING) {
        link->state = NBD_LINK_DOWN;
        nbd_link_start(link);
    } else if (link->state == NBD_LINK_CONNECTING) {
        fail(link, -THIN_E_TIMED_OUT, "the server does not complete the handshake");
    }
}

static void
pause_and_start(struct nbd_link *link)
{
    struct thin_loop *loop = link->n->base.loop;
    uint64_t when_ns = loop_now_ns(loop) + link->pause_ms * NS_PER_MS;

    /* Without a timer there is still a next turn, at which there may be one. */
    if (loop_timer_set(loop, &link->timer, when_ns) < 0)
        loop_defer(loop, &link->pause_task);
}

static void
pause_task_run(struct thin_task *task)
{
    pause_and_start(container_of(task, struct nbd_link, pause_task));
}

void
nbd_link_start_later(struct nbd_link *link)
{
    THIN_ASSERT(link->state == NBD_LINK_DOWN);
    link->state = NBD_LINK_WAITING;
    link->pause_ms = link->backoff_ms;
    link->backoff_ms *= 2;
    if (link->backoff_ms > NBD_BACKOFF_MAX_MS)
        link->backoff_ms = NBD_BACKOFF_MAX_MS;
    pause_and_start(link);
}

void
nbd_link_start(struct nbd_link *link)
{
    int r;

    THIN_ASSERT(link->state == NBD_LINK_DOWN);
    link->broken = false;
    link->words[0] = '\0';
    r = resolver_create(link->n->uri, link->n->query != NULL, &link->resolver);
    if (r == 0) {
        link->state = NBD_LINK_RESOLVING;
        r = watch(link, link->resolver->wake_fd, THIN_WATCH_READ);
        if (r == 0)
            r = start_thread(link->resolver);
        if (r == 0)
            return;
        /* No thread has it. */
        unwatch(link);
        resolver_free(take(link->resolver));
        link->state = NBD_LINK_DOWN;
    }
    nbd_link_failed(link, r, "cannot start to connect");
}

void
nbd_link_drop(struct nbd_link *link, bool politely)
{
    loop_timer_cancel(link->n->base.loop, &link->timer);
    loop_defer_cancel(link->n->base.loop, &link->pause_task);
    unwatch(link);
    if (link->resolver)
        resolver_abandon(take(link->resolver));
    if (link->handle) {
        /* Sent at once, since nothing else is in flight; nobody answers it. */
        if (politely && link->state == NBD_LINK_UP &&
            nbd_aio_disconnect(link->handle, 0) < 0)
            log_debug("cannot say good-bye device=%s", link->n->base.name);
        nbd_close(take(link->handle));
    }
    free(take(link->answer));
    link->state = NBD_LINK_DOWN;
    link->broken = false;
}

void
nbd_link_init(struct nbd_link *link, struct nbd_device *n)
{
    link->n = n;
    link->backoff_ms = NBD_BACKOFF_MIN_MS;
    link->watch.ready = watch_ready;
    link->timer.fire = timer_fire;
    link->pause_task.run = pause_task_run;
    TAILQ_INIT(&link->free);
    TAILQ_INIT(&link->ended);
    for (unsigned i = 0; i < NBD_COMMANDS_MAX; i++) {
        link->commands[i].link = link;
        TAILQ_INSERT_TAIL(&link->free, &link->commands[i], entry);
    }
}
