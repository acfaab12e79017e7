/* thincli pki ...: on this machine, without a server. */
#include <errno.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cli/cli.h"
#include "client/cli/json.h"
#include "client/cli/output.h"
#include "core/base/cleanup.h"
#include "proto/pki.h"

#define PKI_DEFAULT_DIR "./pki"
#define PKI_SYSTEM_DIR  "/etc/thinsrv/pki"

/* ---- where the authority is ------------------------------------------------------------ */

static const char *
env_dir(void)
{
    const char *env = getenv("THIN_PKI");

    return env && *env ? env : NULL;
}

static bool
has_authority(const char *dir)
{
    AUTO_FREE char *key = NULL;

    if (!dir || asprintf(&key, "%s/ca/ca-key.pem", dir) < 0) {
        key = NULL; /* what it is after a failure is not told */
        return false;
    }
    return access(key, F_OK) == 0;
}

/* Takes the first of the places that has one. *ret_dir is the caller's. */
static int
find_authority(struct cli *cli, const char *out, char **ret_dir)
{
    AUTO_FREE char *out_copy = out ? strdup(out) : NULL;
    const char *places[] = {env_dir(), PKI_DEFAULT_DIR, out, NULL, ".", PKI_SYSTEM_DIR};
    size_t nr = sizeof(places) / sizeof(places[0]);
    const char *found = cli_option(cli, "dir");

    if (out && !out_copy)
        return thin_fail_code(&cli->err, -ENOMEM, "look for the authority");
    if (out)
        places[3] = dirname(out_copy);
    for (size_t i = 0; !found && i < nr; i++)
        if (has_authority(places[i]))
            found = places[i];
    if (!found)
        return thin_fail(&cli->err, -THIN_E_NOT_FOUND,
                         "no authority found: name its folder with --dir or THIN_PKI, or "
                         "make one with thincli pki init");
    *ret_dir = strdup(found);
    return *ret_dir ? 0 : thin_fail_code(&cli->err, -ENOMEM, "folder %s", found);
}

/* ---- init, issue, revoke --------------------------------------------------------------- */

static const struct cli_option init_options[] = {
    {"dir", "DIR", "default $THIN_PKI, else " PKI_DEFAULT_DIR, false},
    {"out", "DIR", "the same", false},
    {0},
};

static int
pki_verb_init(struct cli *cli)
{
    const char *dir = cli_option(cli, "dir");
    const char *out = cli_option(cli, "out");
    struct json json;
    int r;

    if (dir && out)
        return cli_usage(cli, "pki init: --dir and --out are the same; give one");
    dir = dir ? dir : out ? out : env_dir() ? env_dir() : PKI_DEFAULT_DIR;
    r = pki_init(dir, &cli->err);
    if (r < 0)
        return r;
    if (!cli->json) {
        printf("%s/ca is a new authority; keep %s/ca/ca-key.pem secret\n", dir, dir);
        return 0;
    }
    json_init(&json, stdout, false);
    json_open_object(&json, NULL);
    json_string(&json, "dir", dir);
    json_close(&json);
    json_finish(&json);
    return 0;
}

static const struct cli_option issue_options[] = {
    {"server", NULL, "for a thinsrv", false},
    {"client", NULL, "for a client; NAME is who it is in access rules", false},
    {"host", "NAME-or-IP", "further names of a server; may be a comma list", true},
    {"days", "N", "how long it is valid, default 825", false},
    {"out", "DIR", "where the files go, default NAME in the authority's folder", false},
    {"dir", "DIR", "folder of the authority", false},
    {0},
};

struct hosts {
    char *copies[PKI_HOSTS_MAX]; /* of the options, cut at their commas */
    const char *list[PKI_HOSTS_MAX];
    unsigned nr_copies, nr;
};

static void
free_hosts(struct hosts *hosts)
{
    for (unsigned i = 0; i < hosts->nr_copies; i++)
        free(hosts->copies[i]);
}

