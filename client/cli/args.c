#include "client/cli/cli.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/cleanup.h"
#include "core/base/name.h"

enum global {
    GLOBAL_SERVER = 256,
    GLOBAL_CERT,
    GLOBAL_KEY,
    GLOBAL_CA,
    GLOBAL_JSON,
    GLOBAL_CONNECT_TIMEOUT,
    GLOBAL_HELP,
    GLOBAL_VERSION,
    GLOBAL_END,
    VERB_OPTION = 512, /* the verb's options begin here */
};

static const struct option globals[] = {
    {"server", required_argument, NULL, GLOBAL_SERVER},
    {"cert", required_argument, NULL, GLOBAL_CERT},
    {"key", required_argument, NULL, GLOBAL_KEY},
    {"ca", required_argument, NULL, GLOBAL_CA},
    {"json", no_argument, NULL, GLOBAL_JSON},
    {"connect-timeout", required_argument, NULL, GLOBAL_CONNECT_TIMEOUT},
    {"help", no_argument, NULL, GLOBAL_HELP},
    {"version", no_argument, NULL, GLOBAL_VERSION},
};
#define NR_GLOBALS (sizeof(globals) / sizeof(globals[0]))

int
cli_usage(struct cli *cli, const char *fmt, ...)
{
    va_list ap;

    thin_error_init(&cli->err);
    cli->err.code = -THIN_E_INVALID;
    va_start(ap, fmt);
    vsnprintf(cli->err.text, sizeof(cli->err.text), fmt, ap);
    va_end(ap);
    return CLI_USAGE;
}

static int
set_timeout(struct cli *cli, const char *text)
{
    if (duration_parse_ms(text, &cli->connect_timeout_ms, &cli->err) < 0)
        return CLI_USAGE;
    if (cli->connect_timeout_ms == 0 || cli->connect_timeout_ms > INT_MAX)
        return cli_usage(cli, "bad --connect-timeout %s: more than nothing is needed",
                         text);
    return 0;
}

static int
take_global(struct cli *cli, int val, const char *value)
{
    switch (val) {
    case GLOBAL_SERVER:
        cli->server = value;
        return 0;
    case GLOBAL_CERT:
        cli->cert = value;
        return 0;
    case GLOBAL_KEY:
        cli->key = value;
        return 0;
    case GLOBAL_CA:
        cli->ca = value;
        return 0;
    case GLOBAL_JSON:
        cli->json = true;
        return 0;
    case GLOBAL_CONNECT_TIMEOUT:
        return set_timeout(cli, value);
    case 'h':
    case GLOBAL_HELP:
        cli->help = true;
        return 0;
    default:
        THIN_ASSERT(val == GLOBAL_VERSION || val == 'V');
        cli->version = true;
        return 0;
    }
}

/* What getopt found wrong in `word`. */
static int
bad_option(struct cli *cli, const struct option *options, int found, const char *word)
{
    if (found == ':')
        return cli_usage(cli, "%s needs a value", word);
    for (const struct option *o = options; o->name; o++)
        if (optopt >= GLOBAL_SERVER && o->val == optopt)
            return cli_usage(cli, "--%s takes no value", o->name);
    if (optopt > 0 && optopt < GLOBAL_SERVER)
        return cli_usage(cli, "no such option: -%c", optopt);
    return cli_usage(cli, "no such option: %s", word);
}

/* Global options before a word; *ret_at is that word's place, or argc. */
static int
parse_globals(struct cli *cli, int argc, char **argv, int *ret_at)
{
    struct option options[NR_GLOBALS + 1] = {{0}};
    int found;

    memcpy(options, globals, sizeof(globals));
    optind = 0; /* getopt of glibc starts anew */
    opterr = 0;
    while ((found = getopt_long(argc, argv, "+:hV", options, NULL)) != -1) {
        int r = found == '?' || found == ':'
                    ? bad_option(cli, options, found, argv[optind - 1])
                    : take_global(cli, found, optarg);

        if (r)
            return r;
    }
    *ret_at = optind;
    return 0;
}

/* The verb's options hide global ones of the same name (pki issue --server). */
static bool
verb_has(const struct cli_verb *verb, const char *name)
{
    for (const struct cli_option *o = verb->options; o && o->name; o++)
        if (strcmp(o->name, name) == 0)
            return true;
    return false;
}

