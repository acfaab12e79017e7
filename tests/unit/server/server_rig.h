/*
 * A server in this process, wired as main.c does it, on a thread of its own; and peers
 * that speak raw frames to it and wait for each answer.
 */
#ifndef TESTS_UNIT_SERVER_SERVER_RIG_H
#define TESTS_UNIT_SERVER_SERVER_RIG_H

#include <check.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/base/random.h"
#include "proto/frame.h"
#include "proto/limits.h"
#include "proto/message.h"
#include "server/attach.h"
#include "server/conn.h"
#include "server/events.h"
#include "server/listener.h"
#include "server/nbd_face.h"
#include "server/pools.h"
#include "server/pools_store.h"
#include "server/request.h"
#include "server/session.h"

#define RIG_WAIT_MS rig_wait_ms()

/* Stretched like the limits of the cases: under valgrind a server takes its time. */
static inline int
rig_wait_ms(void)
{
    const char *times = getenv("CK_TIMEOUT_MULTIPLIER");
    long by = times ? strtol(times, NULL, 10) : 1;

    return 10000 * (int)(by < 1 ? 1 : by > 30 ? 30 : by);
}

struct rig {
    char dir[64];
    struct server server;
    unsigned faces_left;
    bool started;
    int state_lock;
};

static struct rig rig;

static inline const char *
rig_path(const char *name)
{
    static _Thread_local char path[4][160]; /* the loop's thread names files, too */
    static _Thread_local unsigned at;
    char *p = path[at++ % 4];

    snprintf(p, sizeof(path[0]), "%s/%s", rig.dir, name);
    return p;
}

/* ---- the server ------------------------------------------------------------------------ */

static inline void
rig_pools_stopped(void *arg)
{
    (void)arg;
    server_loop_stop(rig.server.loop);
}

static inline void
rig_face_is_shut(void *arg)
{
    (void)arg;
    if (--rig.faces_left == 0)
        pools_stop(rig.server.pools, rig_pools_stopped, NULL);
}

static inline void
rig_stop_now(struct loop_post *post)
{
    (void)post;
    rig.server.stopping = true;
    for (unsigned i = 0; i < rig.server.nr_listeners; i++)
        listener_close(rig.server.listeners[i]);
    rig.server.nr_listeners = 0;
    rig.faces_left = 2;
    nbd_face_shutdown(&rig.server, true, rig_face_is_shut, NULL);
    conns_shutdown(&rig.server, rig_face_is_shut, NULL);
}

static inline void
rig_stop_asked(struct server *server)
{
    static struct loop_post post = {.run = rig_stop_now};

    if (server->stopping)
        return;
    server->stopping = true;
    server_loop_post(server->loop, &post);
}

/* From the test's thread. */
static inline void
rig_ask(struct loop_post *post)
{
    (void)post;
    rig_stop_asked(&rig.server);
}

static inline void
rig_settled(void *arg)
{
    struct socket_address address;
    struct thin_error err;
    char text[200];

    (void)arg;
    snprintf(text, sizeof(text), "unix:%s", rig_path("sock"));
    ck_assert_int_eq(socket_address_parse(text, 0, &address, &err), 0);
    ck_assert_msg(listener_open(&rig.server, LISTEN_THIN, &address,
                                &rig.server.listeners[0], &err) == 0,
                  "%s", err.text);
    rig.server.nr_listeners = 1;
    if (!rig.server.tls)
        return;
    ck_assert_int_eq(socket_address_parse_host("127.0.0.1:0", 0, &address, &err), 0);
    address.port = 0;
    ck_assert_msg(listener_open(&rig.server, LISTEN_THIN, &address,
                                &rig.server.listeners[1], &err) == 0,
                  "%s", err.text);
    rig.server.nr_listeners = 2;
}

