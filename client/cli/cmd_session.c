/* thincli session ... */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "client/cli/cli.h"
#include "client/cli/info.h"
#include "client/cli/json.h"
#include "client/cli/output.h"

static void
session_json(struct json *json, const Thin__SessionInfo *s)
{
    json_open_object(json, NULL);
    json_u64(json, "id", s->id);
    json_string(json, "identity", s->identity);
    json_string(json, "client_name", s->client_name);
    json_string(json, "peer", s->peer);
    json_u64(json, "connections", s->connections);
    json_open_array(json, "volumes");
    for (size_t i = 0; i < s->n_volumes; i++)
        json_string(json, NULL, s->volumes[i]);
    json_close(json);
    json_u64(json, "since", s->since);
    json_string(json, "protocol", s->protocol);
    json_close(json);
}

static void
session_row(struct output *output, const Thin__SessionInfo *s)
{
    char word[OUTPUT_WORD];

    output_row(output, NULL);
    output_cell_u64(output, s->id);
    output_cell(output, s->protocol);
    output_cell(output, s->identity);
    output_cell(output, s->client_name);
    output_cell(output, s->peer);
    output_cell_u64(output, s->connections);
    output_cell(output, output_time(word, s->since));
    /* The first of them; --json has all. */
    if (s->n_volumes > 1) {
        char more[2 * OUTPUT_WORD + 256];

        snprintf(more, sizeof(more), "%.255s and %zu more", s->volumes[0],
                 s->n_volumes - 1);
        output_cell(output, more);
    } else {
        output_cell(output, s->n_volumes ? s->volumes[0] : "-");
    }
}

static int
print_sessions(struct cli *cli, const struct info_list *list)
{
    static const struct output_column columns[] = {
        {"ID", OUTPUT_RIGHT},    {"PROTOCOL", OUTPUT_LEFT}, {"IDENTITY", OUTPUT_LEFT},
        {"CLIENT", OUTPUT_LEFT}, {"PEER", OUTPUT_LEFT},     {"CONNS", OUTPUT_RIGHT},
        {"SINCE", OUTPUT_LEFT},  {"VOLUMES", OUTPUT_LEFT},  {0},
    };
    struct output output;
    struct json json;
    int r = 0;

    if (cli->json) {
        json_init(&json, stdout, false);
        json_open_object(&json, NULL);
        json_open_array(&json, "sessions");
    } else {
        r = output_begin(&output, columns);
    }
    if (r < 0)
        return thin_fail_code(&cli->err, r, "make a table");
    for (unsigned i = 0; i < list->nr_replies; i++) {
        const Thin__Reply *reply = info_reply(list, i);

        if (reply->body_case != THIN__REPLY__BODY_SESSION_LIST)
            continue;
        for (size_t k = 0; k < reply->session_list->n_sessions; k++)
            if (cli->json)
                session_json(&json, reply->session_list->sessions[k]);
            else
                session_row(&output, reply->session_list->sessions[k]);
    }
    if (!cli->json)
        return output_end(&output, &cli->err);
    json_close(&json);
    json_close(&json);
    json_finish(&json);
    return 0;
}

static int
session_list(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__SessionList body = THIN__SESSION_LIST__INIT;
    struct info_list list = {0};
    int r;

    request.body_case = THIN__REQUEST__BODY_SESSION_LIST;
    request.session_list = &body;
    r = cli_call(cli, &request, info_keep_reply, &list);
    if (r == 0)
        r = print_sessions(cli, &list);
    info_list_fini(&list);
    return r;
}

static int
session_kick(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__SessionKick body = THIN__SESSION_KICK__INIT;
    const char *text = cli->args[0];
    char *end = NULL;
    int r;

    errno = 0;
    body.id = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || errno || *end)
        return cli_usage(cli, "session kick %s: an ID from session list is expected",
                         text);
    request.body_case = THIN__REQUEST__BODY_SESSION_KICK;
    request.session_kick = &body;
    r = cli_call(cli, &request, NULL, NULL);
    return r || !cli->json ? r : session_list(cli);
}

const struct cli_verb session_verbs[] = {
    {"list", "", "who is connected", NULL, 0, 0, session_list},
    {"kick", "ID", "end a session and its attachments", NULL, 1, 1, session_kick},
    {0},
};