static unsigned
collect_options(const struct cli_verb *verb, struct option *options)
{
    unsigned n = 0, i = 0;

    for (const struct cli_option *o = verb->options; o && o->name; o++, i++) {
        THIN_ASSERT(i < CLI_OPTIONS_MAX);
        options[n++] = (struct option){o->name, o->arg ? required_argument : no_argument,
                                       NULL, VERB_OPTION + (int)i};
    }
    for (i = 0; i < NR_GLOBALS; i++)
        if (!verb_has(verb, globals[i].name))
            options[n++] = globals[i];
    options[n] = (struct option){0};
    return n;
}

static int
take_value(struct cli *cli, const struct cli_option *option, const char *value)
{
    if (!option->repeats && cli_has(cli, option->name))
        return cli_usage(cli, "--%s is given twice", option->name);
    cli->values[cli->nr_values++] = (struct cli_value){option, value};
    return 0;
}

static int
parse_verb(struct cli *cli, int argc, char **argv)
{
    struct option options[CLI_OPTIONS_MAX + NR_GLOBALS + 1];
    int found, r = 0;

    cli->args = calloc((size_t)argc + 1, sizeof(*cli->args));
    cli->values = calloc((size_t)argc + 1, sizeof(*cli->values));
    if (!cli->args || !cli->values)
        return thin_fail_code(&cli->err, -ENOMEM, "read the command line");
    collect_options(cli->verb, options);
    optind = 0;
    /* "-": arguments come in their order as options of code 1. */
    while (r == 0 && (found = getopt_long(argc, argv, "-:hV", options, NULL)) != -1) {
        if (found == '?' || found == ':')
            r = bad_option(cli, options, found, argv[optind - 1]);
        else if (found == 1)
            cli->args[cli->nr_args++] = optarg;
        else if (found >= VERB_OPTION)
            r = take_value(cli, &cli->verb->options[found - VERB_OPTION], optarg);
        else
            r = take_global(cli, found, optarg);
    }
    for (int i = optind; r == 0 && i < argc; i++) /* behind "--" */
        cli->args[cli->nr_args++] = argv[i];
    return r;
}

int
cli_parse(struct cli *cli, const struct cli_noun *nouns, int argc, char **argv)
{
    int at = 0, verb_at = 0, r;

    r = parse_globals(cli, argc, argv, &at);
    if (r || cli->version || (at >= argc && cli->help))
        return r;
    if (at >= argc)
        return cli_usage(cli, "what is to be done? A NOUN and a VERB are missing");
    for (const struct cli_noun *n = nouns; n->name; n++)
        if (strcmp(n->name, argv[at]) == 0)
            cli->noun = n;
    if (!cli->noun)
        return cli_usage(cli, "no such noun: %s", argv[at]);
    r = parse_globals(cli, argc - at, argv + at, &verb_at);
    verb_at += at;
    if (r || cli->version || (verb_at >= argc && cli->help))
        return r;
    if (verb_at >= argc)
        return cli_usage(cli, "%s: a VERB is missing", cli->noun->name);
    for (const struct cli_verb *v = cli->noun->verbs; v->name; v++)
        if (strcmp(v->name, argv[verb_at]) == 0)
            cli->verb = v;
    if (!cli->verb)
        return cli_usage(cli, "%s: no such verb: %s", cli->noun->name, argv[verb_at]);
    r = parse_verb(cli, argc - verb_at, argv + verb_at);
    if (r || cli->help || cli->version)
        return r;
    if (cli->nr_args < cli->verb->min_args)
        return cli_usage(cli, "%s %s: an argument is missing", cli->noun->name,
                         cli->verb->name);
    if (cli->nr_args > cli->verb->max_args)
        return cli_usage(cli, "%s %s: one argument too many: %s", cli->noun->name,
                         cli->verb->name, cli->args[cli->verb->max_args]);
    return 0;
}

void
cli_fini(struct cli *cli)
{
    thin_client_destroy(cli->client);
    free(cli->args);
    free(cli->values);
    free(cli->config);
    memset(cli, 0, sizeof(*cli));
}

/* ---- looking at what was parsed -------------------------------------------------------- */

const char *
cli_option(const struct cli *cli, const char *name)
{
    for (unsigned i = 0; i < cli->nr_values; i++) {
        const struct cli_value *v = &cli->values[i];

        if (v->option && strcmp(v->option->name, name) == 0)
            return v->value ? v->value : "";
    }
    return NULL;
}

