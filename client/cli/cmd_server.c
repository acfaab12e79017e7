/* thincli server ... */
#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "client/cli/cli.h"
#include "client/cli/info.h"
#include "client/cli/json.h"
#include "client/cli/output.h"

#define EVENTS_QUIET_MS 200 /* without --follow: after so long a silence all is told */

/* ---- status ---------------------------------------------------------------------------- */

static void
status_json(const Thin__ServerStatusReply *s)
{
    struct json json;

    json_init(&json, stdout, false);
    json_open_object(&json, NULL);
    json_open_object(&json, "server");
    json_string(&json, "version", s->version);
    json_u64(&json, "pid", s->pid);
    json_u64(&json, "started", s->started);
    json_u64(&json, "pools", s->pools);
    json_u64(&json, "volumes", s->volumes);
    json_u64(&json, "sessions", s->sessions);
    json_u64(&json, "connections", s->connections);
    json_u64(&json, "payload_memory", s->payload_memory);
    json_u64(&json, "payload_memory_used", s->payload_memory_used);
    json_open_array(&json, "listeners");
    for (size_t i = 0; i < s->n_listeners; i++)
        json_string(&json, NULL, s->listeners[i]);
    json_close(&json);
    json_close(&json);
    json_close(&json);
    json_finish(&json);
}

static void
field_u64(const char *name, uint64_t number)
{
    char word[OUTPUT_WORD];

    snprintf(word, sizeof(word), "%" PRIu64, number);
    output_field(name, word);
}

static void
print_status(const Thin__ServerStatusReply *s)
{
    char word[2][OUTPUT_WORD], line[3 * OUTPUT_WORD];

    output_field("version", s->version);
    field_u64("pid", s->pid);
    output_field("started", output_time(word[0], s->started));
    field_u64("pools", s->pools);
    field_u64("volumes", s->volumes);
    field_u64("sessions", s->sessions);
    field_u64("connections", s->connections);
    snprintf(line, sizeof(line), "%s of %s", output_size(word[0], s->payload_memory_used),
             output_size(word[1], s->payload_memory));
    output_field("payload memory", line);
    for (size_t i = 0; i < s->n_listeners; i++)
        output_field(i == 0 ? "listens on" : "", s->listeners[i]);
}

static int
server_status(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__ServerStatus body = THIN__SERVER_STATUS__INIT;
    struct info_list list = {0};
    int r;

    request.body_case = THIN__REQUEST__BODY_SERVER_STATUS;
    request.server_status = &body;
    r = cli_call(cli, &request, info_keep_reply, &list);
    if (r == 0 && (list.nr_replies == 0 ||
                   info_reply(&list, 0)->body_case != THIN__REPLY__BODY_SERVER_STATUS))
        r = thin_fail(&cli->err, -THIN_E_PROTOCOL, "the server's answer is no status");
    if (r == 0 && cli->json)
        status_json(info_reply(&list, 0)->server_status);
    else if (r == 0)
        print_status(info_reply(&list, 0)->server_status);
    info_list_fini(&list);
    return r;
}

/* ---- shutdown -------------------------------------------------------------------------- */

static int
server_shutdown(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__ServerShutdown body = THIN__SERVER_SHUTDOWN__INIT;
    struct json json;
    int r;

    request.body_case = THIN__REQUEST__BODY_SERVER_SHUTDOWN;
    request.server_shutdown = &body;
    r = cli_call(cli, &request, NULL, NULL);
    /* A server that went away over the answer has done what it was asked for. */
    if ((r == -THIN_E_DISCONNECTED || r == -THIN_E_UNKNOWN_OUTCOME) && cli->client &&
        *thin_client_server_version(cli->client))
        r = 0;
    if (r == 0 && cli->json) {
        json_init(&json, stdout, false);
        json_open_object(&json, NULL);
        json_bool(&json, "shutting_down", true);
        json_close(&json);
        json_finish(&json);
    }
    return r;
}

/* ---- events ---------------------------------------------------------------------------- */

struct events {
    bool follow, as_json;
    bool heard; /* since it was last set to false */
    struct json json;
};

static void
event_json(struct json *json, const Thin__Event *event)
{
    json_open_object(json, NULL);
    json_u64(json, "number", event->number);
    json_u64(json, "when", event->when);
    json_string(json, "kind", event->kind);
    json_string_or_null(json, "object", event->object);
    json_string(json, "text", event->text);
    if (event->size)
        json_u64(json, "size", event->size);
    if (*event->address)
        json_string(json, "address", event->address);
    json_close(json);
}

static void
on_event(void *arg, const Thin__Event *event)
{
    struct events *events = arg;
    char word[OUTPUT_WORD];

    events->heard = true;
    if (events->as_json && events->follow) {
        /* One document a line: a reader must not wait for an end that never comes. */
        json_init(&events->json, stdout, true);
        event_json(&events->json, event);
        json_finish(&events->json);
    } else if (events->as_json) {
        event_json(&events->json, event);
    } else {
        printf("%s %s %s %s\n", output_time(word, event->when), event->kind,
               *event->object ? event->object : "-", event->text);
    }
    if (events->follow)
        fflush(stdout);
}

static const struct cli_option events_options[] = {
    {"follow", NULL, "go on with those to come; with --json one document a line", false},
    {0},
};

static int
watch_events(struct cli *cli, struct events *events)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__EventsSubscribe body = THIN__EVENTS_SUBSCRIBE__INIT;
    int r;

    request.body_case = THIN__REQUEST__BODY_EVENTS_SUBSCRIBE;
    request.events_subscribe = &body;
    client_set_event_message_callback(cli->client, on_event, events);
    r = cli_call(cli, &request, NULL, NULL);
    while (r == 0 && !ferror(stdout)) {
        events->heard = false;
        r = client_run_wait(cli->client, events->follow ? -1 : EVENTS_QUIET_MS,
                            &cli->err);
        if (!events->follow && !events->heard)
            break;
    }
    client_set_event_message_callback(cli->client, NULL, NULL);
    return r;
}

static int
server_events(struct cli *cli)
{
    struct events events = {.follow = cli_has(cli, "follow"), .as_json = cli->json};
    bool document = events.as_json && !events.follow;
    int r = cli_client(cli);

    if (r)
        return r;
    if (document) {
        json_init(&events.json, stdout, false);
        json_open_object(&events.json, NULL);
        json_open_array(&events.json, "events");
    }
    r = watch_events(cli, &events);
    if (document && r == 0) {
        json_close(&events.json);
        json_close(&events.json);
        json_finish(&events.json);
    }
    return r;
}

const struct cli_verb server_verbs[] = {
    {"status", "", "version, uptime, counts", NULL, 0, 0, server_status},
    {"shutdown", "", "finish, commit and end", NULL, 0, 0, server_shutdown},
    {"events", "", "what happened: resized, pool mode, low water ...", events_options, 0,
     0, server_events},
    {0},
};