static int
add_hosts(struct cli *cli, const char *text, struct hosts *hosts)
{
    char *save = NULL;
    char *copy;

    if (hosts->nr_copies == PKI_HOSTS_MAX)
        return cli_usage(cli, "at most %u hosts in one certificate", PKI_HOSTS_MAX);
    copy = strdup(text);
    if (!copy)
        return thin_fail_code(&cli->err, -ENOMEM, "--host");
    hosts->copies[hosts->nr_copies++] = copy;
    for (char *h = strtok_r(copy, ", ", &save); h; h = strtok_r(NULL, ", ", &save)) {
        if (hosts->nr == PKI_HOSTS_MAX)
            return cli_usage(cli, "at most %u hosts in one certificate", PKI_HOSTS_MAX);
        hosts->list[hosts->nr++] = h;
    }
    return 0;
}

static int
read_hosts(struct cli *cli, struct hosts *hosts)
{
    int r = 0;

    for (unsigned i = 0; r == 0 && i < cli->nr_values; i++)
        if (strcmp(cli->values[i].option->name, "host") == 0)
            r = add_hosts(cli, cli->values[i].value, hosts);
    return r;
}

static int
read_days(struct cli *cli, unsigned *ret_days)
{
    const char *text = cli_option(cli, "days");
    char *end = NULL;
    unsigned long days;

    if (!text)
        return 0;
    errno = 0;
    days = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || errno || *end || days < 1 || days > PKI_DAYS_MAX)
        return cli_usage(cli, "--days %s: 1 to %u is possible", text, PKI_DAYS_MAX);
    *ret_days = (unsigned)days;
    return 0;
}

static int
issue_with(struct cli *cli, struct hosts *hosts)
{
    struct pki_issue_params params = {.name = cli->args[0],
                                      .server = cli_has(cli, "server"),
                                      .out = cli_option(cli, "out")};
    AUTO_FREE char *dir = NULL;
    AUTO_FREE char *out = NULL;
    const char *kind = params.server ? "server" : "client";
    struct json json;
    int r = cli_check_name(cli, params.name);

    if (!r && cli_has(cli, "server") == cli_has(cli, "client"))
        r = cli_usage(cli, "pki issue: either --server or --client is needed");
    r = r ? r : read_days(cli, &params.days);
    r = r ? r : read_hosts(cli, hosts);
    if (!r && hosts->nr > 0 && !params.server)
        r = cli_usage(cli, "pki issue: --host is for servers");
    r = r ? r : find_authority(cli, params.out, &dir);
    if (r)
        return r;
    params.hosts = hosts->list;
    params.nr_hosts = hosts->nr;
    if (asprintf(&out, "%s%s%s", params.out ? params.out : dir, params.out ? "" : "/",
                 params.out ? "" : params.name) < 0) {
        out = NULL;
        return thin_fail_code(&cli->err, -ENOMEM, "issue a certificate");
    }
    r = pki_issue(dir, &params, &cli->err);
    if (r < 0)
        return r;
    if (!cli->json) {
        printf("%s: ca-cert.pem %s-cert.pem %s-key.pem\n", out, kind, kind);
        return 0;
    }
    json_init(&json, stdout, false);
    json_open_object(&json, NULL);
    json_string(&json, "name", params.name);
    json_string(&json, "kind", kind);
    json_string(&json, "out", out);
    json_close(&json);
    json_finish(&json);
    return 0;
}

static int
pki_verb_issue(struct cli *cli)
{
    struct hosts hosts = {0};
    int r = issue_with(cli, &hosts);

    free_hosts(&hosts);
    return r;
}

static const struct cli_option dir_options[] = {
    {"dir", "DIR", "folder of the authority", false},
    {0},
};

static int
pki_verb_revoke(struct cli *cli)
{
    AUTO_FREE char *dir = NULL;
    unsigned nr = 0;
    struct json json;
    int r = find_authority(cli, NULL, &dir);

    r = r ? r : pki_revoke(dir, cli->args[0], &nr, &cli->err);
    if (r)
        return r;
    if (!cli->json) {
        printf("%u revoked; %s/ca/ca-crl.pem is new: let servers read it again\n", nr,
               dir);
        return 0;
    }
    json_init(&json, stdout, false);
    json_open_object(&json, NULL);
    json_string(&json, "name", cli->args[0]);
    json_u64(&json, "revoked", nr);
    json_close(&json);
    json_finish(&json);
    return 0;
}

