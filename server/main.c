/*
 * thinsrv: wiring in order of start, and the way down again.
 *
 *   configuration ─► state folder, rules, certificates ─► loop ─► pools open again
 *   ─► listeners ─► serving ─► SIGTERM: listeners shut, requests end, pools commit and
 *   close ─► exit 0
 */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <grp.h>
#include <pwd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/random.h"
#include "proto/limits.h"
#include "server/attach.h"
#include "server/conn.h"
#include "server/events.h"
#include "server/listener.h"
#include "server/nbd_face.h"
#include "server/online.h"
#include "server/pools.h"
#include "server/pools_store.h"
#include "server/request.h"
#include "server/session.h"

#define LOOP_NAME         "main"
#define FACES_PATIENCE_NS (8 * NS_PER_SEC) /* then pools close over what still runs */

struct process {
    struct server server;
    struct thin_watch signals;
    int state_lock; /* held while the process lives; 0: none */
    int exit_code;
    unsigned faces_left;
    bool pools_stopping, pools_stopped;
    struct thin_timer patience;
    struct thin_task stop_task;
};

static struct process process;

/* ---- configuration that can be read again ------------------------------------------------ */

static bool
wants_nbd_tls(const struct server_config *c)
{
    for (unsigned i = 0; i < c->nr_nbd_listen; i++) {
        bool local = strncmp(c->nbd_listen[i], "unix:", 5) == 0;

        if (c->nbd_tls == CONFIG_NBD_TLS_ALLOWED ||
            c->nbd_tls == CONFIG_NBD_TLS_REQUIRED ||
            (c->nbd_tls == CONFIG_NBD_TLS_DEFAULT && !local))
            return true;
    }
    return false;
}

static int
load_tls(const struct server_config *c, struct channel_tls **ret_tls,
         struct channel_tls **ret_nbd_tls, struct thin_error *err)
{
    struct channel_tls_params params = {
        .cert = c->cert, .key = c->key, .ca = c->ca, .crl = c->crl, .server = true};
    struct channel_tls *tls = NULL, *nbd_tls = NULL;
    int r = 0;

    if (c->listen_tls)
        r = channel_tls_create(&params, &tls, err);
    if (r == 0 && wants_nbd_tls(c)) {
        params.allow_tls12 = true;
        r = channel_tls_create(&params, &nbd_tls, err);
    }
    if (r == 0 && (tls || nbd_tls)) {
        r = channel_tls_check_use(tls ? tls : nbd_tls, err);
        if (r < 0)
            thin_wrap(err, r, "%s", c->cert);
    }
    if (r < 0) {
        channel_tls_put(tls);
        channel_tls_put(nbd_tls);
        return thin_wrap(err, r, "load the certificates");
    }
    *ret_tls = tls;
    *ret_nbd_tls = nbd_tls;
    return 0;
}

/* Certificates, revocation lists and rules; open connections keep what they have. */
static void
reload(void)
{
    struct channel_tls *tls, *nbd_tls;
    struct thin_error err;

    /* Small files, read at a person's wish: the loop waits this once, so that no
       connection ever sees half of a change. */
    if (load_tls(&process.server.config, &tls, &nbd_tls, &err) < 0) {
        log_error("reload: %s; the old certificates stay in use", err.text);
    } else {
        channel_tls_put(process.server.tls);
        channel_tls_put(process.server.nbd_tls);
        process.server.tls = tls;
        process.server.nbd_tls = nbd_tls;
        log_notice("certificates are loaded anew");
    }
    if (auth_reload(process.server.auth, &err) < 0)
        log_error("reload: %s; the old rules stay in use", err.text);
    else
        log_notice("access rules are loaded anew");
}

/* ---- the way down ------------------------------------------------------------------------- */

/* The loop ends when all pools are closed and nobody is left to be told. */
static void
check_stopped(void)
{
    if (process.pools_stopped && process.faces_left == 0)
        server_loop_stop(process.server.loop);
}

static void
last_face_is_shut(void *arg)
{
    (void)arg;
    process.pools_stopped = true;
    check_stopped();
}

static void
pools_stopped(void *arg)
{
    (void)arg;
    /* Those that pools of ours had to each other. */
    if (process.faces_left == 0)
        nbd_face_shutdown(&process.server, true, last_face_is_shut, NULL);
    else
        last_face_is_shut(NULL);
}

static void
stop_pools(void)
{
    if (process.pools_stopping)
        return;
    process.pools_stopping = true;
    loop_timer_cancel(process.server.thin_loop, &process.patience);
    pools_stop(process.server.pools, pools_stopped, NULL);
}

static void
face_is_shut(void *arg)
{
    (void)arg;
    if (--process.faces_left == 0)
        stop_pools();
    check_stopped();
}