/* Everything but the loop's start; the test may change the configuration before that. */
static inline void
rig_prepare(void)
{
    struct server *s = &rig.server;
    struct thin_error err;

    signal(SIGPIPE, SIG_IGN);
    if (!rig.dir[0]) {
        snprintf(rig.dir, sizeof(rig.dir), "/tmp/test-server-XXXXXX");
        ck_assert_ptr_nonnull(mkdtemp(rig.dir));
    }
    memset(s, 0, sizeof(*s));
    pool_config_default(&s->config.pool);
    s->config.pool.metadata_cache_blocks = 1024;
    s->config.block_size = 65536;
    s->config.state_dir = strdup(rig_path("state"));
    s->lease_ms = 1500;
    thin_log_set_level(getenv("RIG_DEBUG") ? THIN_LOG_DEBUG : THIN_LOG_ERROR);
    ck_assert_int_eq(pools_store_prepare(s->config.state_dir, &rig.state_lock, &err), 0);
    ck_assert_int_eq(auth_create(s->config.state_dir, &s->auth, &err), 0);
    ck_assert_int_eq(server_loop_create("test", 0, &s->loop, &err), 0);
    s->thin_loop = server_loop_thin(s->loop);
    s->stop = rig_stop_asked;
    ck_assert_int_eq(blocking_create(&s->blocking, &err), 0);
    ck_assert_int_eq(attach_create(s, &s->attachments), 0);
    ck_assert_int_eq(sessions_create(s, &s->sessions), 0);
    ck_assert_int_eq(events_create(s, &s->events), 0);
    ck_assert_int_eq(random_secret(s->start_id, sizeof(s->start_id)), 0);
    ck_assert_msg(pools_create_registry(s, &s->pools, &err) == 0, "%s", err.text);
    s->started_s = 1;
}

static inline void
rig_go(uint64_t payload_memory)
{
    struct server *s = &rig.server;
    struct thin_error err;

    ck_assert_int_eq(payload_create(s->thin_loop, payload_memory, &s->payload), 0);
    pools_start(s->pools, rig_settled, NULL);
    ck_assert_int_eq(server_loop_start(s->loop, &err), 0);
    rig.started = true;
}

static inline void
rig_start(void)
{
    rig_prepare();
    rig_go(128 << 20);
}

/* All must be back: connections, sessions, payload memory; else an assert says so. */
static inline void
rig_stop(void)
{
    static struct loop_post ask;
    struct server *s = &rig.server;
    uint64_t budget, lent;

    ask.run = rig_ask;
    server_loop_post(s->loop, &ask);
    server_loop_join(s->loop);
    payload_get_stats(s->payload, &budget, &lent);
    ck_assert_uint_eq(lent, 0);
    ck_assert_uint_eq(s->connections, 0);
    ck_assert_uint_eq(s->handshakes, 0);
    pools_destroy_registry(s->pools);
    events_destroy(s->events);
    sessions_destroy(s->sessions);
    requests_fini();
    conns_fini();
    attach_destroy(s->attachments);
    nbd_face_fini();
    payload_destroy(s->payload);
    blocking_destroy(s->blocking);
    server_loop_destroy(s->loop);
    channel_tls_put(s->tls);
    auth_destroy(s->auth);
    close(rig.state_lock);
    free(s->config.state_dir);
    s->config.state_dir = NULL;
    rig.started = false;
}

static inline void
rig_remove(void)
{
    char command[128];

    snprintf(command, sizeof(command), "rm -rf %s", rig.dir);
    ck_assert_int_eq(system(command), 0);
    rig.dir[0] = '\0';
}

static inline void
rig_teardown(void)
{
    if (rig.started)
        rig_stop();
    rig_remove();
}

/* ---- peers ----------------------------------------------------------------------------- */

struct peer {
    int fd;
    struct channel *channel; /* TLS; NULL: plain on fd */
    uint64_t seq[PROTO_SLOTS_DEFAULT + 1];
    uint8_t token[PROTO_TOKEN_BYTES];
    uint64_t session;
    uint32_t slots;
    bool resumed;
    /* What came last. */
    Thin__Message *message;
    Thin__Reply *reply;
    uint8_t *payload;
    uint32_t payload_bytes;
    void *arena;
};

static inline int
peer_wait(struct peer *p, short events, int ms)
{
    struct pollfd pfd = {.fd = p->fd, .events = events};

    if (p->channel && (events & POLLIN) && channel_pending(p->channel))
        return 1;
    return poll(&pfd, 1, ms);
}

static inline struct peer *
peer_dial(void)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct peer *p = calloc(1, sizeof(*p));

    snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", rig_path("sock"));
    p->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    for (int i = 0; i < 500; i++) {
        if (connect(p->fd, (struct sockaddr *)&addr, sizeof(addr)) == 0)
            return p;
        usleep(10000);
    }
    ck_abort_msg("no server");
    return NULL;
}

static inline void
peer_hang_up(struct peer *p)
{
    if (p->channel)
        channel_destroy(p->channel);
    else
        close(p->fd);
    free(p->arena);
    free(p->payload);
    free(p);
}