/* ---- show ------------------------------------------------------------------------------ */

struct certificates {
    struct pki_entry *list;
    unsigned nr, room;
};

static int
keep_certificate(void *arg, const struct pki_entry *entry)
{
    struct certificates *certificates = arg;

    if (certificates->nr == certificates->room) {
        unsigned room = certificates->room ? 2 * certificates->room : 16;
        void *list = reallocarray(certificates->list, room, sizeof(*certificates->list));

        if (!list)
            return -ENOMEM;
        certificates->list = list;
        certificates->room = room;
    }
    certificates->list[certificates->nr++] = *entry;
    return 0;
}

static void
certificates_json(const char *dir, int64_t ca_expires,
                  const struct certificates *certificates)
{
    struct json json;

    json_init(&json, stdout, false);
    json_open_object(&json, NULL);
    json_string(&json, "dir", dir);
    json_i64(&json, "expires", ca_expires);
    json_open_array(&json, "certificates");
    for (unsigned i = 0; i < certificates->nr; i++) {
        const struct pki_entry *e = &certificates->list[i];

        json_open_object(&json, NULL);
        json_string(&json, "serial", e->serial);
        json_string(&json, "name", e->name);
        json_string(&json, "kind", e->server ? "server" : "client");
        json_i64(&json, "issued", e->issued);
        json_i64(&json, "expires", e->expires);
        if (e->revoked)
            json_i64(&json, "revoked", e->revoked);
        else
            json_null(&json, "revoked");
        json_close(&json);
    }
    json_close(&json);
    json_close(&json);
    json_finish(&json);
}

static int
print_certificates(struct cli *cli, const char *dir, int64_t ca_expires,
                   const struct certificates *certificates)
{
    static const struct output_column columns[] = {{"NAME", OUTPUT_LEFT},
                                                   {"KIND", OUTPUT_LEFT},
                                                   {"ISSUED", OUTPUT_LEFT},
                                                   {"EXPIRES", OUTPUT_LEFT},
                                                   {"REVOKED", OUTPUT_LEFT},
                                                   {"SERIAL", OUTPUT_LEFT},
                                                   {0}};
    struct output output;
    char word[OUTPUT_WORD];
    int r = output_begin(&output, columns);

    if (r < 0)
        return thin_fail_code(&cli->err, r, "make a table");
    printf("%s/ca, valid until %s\n", dir, output_time(word, (uint64_t)ca_expires));
    for (unsigned i = 0; i < certificates->nr; i++) {
        const struct pki_entry *e = &certificates->list[i];

        output_row(&output, NULL);
        output_cell(&output, e->name);
        output_cell(&output, e->server ? "server" : "client");
        output_cell(&output, output_time(word, (uint64_t)e->issued));
        output_cell(&output, output_time(word, (uint64_t)e->expires));
        output_cell(&output, output_time(word, (uint64_t)e->revoked));
        output_cell(&output, e->serial);
    }
    return output_end(&output, &cli->err);
}

static int
pki_verb_show(struct cli *cli)
{
    struct certificates certificates = {0};
    AUTO_FREE char *dir = NULL;
    int64_t ca_expires = 0;
    int r = find_authority(cli, NULL, &dir);

    r = r ? r : pki_show(dir, keep_certificate, &certificates, &ca_expires, &cli->err);
    if (r == 0 && cli->json)
        certificates_json(dir, ca_expires, &certificates);
    else if (r == 0)
        r = print_certificates(cli, dir, ca_expires, &certificates);
    free(certificates.list);
    return r;
}

const struct cli_verb pki_verbs[] = {
    {"init", "", "make a certificate authority", init_options, 0, 0, pki_verb_init},
    {"issue", "NAME --server|--client", "make a certificate with its key", issue_options,
     1, 1, pki_verb_issue},
    {"revoke", "NAME", "revoke every certificate of that name", dir_options, 1, 1,
     pki_verb_revoke},
    {"show", "", "what was issued", dir_options, 0, 0, pki_verb_show},
    {0},
};
