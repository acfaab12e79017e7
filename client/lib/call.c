#include "client/lib/call.h"

#include <poll.h>
#include <string.h>

#include "client/lib/client_private.h"

/* Requests that may be carried out twice without harm. All others change something. */
static bool
only_asks(Thin__Request__BodyCase body)
{
    switch (body) {
    case THIN__REQUEST__BODY_POOL_LIST:
    case THIN__REQUEST__BODY_POOL_CHECK:
    case THIN__REQUEST__BODY_POOL_DUMP:
    case THIN__REQUEST__BODY_VOLUME_LIST:
    case THIN__REQUEST__BODY_VOLUME_MAP:
    case THIN__REQUEST__BODY_VOLUME_DELTA:
    case THIN__REQUEST__BODY_VOLUME_STATS:
    case THIN__REQUEST__BODY_SESSION_LIST:
    case THIN__REQUEST__BODY_ACCESS_LIST:
    case THIN__REQUEST__BODY_SERVER_STATUS:
    case THIN__REQUEST__BODY_EVENTS_SUBSCRIBE:
        return true;
    default:
        return false;
    }
}

int
client_call_start(struct thin_client *client, const Thin__Request *request,
                  int (*on_reply)(void *arg, const Thin__Reply *reply,
                                  const void *payload, size_t payload_bytes),
                  void (*done)(void *arg, int result, const char *words), void *arg,
                  struct thin_error *err)
{
    struct client_request *call;
    int r = 0;

    if (client->state == CLIENT_IDLE)
        r = thin_client_connect(client, NULL, NULL);
    else if (client->state == CLIENT_ENDED)
        r = thin_fail(&client->error, -THIN_E_CANCELLED, "the client has ended");
    else if (client->state == CLIENT_FAILED)
        r = client->error.code ? client->error.code : -THIN_E_DISCONNECTED;
    else if (client->offline_told)
        r = thin_fail(&client->error, -THIN_E_DISCONNECTED, "no server for %u ms",
                      client->offline_timeout_ms);
    call = r == 0 ? request_new(client, OP_CALL, &r) : NULL;
    if (call)
        r = request_set_body(call, request);
    if (!call || r < 0) {
        if (call)
            request_free(call);
        return thin_fail(err, r, "%s", thin_error_text(&client->error, r));
    }
    call->on_reply = on_reply;
    call->cb.called = done;
    call->arg = arg;
    call->changes = !only_asks(request->body_case);
    call->subscribes = request->body_case == THIN__REQUEST__BODY_EVENTS_SUBSCRIBE;
    if (client->state == CLIENT_FAILED) /* the attempt just begun has failed at once */
        request_finish(call, client->error.code, client->error.text);
    else
        request_submit(call);
    client_arm(client);
    return 0;
}

/* ---- waiting ----------------------------------------------------------------------- */

int
client_run_wait(struct thin_client *client, int timeout_ms, struct thin_error *err)
{
    struct pollfd pfd = {.fd = client->epoll_fd, .events = POLLIN};

    if (client->state == CLIENT_FAILED || client->state == CLIENT_IDLE) {
        int r = client->error.code ? client->error.code : -THIN_E_DISCONNECTED;

        if (TAILQ_EMPTY(&client->done) && !client->connect_done_due)
            return thin_fail(err, r, "%s", thin_error_text(&client->error, r));
    }
    client_arm(client);
    /* A failure (a signal, no memory) is as good as a timeout: what is ready is done. */
    (void)poll(&pfd, 1, timeout_ms);
    thin_client_ready(client);
    return 0;
}

struct waiting_call {
    int (*on_reply)(void *arg, const Thin__Reply *reply, const void *payload,
                    size_t payload_bytes);
    void *arg;
    bool done;
    int result;
    struct thin_error words;
};

static int
pass_reply(void *arg, const Thin__Reply *reply, const void *payload, size_t payload_bytes)
{
    struct waiting_call *call = arg;

    return call->on_reply ? call->on_reply(call->arg, reply, payload, payload_bytes) : 0;
}

static void
call_done(void *arg, int result, const char *words)
{
    struct waiting_call *call = arg;

    call->done = true;
    call->result = result;
    if (result < 0)
        thin_fail(&call->words, result, "%s", words);
}

int
client_call_wait(struct thin_client *client, const Thin__Request *request,
                 int (*on_reply)(void *arg, const Thin__Reply *reply, const void *payload,
                                 size_t payload_bytes),
                 void *arg, struct thin_error *err)
{
    struct waiting_call call = {.on_reply = on_reply, .arg = arg};
    int r = client_call_start(client, request, pass_reply, call_done, &call, err);

    /* Every call ends, at the latest when the client fails: it must be waited for, its
       memory is ours. */
    while (r == 0 && !call.done)
        r = client_run_wait(client, -1, err);
    if (r < 0)
        return r;
    if (call.result < 0 && err)
        *err = call.words;
    return call.result;
}
