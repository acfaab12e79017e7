/* thinnbd: a volume of a thinsrv as a local NBD socket. Options, then bridge_run. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/nbd/bridge_private.h"
#include "core/base/log.h"
#include "core/base/name.h"
#include "proto/limits.h"
#include "proto/message.h"

#define DEFAULT_SERVER "unix:/run/thinsrv/thinsrv.sock"
#define EXIT_USAGE     2

static const char help[] =
    "Usage: thinnbd --server ADDRESS --listen ADDRESS [options] POOL/VOLUME[@ro]\n"
    "Serves one volume of a thinsrv to NBD clients.\n"
    "  --server ADDRESS          unix:PATH or tls://HOST[:PORT]; also THIN_SERVER,\n"
    "                            else " DEFAULT_SERVER "\n"
    "  --cert F --key F --ca F   PEM files, for tls://\n"
    "  --connect-timeout 5s      for each attempt to connect\n"
    "  --wait                    for a server that is not there yet\n"
    "  --listen ADDRESS          unix:PATH or tcp:HOST:PORT; may repeat\n"
    "  --tls-cert F --tls-key F --tls-ca F\n"
    "                            NBD clients over TCP must use TLS with certificates\n"
    "  --plain                   let other machines connect over TCP without TLS\n"
    "  --log-level LEVEL         error, warning, notice, debug\n"
    "  --help, --version\n";

static int usage(const char *fmt, ...) PRINTF_LIKE(1, 2);

static int
usage(const char *fmt, ...)
{
    va_list ap;

    fputs("thinnbd: ", stderr);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputs("; usage: thinnbd --server ADDRESS --listen ADDRESS POOL/VOLUME[@ro]   "
          "(--help tells more)\n",
          stderr);
    return EXIT_USAGE;
}

enum option_id {
    OPTION_SERVER = 256,
    OPTION_LISTEN,
    OPTION_CERT,
    OPTION_KEY,
    OPTION_CA,
    OPTION_TLS_CERT,
    OPTION_TLS_KEY,
    OPTION_TLS_CA,
    OPTION_CONNECT_TIMEOUT,
    OPTION_WAIT,
    OPTION_PLAIN,
    OPTION_LOG_LEVEL,
    OPTION_HELP,
    OPTION_VERSION,
};

static const struct option long_options[] = {
    {"server", required_argument, NULL, OPTION_SERVER},
    {"listen", required_argument, NULL, OPTION_LISTEN},
    {"cert", required_argument, NULL, OPTION_CERT},
    {"key", required_argument, NULL, OPTION_KEY},
    {"ca", required_argument, NULL, OPTION_CA},
    {"tls-cert", required_argument, NULL, OPTION_TLS_CERT},
    {"tls-key", required_argument, NULL, OPTION_TLS_KEY},
    {"tls-ca", required_argument, NULL, OPTION_TLS_CA},
    {"connect-timeout", required_argument, NULL, OPTION_CONNECT_TIMEOUT},
    {"wait", no_argument, NULL, OPTION_WAIT},
    {"plain", no_argument, NULL, OPTION_PLAIN},
    {"log-level", required_argument, NULL, OPTION_LOG_LEVEL},
    {"help", no_argument, NULL, OPTION_HELP},
    {"version", no_argument, NULL, OPTION_VERSION},
    {0},
};

/* Where a plain text option goes, or NULL. */
static const char **
text_option(struct bridge_options *o, int id)
{
    switch (id) {
    case OPTION_SERVER:
        return &o->server;
    case OPTION_CERT:
        return &o->cert;
    case OPTION_KEY:
        return &o->key;
    case OPTION_CA:
        return &o->ca;
    case OPTION_TLS_CERT:
        return &o->tls_cert;
    case OPTION_TLS_KEY:
        return &o->tls_key;
    case OPTION_TLS_CA:
        return &o->tls_ca;
    default:
        return NULL;
    }
}

static int
take_other(struct bridge_options *o, int id)
{
    enum thin_log_level level;
    struct thin_error err;

    thin_error_init(&err);
    switch (id) {
    case OPTION_LISTEN:
        if (o->nr_listen == BRIDGE_LISTENERS_MAX)
            return usage("at most %u times --listen", BRIDGE_LISTENERS_MAX);
        o->listen[o->nr_listen++] = optarg;
        return 0;
    case OPTION_CONNECT_TIMEOUT:
        if (duration_parse_ms(optarg, &o->connect_timeout_ms, &err) < 0)
            return usage("%s", err.text);
        if (o->connect_timeout_ms == 0 || o->connect_timeout_ms > INT_MAX)
            return usage("bad --connect-timeout %s", optarg);
        return 0;
    case OPTION_WAIT:
        o->wait = true;
        return 0;
    case OPTION_PLAIN:
        o->plain = true;
        return 0;
    default:
        if (thin_log_parse_level(optarg, &level) < 0)
            return usage("bad --log-level %s: error, warning, notice or debug", optarg);
        thin_log_set_level(level);
        return 0;
    }
}

