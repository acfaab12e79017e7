/*
 * What main.c, the verbs and their helpers share: the table of nouns and verbs, a parsed
 * command line, and the way to the server. One command is one `struct cli`, one thread,
 * and waits for what it asks.
 *
 * A verb returns 0, a negative code whose words are in cli->err, or CLI_USAGE (by
 * cli_usage) where the words are about the command line. Only main.c prints errors.
 * What a verb prints to stdout is one whole answer: it asks first and prints then.
 */
#ifndef THIN_CLIENT_CLI_H
#define THIN_CLIENT_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/lib/call.h"
#include "client/lib/thinclient.h"
#include "core/base/error.h"

#define CLI_USAGE       2 /* exit code of a wrong command line */
#define CLI_MANY        65535u
#define CLI_OPTIONS_MAX 32u /* of one verb */

#define CLI_DEFAULT_SERVER     "unix:/run/thinsrv/thinsrv.sock"
#define CLI_DEFAULT_CONFIG     "/etc/thinsrv/thincli.conf"
#define CLI_DEFAULT_TIMEOUT_MS 5000u
#define CLI_CONFIG_BYTES_MAX   65536u

struct cli;

struct cli_option {
    const char *name; /* without the dashes */
    const char *arg;  /* what stands behind it in the usage; NULL: a switch */
    const char *help;
    bool repeats;
};

struct cli_verb {
    const char *name;
    const char *synopsis; /* of arguments, without the options */
    const char *summary;
    const struct cli_option *options; /* ends with one without a name; NULL: none */
    unsigned min_args, max_args;
    int (*run)(struct cli *cli);
};

struct cli_noun {
    const char *name;
    const char *summary;
    const struct cli_verb *verbs; /* ends with one without a name */
};

extern const struct cli_noun cli_nouns[]; /* ends with one without a name */
extern const struct cli_verb pool_verbs[], volume_verbs[], session_verbs[],
    access_verbs[], pki_verbs[], server_verbs[];

struct cli_value {
    const struct cli_option *option;
    const char *value; /* NULL: a switch */
};

struct cli {
    /* global options; NULL or 0: not given */
    const char *server, *cert, *key, *ca;
    uint64_t connect_timeout_ms;
    bool json, help, version;

    const struct cli_noun *noun;
    const struct cli_verb *verb;
    const char **args;
    unsigned nr_args;
    struct cli_value *values;
    unsigned nr_values;

    struct thin_client *client; /* made with the first call */
    bool connected;             /* it was, once */
    const char *address;        /* of the server, once looked up */
    char *config;               /* text of the configuration file; values point into it */
    struct thin_error err;
};

/* ---- args.c ---------------------------------------------------------------------------- */

/*
 * Reads a command line: global options anywhere, NOUN, VERB, the verb's options and
 * arguments in any order, "--" before arguments that begin with a dash. 0, CLI_USAGE or
 * -ENOMEM with words. With cli->help or cli->version noun and verb may be NULL. Borrows
 * argv; cli_fini frees. Reorders nothing.
 */
int cli_parse(struct cli *cli, const struct cli_noun *nouns, int argc, char **argv);
void cli_fini(struct cli *cli);

/* Says what is wrong with the command line. Returns CLI_USAGE. */
int cli_usage(struct cli *cli, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* The value of an option, or NULL; of a switch an empty string when it was given. */
const char *cli_option(const struct cli *cli, const char *name);
bool cli_has(const struct cli *cli, const char *name);

/* An option or argument as a size; *ret stays if `text` is NULL. 0 or CLI_USAGE. */
int cli_size(struct cli *cli, const char *text, uint64_t *ret);
/* Checks "POOL/VOLUME", or a single name. 0 or CLI_USAGE. */
int cli_check_volume(struct cli *cli, const char *name);
int cli_check_name(struct cli *cli, const char *name);

/*
 * "PATH[:SIZE]": a size only if the text behind the last colon is one; *ret_size 0: none.
 * *ret_path is the caller's. -ENOMEM; -THIN_E_INVALID: no path.
 */
int cli_split_path_size(const char *text, char **ret_path, uint64_t *ret_size);
/* A path on this machine made absolute (URIs are left alone). The caller's. -errno. */
int cli_absolute_path(const char *path, char **ret_path);
/* "KEY=VALUE": *ret_key is the caller's, *ret_value points into text. */
int cli_split_key_value(const char *text, char **ret_key, const char **ret_value);

/* The arguments from `first` on as KEY=VALUE; cli_key_values_fini only after a 0. */
struct cli_key_values {
    Thin__KeyValue **list;
    unsigned nr;
};
int cli_key_values(struct cli *cli, unsigned first, struct cli_key_values *ret);
void cli_key_values_fini(struct cli_key_values *values);

/* ---- connect.c ------------------------------------------------------------------------- */

/*
 * One request, with the connection made when there is none. The call's errors come out
 * with words that a person can use, also where the server cannot be reached.
 */
int cli_call(struct cli *cli, const Thin__Request *request,
             int (*on_reply)(void *arg, const Thin__Reply *reply, const void *payload,
                             size_t payload_bytes),
             void *arg);
/* Looks up address and certificates and makes the client, connecting to nothing. */
int cli_client(struct cli *cli);
/* True if the server is on this machine, so that it sees our paths. */
bool cli_is_local(struct cli *cli);
/* As cli_absolute_path for a local server, else a copy. */
int cli_server_path(struct cli *cli, const char *path, char **ret_path);

/* A deep copy of a message of a reply; freed by protobuf_c_message_free_unpacked. */
int cli_copy_message(const ProtobufCMessage *message, ProtobufCMessage **ret_copy);

/* Writes the payloads of text replies to stdout as they come; a callback for cli_call. */
int cli_print_text(void *arg, const Thin__Reply *reply, const void *payload,
                   size_t payload_bytes);
/* Collects them instead. Zero it before, free `bytes` behind. */
struct cli_text {
    char *bytes;
    size_t len, room;
};
int cli_collect_text(void *arg, const Thin__Reply *reply, const void *payload,
                     size_t payload_bytes);
/* Makes the call and shows its text: as it is, or with --json as a string under `key`. */
int cli_call_text(struct cli *cli, const Thin__Request *request, const char *key);

#endif