bool
cli_has(const struct cli *cli, const char *name)
{
    return cli_option(cli, name) != NULL;
}

int
cli_size(struct cli *cli, const char *text, uint64_t *ret)
{
    if (text && size_parse(text, ret, &cli->err) < 0)
        return CLI_USAGE;
    return 0;
}

int
cli_check_name(struct cli *cli, const char *name)
{
    return name_check(name, strlen(name), &cli->err) < 0 ? CLI_USAGE : 0;
}

int
cli_check_volume(struct cli *cli, const char *name)
{
    char pool[THIN_NAME_MAX + 1], volume[THIN_NAME_MAX + 1];

    if (!strchr(name, '/'))
        return cli_usage(cli, "bad name %s: volumes are written POOL/VOLUME", name);
    return message_split_name(name, pool, volume, &cli->err) < 0 ? CLI_USAGE : 0;
}

/* ---- words with parts ------------------------------------------------------------------ */

int
cli_split_path_size(const char *text, char **ret_path, uint64_t *ret_size)
{
    const char *colon = strrchr(text, ':');
    size_t len = strlen(text);
    uint64_t size = 0;
    char *path;

    /* What looks like one in a URI is a port. */
    if (colon && !strstr(text, "://") && size_parse(colon + 1, &size, NULL) == 0)
        len = (size_t)(colon - text);
    if (len == 0)
        return -THIN_E_INVALID;
    path = strndup(text, len);
    if (!path)
        return -ENOMEM;
    *ret_path = path;
    *ret_size = size;
    return 0;
}

int
cli_absolute_path(const char *path, char **ret_path)
{
    AUTO_FREE char *cwd = NULL;
    char *absolute = NULL;

    if (path[0] == '/' || strstr(path, "://")) {
        absolute = strdup(path);
    } else {
        while (path[0] == '.' && path[1] == '/')
            for (path += 2; *path == '/'; path++)
                ;
        cwd = getcwd(NULL, 0);
        if (!cwd)
            return -errno;
        if (asprintf(&absolute, "%s/%s", strcmp(cwd, "/") ? cwd : "", path) < 0)
            absolute = NULL;
    }
    if (!absolute)
        return -ENOMEM;
    *ret_path = absolute;
    return 0;
}

int
cli_split_key_value(const char *text, char **ret_key, const char **ret_value)
{
    const char *equals = strchr(text, '=');
    char *key;

    if (!equals || equals == text)
        return -THIN_E_INVALID;
    key = strndup(text, (size_t)(equals - text));
    if (!key)
        return -ENOMEM;
    /* Written like the option of the same meaning, a key is known as well. */
    for (char *c = key; *c; c++)
        if (*c == '-')
            *c = '_';
    *ret_key = key;
    *ret_value = equals + 1;
    return 0;
}

void
cli_key_values_fini(struct cli_key_values *values)
{
    for (unsigned i = 0; i < values->nr; i++) {
        free(values->list[i]->key);
        free(values->list[i]);
    }
    free(values->list);
    *values = (struct cli_key_values){0};
}

static int
add_key_value(struct cli *cli, const char *text, struct cli_key_values *values)
{
    Thin__KeyValue *kv = malloc(sizeof(*kv));
    const char *value = NULL;
    char *key = NULL;
    int r = kv ? cli_split_key_value(text, &key, &value) : -ENOMEM;

    if (r < 0) {
        free(kv);
        if (r == -THIN_E_INVALID)
            return cli_usage(cli, "%s: KEY=VALUE is expected", text);
        return thin_fail_code(&cli->err, r, "read the command line");
    }
    thin__key_value__init(kv);
    kv->key = key;
    kv->value = (char *)(uintptr_t)value;
    values->list[values->nr++] = kv;
    return 0;
}

int
cli_key_values(struct cli *cli, unsigned first, struct cli_key_values *ret)
{
    struct cli_key_values values = {.list =
                                        calloc((size_t)cli->nr_args + 1, sizeof(void *))};
    int r = values.list ? 0 : thin_fail_code(&cli->err, -ENOMEM, "read the command line");

    for (unsigned i = first; r == 0 && i < cli->nr_args; i++)
        r = add_key_value(cli, cli->args[i], &values);
    if (r)
        cli_key_values_fini(&values);
    else
        *ret = values;
    return r;
}