/* Requests that wait for space, say: closing the pools ends them. */
static void
patience_over(struct thin_timer *timer)
{
    (void)timer;
    log_warning("requests in flight do not end, the pools are closed over them");
    stop_pools();
}

static void
stop_now(struct thin_task *task)
{
    (void)task;
    for (unsigned i = 0; i < process.server.nr_listeners; i++)
        listener_close(process.server.listeners[i]);
    process.server.nr_listeners = 0;
    process.faces_left = 2;
    process.patience.fire = patience_over;
    if (loop_timer_set(process.server.thin_loop, &process.patience,
                       loop_now_ns(process.server.thin_loop) + FACES_PATIENCE_NS) < 0)
        stop_pools();
    online_stop();
    pools_drain(process.server.pools);
    nbd_face_shutdown(&process.server, false, face_is_shut, NULL);
    conns_shutdown(&process.server, face_is_shut, NULL);
}

static void
begin_stop(struct server *server)
{
    if (server->stopping)
        return;
    server->stopping = true;
    log_notice("stopping");
    sd_notify(0, "STOPPING=1");
    loop_defer(server->thin_loop, &process.stop_task);
}

static void
on_signal(struct thin_watch *watch, unsigned events)
{
    struct signalfd_siginfo info;

    (void)events;
    while (read(watch->fd, &info, sizeof(info)) == (ssize_t)sizeof(info)) {
        if (info.ssi_signo == SIGHUP)
            reload();
        else
            begin_stop(&process.server);
    }
}

static int
watch_signals(sigset_t *set, struct thin_error *err)
{
    int fd = signalfd(-1, set, SFD_NONBLOCK | SFD_CLOEXEC);

    if (fd < 0)
        return thin_fail_code(err, -errno, "watch signals");
    process.signals.fd = fd;
    process.signals.ready = on_signal;
    return loop_watch_set(process.server.thin_loop, &process.signals, THIN_WATCH_READ);
}

/* ---- the way up ------------------------------------------------------------------------------ */

static int
open_listener(enum listener_face face, const struct socket_address *address,
              struct thin_error *err)
{
    return listener_open(&process.server, face, address,
                         &process.server.listeners[process.server.nr_listeners], err);
}

static int
open_listeners(struct thin_error *err)
{
    const struct server_config *c = &process.server.config;
    struct socket_address address;
    int r = 0;

    if (c->listen_unix) {
        AUTO_FREE char *text = NULL;

        if (asprintf(&text, "unix:%s", c->listen_unix) < 0)
            return thin_fail_code(err, -ENOMEM, "listen");
        r = socket_address_parse(text, 0, &address, err);
        if (r == 0)
            r = open_listener(LISTEN_THIN, &address, err);
        if (r < 0)
            return r;
        process.server.nr_listeners++;
    }
    if (c->listen_tls) {
        r = socket_address_parse_host(c->listen_tls, PROTO_PORT, &address, err);
        if (r == 0)
            r = open_listener(LISTEN_THIN, &address, err);
        if (r < 0)
            return r;
        process.server.nr_listeners++;
    }
    for (unsigned i = 0; i < c->nr_nbd_listen; i++) {
        r = socket_address_parse(c->nbd_listen[i], NBD_PORT, &address, err);
        if (r == 0)
            r = open_listener(LISTEN_NBD, &address, err);
        if (r < 0)
            return r;
        process.server.nr_listeners++;
    }
    return 0;
}

/* Every pool that was open is open again, or has said why not. */
static void
pools_settled(void *arg)
{
    struct thin_error err;

    (void)arg;
    if (process.server.stopping)
        return;
    if (open_listeners(&err) < 0) {
        log_error("%s", err.text);
        process.exit_code = 1;
        begin_stop(&process.server);
        return;
    }
    sd_notify(0, "READY=1");
    log_notice("serving version=%s listeners=%u", THIN_VERSION,
               process.server.nr_listeners);
}

static int
no_such_user(const char *user, struct thin_error *err)
{
    return thin_fail(err, -THIN_E_CONFIG, "[server] user: no such user: %s", user);
}

/* All files and devices are opened as this user from here on. */
static int
drop_rights(const char *user, struct thin_error *err)
{
    struct passwd *pw = getpwnam(user);

    if (!pw)
        return no_such_user(user, err);
    if (geteuid() == pw->pw_uid)
        return 0;
    if (initgroups(user, pw->pw_gid) < 0 || setgid(pw->pw_gid) < 0 ||
        setuid(pw->pw_uid) < 0)
        return thin_fail_code(err, -errno, "become the user %s", user);
    return 0;
}

static void
raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        setrlimit(RLIMIT_NOFILE, &limit);
    }
}