static int
take_volume(struct bridge_options *o, const char *text)
{
    char pool[THIN_NAME_MAX + 1], volume[THIN_NAME_MAX + 1];
    size_t len = strlen(text);
    struct thin_error err;

    thin_error_init(&err);
    if (len > 3 && strcmp(text + len - 3, "@ro") == 0) {
        o->read_only = true;
        len -= 3;
    }
    if (len >= sizeof(o->volume))
        return usage("the volume's name is too long");
    memcpy(o->volume, text, len);
    if (!strchr(o->volume, '/'))
        return usage("%s: volumes are written POOL/VOLUME", o->volume);
    if (message_split_name(o->volume, pool, volume, &err) < 0)
        return usage("%s", err.text);
    return 0;
}

/* What can be judged without doing anything. */
static int
check_options(struct bridge_options *o)
{
    const char *env = getenv("THIN_SERVER");
    struct socket_address address;
    struct thin_error err;

    thin_error_init(&err);
    if (!o->server)
        o->server = env && *env ? env : DEFAULT_SERVER;
    if (socket_address_parse(o->server, PROTO_PORT, &address, &err) < 0)
        return usage("%s", err.text);
    if (address.kind == SOCKET_TCP && !address.tls)
        return usage("--server %s: the network is used with TLS only: tls://HOST:PORT",
                     o->server);
    if (address.tls && !(o->cert && o->key && o->ca))
        return usage("%s needs --cert, --key and --ca", o->server);
    if (!address.tls) /* not asked for on a local socket */
        o->cert = o->key = o->ca = NULL;
    if (!o->tls_cert != !o->tls_key || !o->tls_cert != !o->tls_ca)
        return usage("--tls-cert, --tls-key and --tls-ca go together");
    if (o->nr_listen == 0)
        return usage("--listen is missing");
    for (unsigned i = 0; i < o->nr_listen; i++)
        if (socket_address_parse(o->listen[i], NBD_PORT, &address, &err) < 0)
            return usage("%s", err.text);
        else if (address.tls)
            return usage("--listen %s: write unix:PATH or tcp:HOST:PORT", o->listen[i]);
    return 0;
}

/* 0: go on. Negative: done (help, version). EXIT_USAGE. */
static int
parse(struct bridge_options *o, int argc, char **argv)
{
    int id, r = 0;

    opterr = 0;
    while (r == 0 && (id = getopt_long(argc, argv, ":hV", long_options, NULL)) != -1) {
        const char **text = text_option(o, id);

        if (text) {
            *text = optarg;
        } else if (id == ':') {
            r = usage("%s needs a value", argv[optind - 1]);
        } else if (id == '?') {
            r = usage("no such option: %s", argv[optind - 1]);
        } else if (id == OPTION_HELP || id == 'h') {
            fputs(help, stdout);
            return -1;
        } else if (id == OPTION_VERSION || id == 'V') {
            printf("thinnbd %s\n", THIN_VERSION);
            return -1;
        } else {
            r = take_other(o, id);
        }
    }
    if (r == 0 && optind >= argc)
        r = usage("a volume is missing");
    if (r == 0 && optind + 1 < argc)
        r = usage("one argument too many: %s", argv[optind + 1]);
    if (r == 0)
        r = take_volume(o, argv[optind]);
    return r ? r : check_options(o);
}

static void
say_ready(const char *const *addresses, unsigned nr)
{
    printf("listening on");
    for (unsigned i = 0; i < nr; i++)
        printf(" %s", addresses[i]);
    printf("\n");
    fflush(stdout);
}

int
main(int argc, char **argv)
{
    struct bridge_options options = {.connect_timeout_ms = BRIDGE_CONNECT_MS};
    struct thin_error err;
    int r = parse(&options, argc, argv);

    if (r != 0)
        return r < 0 ? 0 : r;
    signal(SIGPIPE, SIG_IGN);
    thin_error_init(&err);
    r = bridge_run(&options, say_ready, &err);
    if (r < 0)
        fprintf(stderr, "thinnbd: %s\n", thin_error_text(&err, r));
    return r < 0 ? 1 : 0;
}
