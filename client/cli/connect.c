#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/cli.h"
#include "client/cli/json.h"
#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/name.h"
#include "proto/limits.h"
#include "proto/socket.h"

/* ---- the configuration file ------------------------------------------------------------ */

/* Blanks at both ends away, in place. */
static char *
trim(char *text)
{
    size_t len;

    text += strspn(text, " \t\r");
    len = strlen(text);
    while (len > 0 && strchr(" \t\r", text[len - 1]))
        text[--len] = '\0';
    return text;
}

static int
take_setting(struct cli *cli, const char *key, const char *value)
{
    static const struct {
        const char *key;
        size_t offset;
    } settings[] = {{"server", offsetof(struct cli, server)},
                    {"cert", offsetof(struct cli, cert)},
                    {"key", offsetof(struct cli, key)},
                    {"ca", offsetof(struct cli, ca)}};

    for (size_t i = 0; i < sizeof(settings) / sizeof(settings[0]); i++)
        if (strcmp(key, settings[i].key) == 0) {
            const char **place = (void *)((char *)cli + settings[i].offset);

            if (!*place) /* the command line goes first */
                *place = value;
            return 0;
        }
    if (strcmp(key, "connect_timeout") == 0)
        return cli->connect_timeout_ms
                   ? 0
                   : duration_parse_ms(value, &cli->connect_timeout_ms, &cli->err);
    return thin_fail(&cli->err, -THIN_E_CONFIG, "no such setting: %s", key);
}

static int
read_text(struct cli *cli, FILE *f, const char *path)
{
    size_t len;

    cli->config = malloc(CLI_CONFIG_BYTES_MAX + 1);
    if (!cli->config)
        return thin_fail_code(&cli->err, -ENOMEM, "read %s", path);
    len = fread(cli->config, 1, CLI_CONFIG_BYTES_MAX, f);
    cli->config[len] = '\0';
    if (ferror(f))
        return thin_fail_code(&cli->err, -EIO, "read %s", path);
    if (!feof(f))
        return thin_fail(&cli->err, -THIN_E_CONFIG, "%s is larger than %u bytes", path,
                         CLI_CONFIG_BYTES_MAX);
    return 0;
}

static int
read_line(struct cli *cli, char *line)
{
    char *value = strchr(line, '=');

    if (!*line || *line == '#' || *line == ';')
        return 0;
    if (!value)
        return thin_fail(&cli->err, -THIN_E_CONFIG, "KEY = VALUE is expected");
    *value++ = '\0';
    return take_setting(cli, trim(line), trim(value));
}

/*
 * "KEY = VALUE" lines, # comments. A file that is not there, or not for us to read, is
 * an empty one.
 */
static int
read_config(struct cli *cli, const char *path)
{
    FILE *f = fopen(path, "re");
    unsigned line_nr = 0;
    char *rest;
    int r;

    if (!f)
        return errno == ENOENT || errno == ENOTDIR || errno == EACCES
                   ? 0
                   : thin_fail_code(&cli->err, -errno, "open %s", path);
    r = read_text(cli, f, path);
    fclose(f);
    for (rest = cli->config; r == 0 && rest;) {
        line_nr++;
        r = read_line(cli, trim(strsep(&rest, "\n")));
        if (r < 0)
            thin_wrap(&cli->err, r, "%s:%u", path, line_nr);
    }
    return r;
}

/* ---- the client ------------------------------------------------------------------------ */

/* Address and certificates, from the command line, the environment, the file. */
static int
look_up(struct cli *cli)
{
    const char *env = getenv("THIN_SERVER");
    int r;

    if (cli->address)
        return 0;
    if (!cli->server && env && *env)
        cli->server = env;
    r = read_config(cli, CLI_DEFAULT_CONFIG);
    if (r < 0)
        return r;
    if (!cli->connect_timeout_ms)
        cli->connect_timeout_ms = CLI_DEFAULT_TIMEOUT_MS;
    cli->address = cli->server ? cli->server : CLI_DEFAULT_SERVER;
    return 0;
}

static int
set_up(struct cli *cli, struct thin_client *client)
{
    struct socket_address address = {0};
    int r = thin_client_set_server(client, cli->address);

    if (r == 0)
        r = socket_address_parse(cli->address, PROTO_PORT, &address, &cli->err);
    if (r < 0) {
        thin_fail(&cli->err, r, "%s", thin_client_error(client));
        return r == -THIN_E_INVALID ? CLI_USAGE : r;
    }
    if (address.tls && !(cli->cert && cli->key && cli->ca))
        return cli_usage(cli,
                         "%s needs --cert, --key and --ca (or cert, key and ca in %s)",
                         cli->address, CLI_DEFAULT_CONFIG);
    if (address.tls)
        r = thin_client_set_tls(client, cli->cert, cli->key, cli->ca, NULL);
    if (r < 0)
        return thin_fail(&cli->err, r, "%s", thin_client_error(client));
    thin_client_set_connect_timeout_ms(client, (unsigned)cli->connect_timeout_ms);
    thin_client_set_offline_timeout_ms(client, (unsigned)cli->connect_timeout_ms);
    return 0;
}