/* --check-config: what can be known without touching anything. */
static int
check_only(struct server *s)
{
    struct thin_error err;
    int r = load_tls(&s->config, &s->tls, &s->nbd_tls, &err);

    if (r == 0 && s->config.user && !getpwnam(s->config.user))
        r = no_such_user(s->config.user, &err);
    if (r < 0)
        fprintf(stderr, "thinsrv: %s: %s\n", s->config_path, err.text);
    else
        printf("%s: good\n", s->config_path);
    channel_tls_put(s->tls);
    channel_tls_put(s->nbd_tls);
    config_fini(&s->config);
    return r < 0 ? 1 : 0;
}

static int
start(struct server *s, sigset_t *set, struct thin_error *err)
{
    int r = load_tls(&s->config, &s->tls, &s->nbd_tls, err);

    if (r == 0)
        r = pools_store_prepare(s->config.state_dir, &process.state_lock, err);
    if (r == 0)
        r = auth_create(s->config.state_dir, &s->auth, err);
    if (r == 0)
        r = server_loop_create(LOOP_NAME, s->config.spin_us, &s->loop, err);
    if (r < 0)
        return r;
    s->thin_loop = server_loop_thin(s->loop);
    s->stop = begin_stop;
    s->lease_ms = PROTO_LEASE_MS;
    process.stop_task.run = stop_now;
    r = blocking_create(&s->blocking, err);
    if (r == 0)
        r = payload_create(s->thin_loop, s->config.payload_memory, &s->payload);
    if (r == 0)
        r = attach_create(s, &s->attachments);
    if (r == 0)
        r = sessions_create(s, &s->sessions);
    if (r == 0)
        r = events_create(s, &s->events);
    if (r == 0)
        r = random_secret(s->start_id, sizeof(s->start_id));
    if (r < 0)
        return thin_wrap(err, r, "start");
    r = pools_create_registry(s, &s->pools, err);
    if (r == 0)
        r = watch_signals(set, err);
    if (r < 0)
        return r;
    s->started_s = (uint64_t)time(NULL);
    if (s->config.workers > 1)
        log_notice("this version serves all pools on one loop workers=1");
    if (s->config.metrics_listen)
        log_warning("this version serves no metrics; nobody listens on address=%s",
                    s->config.metrics_listen);
    pools_start(s->pools, pools_settled, NULL);
    return 0;
}

static void
finish(struct server *s)
{
    pools_destroy_registry(s->pools);
    events_destroy(s->events);
    sessions_destroy(s->sessions);
    requests_fini();
    conns_fini();
    attach_destroy(s->attachments);
    nbd_face_fini();
    payload_destroy(s->payload);
    blocking_destroy(s->blocking);
    if (s->loop)
        loop_watch_cancel(s->thin_loop, &process.signals);
    server_loop_destroy(s->loop);
    channel_tls_put(s->tls);
    channel_tls_put(s->nbd_tls);
    auth_destroy(s->auth);
    config_fini(&s->config);
}

static int
usage(const char *wrong)
{
    if (wrong)
        fprintf(stderr, "thinsrv: %s; ", wrong);
    fprintf(wrong ? stderr : stdout,
            "usage: thinsrv --config FILE [--check-config] | --version\n");
    return wrong ? 2 : 0;
}

int
main(int argc, char **argv)
{
    static const struct option options[] = {{"config", required_argument, NULL, 'c'},
                                            {"check-config", no_argument, NULL, 'k'},
                                            {"version", no_argument, NULL, 'V'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    const char *config_path = NULL;
    bool only_check = false;
    struct thin_error err;
    sigset_t set;
    int opt;

    opterr = 0; /* one line of our own */
    while ((opt = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (opt == 'c')
            config_path = optarg;
        else if (opt == 'k')
            only_check = true;
        else if (opt == 'V')
            return printf("thinsrv %s\n", THIN_VERSION) < 0;
        else
            return usage(opt == 'h' ? NULL : "unknown option, or one without its value");
    }
    if (optind < argc && only_check && !config_path)
        config_path = argv[optind++];
    if (optind < argc || !config_path)
        return usage(config_path ? "one word too many" : "--config is missing");
    if (config_read(config_path, &process.server.config, &err) < 0) {
        fprintf(stderr, "thinsrv: %s\n", err.text);
        return 1;
    }
    process.server.config_path = config_path;
    thin_log_set_level(process.server.config.log_level);
    if (only_check)
        return check_only(&process.server);
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGHUP);
    sigprocmask(SIG_BLOCK, &set, NULL);
    raise_descriptor_limit();
    if ((process.server.config.user &&
         drop_rights(process.server.config.user, &err) < 0) ||
        start(&process.server, &set, &err) < 0) {
        fprintf(stderr, "thinsrv: %s\n", err.text);
        finish(&process.server);
        return 1;
    }
    server_loop_run(process.server.loop);
    finish(&process.server);
    log_notice("stopped");
    return process.exit_code;
}