/* False: the server has closed. */
static inline bool
peer_send_bytes(struct peer *p, const void *bytes, size_t len)
{
    const uint8_t *at = bytes;

    while (len > 0) {
        ssize_t n;

        if (p->channel) {
            struct iovec iov = {(void *)(uintptr_t)at, len};

            n = channel_writev(p->channel, &iov, 1, NULL);
            if (n == -EAGAIN) {
                peer_wait(p, POLLOUT, RIG_WAIT_MS);
                continue;
            }
        } else {
            n = send(p->fd, at, len, MSG_NOSIGNAL);
        }
        if (n <= 0)
            return false;
        at += n;
        len -= (size_t)n;
    }
    return true;
}

static inline bool
peer_read_bytes(struct peer *p, void *bytes, size_t len)
{
    uint8_t *at = bytes;

    while (len > 0) {
        ssize_t n;

        ck_assert_msg(peer_wait(p, POLLIN, RIG_WAIT_MS) > 0, "the server is silent");
        n = p->channel ? channel_read(p->channel, at, len, NULL) : read(p->fd, at, len);
        if (n == -EAGAIN)
            continue;
        if (n <= 0)
            return false;
        at += n;
        len -= (size_t)n;
    }
    return true;
}

static inline bool
peer_send_frame(struct peer *p, Thin__Message *message, const void *payload,
                uint32_t payload_bytes)
{
    size_t bytes = FRAME_PREFIX_BYTES + message_encoded_bytes(message);
    uint8_t *frame = malloc(bytes);
    bool sent;

    message_encode(message, payload_bytes, frame);
    sent = peer_send_bytes(p, frame, bytes) &&
           (!payload_bytes || peer_send_bytes(p, payload, payload_bytes));
    free(frame);
    return sent;
}

static inline bool
peer_send(struct peer *p, Thin__Request *rq, const void *payload, uint32_t payload_bytes)
{
    Thin__Message message = THIN__MESSAGE__INIT;

    message.body_case = THIN__MESSAGE__BODY_REQUEST;
    message.request = rq;
    return peer_send_frame(p, &message, payload, payload_bytes);
}

/* The next frame, whatever it is. False: closed by the server. */
static inline bool
peer_receive(struct peer *p)
{
    uint8_t prefix_bytes[FRAME_PREFIX_BYTES];
    struct message_arena arena;
    struct frame_prefix prefix;
    struct thin_error err;
    size_t arena_bytes;
    uint8_t *bytes;

    p->reply = NULL;
    if (!peer_read_bytes(p, prefix_bytes, sizeof(prefix_bytes)))
        return false;
    ck_assert_msg(frame_prefix_decode(prefix_bytes, PROTO_MESSAGE_MAX, PROTO_PAYLOAD_MAX,
                                      &prefix, &err) == 0,
                  "%s", err.text);
    bytes = malloc(prefix.message_bytes + 1);
    ck_assert(peer_read_bytes(p, bytes, prefix.message_bytes));
    ck_assert_int_eq(frame_check(prefix_bytes, &prefix, bytes, &err), 0);
    free(p->payload);
    p->payload = malloc(prefix.payload_bytes + 1);
    p->payload_bytes = prefix.payload_bytes;
    ck_assert(prefix.payload_bytes == 0 ||
              peer_read_bytes(p, p->payload, prefix.payload_bytes));
    free(p->arena);
    arena_bytes = prefix.message_bytes * 16 + 65536;
    p->arena = malloc(arena_bytes);
    message_arena_init(&arena, p->arena, arena_bytes);
    ck_assert_msg(
        message_decode(&arena, bytes, prefix.message_bytes, &p->message, &err) == 0, "%s",
        err.text);
    free(bytes);
    if (p->message->body_case == THIN__MESSAGE__BODY_REPLY)
        p->reply = p->message->reply;
    return true;
}

/* The next reply; events in between are dropped. */
static inline Thin__Reply *
peer_reply(struct peer *p)
{
    do
        ck_assert_msg(peer_receive(p), "the server has closed the connection");
    while (!p->reply);
    return p->reply;
}

/* True when the server closes without another word but a last reply with `code`. */
static inline bool
peer_is_refused(struct peer *p, int code)
{
    bool said = false;

    while (peer_receive(p))
        said = p->reply && p->reply->slot == 0 && p->reply->code == code;
    return said;
}