int
cli_client(struct cli *cli)
{
    struct thin_client *client;
    int r = look_up(cli);

    if (r < 0 || cli->client)
        return r;
    client = thin_client_create();
    if (!client)
        return thin_fail_code(&cli->err, -errno, "make a client");
    r = set_up(cli, client);
    if (r) {
        thin_client_destroy(client);
        return r;
    }
    cli->client = client;
    return 0;
}

/* What a person could look at, by what went wrong. */
static const char *
connect_hint(int code)
{
    switch (code) {
    case -THIN_E_TLS:
        return "look at --cert, --key and --ca";
    case -EACCES:
    case -THIN_E_DENIED:
        return "this user may not connect";
    default:
        return "does thinsrv run there, and is the address right (--server, THIN_SERVER)?";
    }
}

static int
connect_first(struct cli *cli)
{
    int r;

    if (cli->connected)
        return 0;
    r = cli_client(cli);
    if (r)
        return r;
    r = thin_client_connect_wait(cli->client);
    cli->connected = r == 0;
    if (r < 0) {
        const char *why = thin_client_error(cli->client);

        if (strstr(why, cli->address))
            thin_fail(&cli->err, r, "cannot reach the server: %s; %s", why,
                      connect_hint(r));
        else
            thin_fail(&cli->err, r, "cannot reach the server at %s: %s; %s", cli->address,
                      why, connect_hint(r));
    }
    return r;
}

int
cli_call(struct cli *cli, const Thin__Request *request,
         int (*on_reply)(void *arg, const Thin__Reply *reply, const void *payload,
                         size_t payload_bytes),
         void *arg)
{
    int r = connect_first(cli);

    return r ? r : client_call_wait(cli->client, request, on_reply, arg, &cli->err);
}

bool
cli_is_local(struct cli *cli)
{
    struct socket_address address;

    return look_up(cli) == 0 &&
           socket_address_parse(cli->address, PROTO_PORT, &address, NULL) == 0 &&
           address.kind == SOCKET_UNIX;
}

int
cli_server_path(struct cli *cli, const char *path, char **ret_path)
{
    int r = look_up(cli);

    if (r < 0)
        return r;
    if (cli_is_local(cli)) {
        r = cli_absolute_path(path, ret_path);
    } else {
        *ret_path = strdup(path);
        r = *ret_path ? 0 : -ENOMEM;
    }
    return r < 0 ? thin_fail_code(&cli->err, r, "path %s", path) : 0;
}

/* ---- replies --------------------------------------------------------------------------- */

int
cli_copy_message(const ProtobufCMessage *message, ProtobufCMessage **ret_copy)
{
    size_t len = protobuf_c_message_get_packed_size(message);
    AUTO_FREE uint8_t *bytes = malloc(len ? len : 1);
    ProtobufCMessage *copy;

    if (!bytes)
        return -ENOMEM;
    protobuf_c_message_pack(message, bytes);
    copy = protobuf_c_message_unpack(message->descriptor, NULL, len, bytes);
    if (!copy)
        return -ENOMEM;
    *ret_copy = copy;
    return 0;
}

int
cli_print_text(void *arg, const Thin__Reply *reply, const void *payload,
               size_t payload_bytes)
{
    (void)arg;
    (void)reply;
    if (payload_bytes > 0 && fwrite(payload, 1, payload_bytes, stdout) < payload_bytes)
        return -EIO; /* the disk behind stdout is full, or its reader has gone */
    return 0;
}

int
cli_collect_text(void *arg, const Thin__Reply *reply, const void *payload,
                 size_t payload_bytes)
{
    struct cli_text *text = arg;

    (void)reply;
    if (payload_bytes > text->room - text->len) {
        uint64_t room = max_u64(text->len + payload_bytes, 2 * text->room);
        char *bytes = realloc(text->bytes, room);

        if (!bytes)
            return -ENOMEM;
        text->bytes = bytes;
        text->room = room;
    }
    if (payload_bytes > 0)
        memcpy(text->bytes + text->len, payload, payload_bytes);
    text->len += payload_bytes;
    return 0;
}

int
cli_call_text(struct cli *cli, const Thin__Request *request, const char *key)
{
    struct cli_text text = {0};
    struct json json;
    int r;

    if (!cli->json)
        return cli_call(cli, request, cli_print_text, NULL);
    r = cli_call(cli, request, cli_collect_text, &text);
    if (r == 0) {
        json_init(&json, stdout, false);
        json_open_object(&json, NULL);
        json_bytes(&json, key, text.bytes, text.len);
        json_close(&json);
        json_finish(&json);
    }
    free(text.bytes);
    return r;
}
