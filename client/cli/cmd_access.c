/* thincli access ... */
#include <stdio.h>
#include <string.h>

#include "client/cli/cli.h"
#include "client/cli/info.h"
#include "client/cli/json.h"
#include "client/cli/output.h"

/* Generated structs have `char *` for what they only borrow. */
static char *
lend(const char *text)
{
    return (char *)(uintptr_t)text;
}

/* Calls `each` for every rule that was told. */
static void
each_rule(const struct info_list *list,
          void (*each)(void *arg, const Thin__AccessRule *rule), void *arg)
{
    for (unsigned i = 0; i < list->nr_replies; i++) {
        const Thin__Reply *reply = info_reply(list, i);

        if (reply->body_case != THIN__REPLY__BODY_ACCESS_LIST)
            continue;
        for (size_t k = 0; k < reply->access_list->n_rules; k++)
            each(arg, reply->access_list->rules[k]);
    }
}

static void
rule_json(void *arg, const Thin__AccessRule *rule)
{
    struct json *json = arg;

    json_open_object(json, NULL);
    json_string(json, "who", rule->who);
    json_string(json, "right", rule->right);
    json_string(json, "glob", rule->glob);
    json_close(json);
}

static void
rule_row(void *arg, const Thin__AccessRule *rule)
{
    struct output *output = arg;

    output_row(output, NULL);
    output_cell(output, rule->who);
    output_cell(output, rule->right);
    output_cell(output, rule->glob);
}

static int
print_rules(struct cli *cli, const struct info_list *list)
{
    static const struct output_column columns[] = {
        {"WHO", OUTPUT_LEFT}, {"RIGHT", OUTPUT_LEFT}, {"GLOB", OUTPUT_LEFT}, {0}};
    struct output output;
    struct json json;
    int r;

    if (cli->json) {
        json_init(&json, stdout, false);
        json_open_object(&json, NULL);
        json_open_array(&json, "rules");
        each_rule(list, rule_json, &json);
        json_close(&json);
        json_close(&json);
        json_finish(&json);
        return 0;
    }
    r = output_begin(&output, columns);
    if (r < 0)
        return thin_fail_code(&cli->err, r, "make a table");
    each_rule(list, rule_row, &output);
    return output_end(&output, &cli->err);
}

static int
access_list(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__AccessList body = THIN__ACCESS_LIST__INIT;
    struct info_list list = {0};
    int r;

    request.body_case = THIN__REQUEST__BODY_ACCESS_LIST;
    request.access_list = &body;
    r = cli_call(cli, &request, info_keep_reply, &list);
    if (r == 0)
        r = print_rules(cli, &list);
    info_list_fini(&list);
    return r;
}

/* Sends a change of the rules and, with --json, shows them all. */
static int
change(struct cli *cli, const Thin__Request *request)
{
    int r = cli_call(cli, request, NULL, NULL);

    return r || !cli->json ? r : access_list(cli);
}

static int
check_right(struct cli *cli, const char *right)
{
    static const char *const rights[] = {"read", "write", "manage", "admin"};

    for (size_t i = 0; i < sizeof(rights) / sizeof(rights[0]); i++)
        if (strcmp(right, rights[i]) == 0)
            return 0;
    return cli_usage(cli, "no such right: %s; read, write, manage or admin is possible",
                     right);
}

static int
access_grant(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__AccessGrant body = THIN__ACCESS_GRANT__INIT;
    int r = check_right(cli, cli->args[1]);

    body.who = lend(cli->args[0]);
    body.right = lend(cli->args[1]);
    body.glob = lend(cli->args[2]);
    request.body_case = THIN__REQUEST__BODY_ACCESS_GRANT;
    request.access_grant = &body;
    return r ? r : change(cli, &request);
}

static int
access_revoke(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__AccessRevoke body = THIN__ACCESS_REVOKE__INIT;
    int r = check_right(cli, cli->args[1]);

    body.who = lend(cli->args[0]);
    body.right = lend(cli->args[1]);
    body.glob = lend(cli->args[2]);
    request.body_case = THIN__REQUEST__BODY_ACCESS_REVOKE;
    request.access_revoke = &body;
    return r ? r : change(cli, &request);
}

const struct cli_verb access_verbs[] = {
    {"list", "", "all rules", NULL, 0, 0, access_list},
    {"grant", "WHO RIGHT GLOB",
     "WHO: cert:NAME, user:NAME, group:NAME, *; RIGHT: read, write, manage, admin", NULL,
     3, 3, access_grant},
    {"revoke", "WHO RIGHT GLOB", "take a rule back", NULL, 3, 3, access_revoke},
    {0},
};