static inline void
peer_hello_as(struct peer *p, const uint8_t *token, bool resume)
{
    Thin__Request rq = THIN__REQUEST__INIT;
    Thin__Hello hello = THIN__HELLO__INIT;
    char name[] = "test";

    hello.version_min = PROTO_VERSION_MIN;
    hello.version_max = PROTO_VERSION_MAX + 5;
    hello.client_name = name;
    if (token) {
        hello.session_token.data = (uint8_t *)(uintptr_t)token;
        hello.session_token.len = PROTO_TOKEN_BYTES;
    }
    hello.resume = resume;
    rq.body_case = THIN__REQUEST__BODY_HELLO;
    rq.hello = &hello;
    ck_assert(peer_send(p, &rq, NULL, 0));
}

static inline void
peer_welcome(struct peer *p)
{
    Thin__Reply *reply = peer_reply(p);

    ck_assert_msg(reply->code == 0, "%d %s", reply->code, reply->text);
    ck_assert_int_eq(reply->body_case, THIN__REPLY__BODY_HELLO);
    ck_assert_uint_eq(reply->hello->version, 1);
    ck_assert_uint_eq(reply->hello->session_token.len, PROTO_TOKEN_BYTES);
    memcpy(p->token, reply->hello->session_token.data, PROTO_TOKEN_BYTES);
    p->session = reply->hello->session_id;
    p->slots = reply->hello->slots;
    p->resumed = reply->hello->resumed;
}

static inline struct peer *
peer_connect(void)
{
    struct peer *p = peer_dial();

    peer_hello_as(p, NULL, false);
    peer_welcome(p);
    return p;
}

/* Sends on a slot with its next number. */
static inline void
peer_ask(struct peer *p, uint32_t slot, Thin__Request *rq, const void *payload,
         uint32_t payload_bytes)
{
    rq->slot = slot;
    rq->seq = ++p->seq[slot];
    ck_assert(peer_send(p, rq, payload, payload_bytes));
}

/* Slot 1, and the answer. */
static inline Thin__Reply *
peer_call_payload(struct peer *p, Thin__Request *rq, const void *payload,
                  uint32_t payload_bytes)
{
    Thin__Reply *reply;

    peer_ask(p, 1, rq, payload, payload_bytes);
    reply = peer_reply(p);
    ck_assert_uint_eq(reply->slot, 1);
    ck_assert_uint_eq(reply->seq, p->seq[1]);
    return reply;
}

#define S(text) ((char *)(uintptr_t)(text))

/* CALL(peer, VOLUME_CREATE, volume_create, VolumeCreate, .name = S("a/b"), .size = 512) */
#define CALL(peer, BODY, member, Type, ...)                                 \
    __extension__({                                                         \
        Thin__Request call_rq = THIN__REQUEST__INIT;                        \
        Thin__##Type call_body = {                                          \
            .base = PROTOBUF_C_MESSAGE_INIT(&thin__##member##__descriptor), \
            __VA_ARGS__};                                                   \
        call_rq.body_case = THIN__REQUEST__BODY_##BODY;                     \
        call_rq.member = &call_body;                                        \
        peer_call_payload(peer, &call_rq, NULL, 0);                         \
    })

static inline void
rig_make_pool(struct peer *p, const char *name)
{
    Thin__Reply *reply;
    char data[96], meta[96];

    snprintf(data, sizeof(data), "%s/%s.data", rig.dir, name);
    snprintf(meta, sizeof(meta), "%s/%s.meta", rig.dir, name);
    reply = CALL(p, POOL_CREATE, pool_create, PoolCreate, .name = S(name), .data = data,
                 .data_size = 64 << 20, .metadata = meta, .metadata_size = 4 << 20);
    ck_assert_msg(reply->code == 0, "%s", reply->text);
}

static inline void
rig_make_volume(struct peer *p, const char *name, uint64_t size)
{
    Thin__Reply *reply = CALL(p, VOLUME_CREATE, volume_create, VolumeCreate,
                              .name = S(name), .size = size);

    ck_assert_msg(reply->code == 0, "%s", reply->text);
}

/* Runs a suite of one case with a server for each test. */
static inline int
rig_run(const char *name, void (*add)(TCase *))
{
    Suite *suite = suite_create(name);
    TCase *tcase = tcase_create("server");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tcase, rig_start, rig_teardown);
    tcase_set_timeout(tcase, 60);
    add(tcase);
    suite_add_tcase(suite, tcase);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}

#endif
