/* thincli: management of a thinsrv. Reads the command line, finds the verb, runs it. */
#include <errno.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "client/cli/cli.h"
#include "client/cli/json.h"

const struct cli_noun cli_nouns[] = {
    {"pool", "pools: data and metadata devices that volumes live in", pool_verbs},
    {"volume", "volumes and snapshots", volume_verbs},
    {"session", "who is connected", session_verbs},
    {"access", "who may do what", access_verbs},
    {"pki", "certificates, made on this machine", pki_verbs},
    {"server", "the server itself", server_verbs},
    {0},
};

static const char global_help[] =
    "Global options, before or behind NOUN VERB:\n"
    "  --server ADDRESS         unix:PATH or tls://HOST[:PORT]; also THIN_SERVER,\n"
    "                           " CLI_DEFAULT_CONFIG ", else\n"
    "                           " CLI_DEFAULT_SERVER "\n"
    "  --cert F --key F --ca F  PEM files, for tls://\n"
    "  --json                   print one JSON document, sizes in bytes\n"
    "  --connect-timeout 5s     how long to wait for the server\n"
    "  --help, --version\n";

static void
print_usage_line(FILE *f, const struct cli_noun *noun, const struct cli_verb *verb)
{
    fprintf(f, "thincli %s %s%s%s%s", noun->name, verb->name, *verb->synopsis ? " " : "",
            verb->synopsis, verb->options ? " [options]" : "");
}

static void
print_verb_help(const struct cli_noun *noun, const struct cli_verb *verb)
{
    fputs("Usage: ", stdout);
    print_usage_line(stdout, noun, verb);
    printf("\n%s\n", verb->summary);
    for (const struct cli_option *o = verb->options; o && o->name; o++) {
        char left[64];

        snprintf(left, sizeof(left), "--%s%s%s", o->name, o->arg ? " " : "",
                 o->arg ? o->arg : "");
        printf("  %-28s %s%s\n", left, o->help, o->repeats ? " (may repeat)" : "");
    }
}

static void
print_noun_verbs(const struct cli_noun *noun)
{
    for (const struct cli_verb *v = noun->verbs; v->name; v++) {
        char left[64];

        snprintf(left, sizeof(left), "%s %s", v->name, v->synopsis);
        if (strlen(left) <= 36)
            printf("  %-36s %s\n", left, v->summary);
        else
            printf("  %s %s\n  %-36s %s\n", v->name, v->synopsis, "", v->summary);
    }
}

static void
print_help(const struct cli *cli)
{
    if (cli->noun && cli->verb) {
        print_verb_help(cli->noun, cli->verb);
        return;
    }
    printf("Usage: thincli [options] %s VERB ...   (thincli NOUN VERB --help)\n",
           cli->noun ? cli->noun->name : "NOUN");
    for (const struct cli_noun *n = cli_nouns; n->name; n++) {
        if (cli->noun && cli->noun != n)
            continue;
        printf("\n%s: %s\n", n->name, n->summary);
        print_noun_verbs(n);
    }
    printf("\n%s", global_help);
}

/* How it is written, behind what was wrong, on the same line. */
static void
print_hint(const struct cli *cli)
{
    fputs("; usage: ", stderr);
    if (cli->noun && cli->verb) {
        print_usage_line(stderr, cli->noun, cli->verb);
    } else if (cli->noun) {
        fprintf(stderr, "thincli %s VERB ...; verbs:", cli->noun->name);
        for (const struct cli_verb *v = cli->noun->verbs; v->name; v++)
            fprintf(stderr, " %s", v->name);
    } else {
        fputs("thincli [options] NOUN VERB ...; nouns:", stderr);
        for (const struct cli_noun *n = cli_nouns; n->name; n++)
            fprintf(stderr, " %s", n->name);
    }
    fputs("   (--help tells more)", stderr);
}

static void
print_error(const struct cli *cli, int code, bool usage)
{
    struct json json;

    if (cli->json) {
        json_init(&json, stderr, true);
        json_open_object(&json, NULL);
        json_open_object(&json, "error");
        json_string(&json, "code", thin_error_name(code));
        json_string(&json, "text", thin_error_text(&cli->err, code));
        json_close(&json);
        json_close(&json);
        json_finish(&json);
        return;
    }
    fputs("thincli: ", stderr);
    /* Words of a server: one line, and nothing that a terminal would obey. */
    for (const char *p = thin_error_text(&cli->err, code); *p; p++)
        fputc((unsigned char)*p < ' ' || *p == 0x7f ? '?' : *p, stderr);
    if (usage)
        print_hint(cli);
    fputc('\n', stderr);
}

/* What is on its way to stdout is part of the answer: it must have got there. */
static int
finish_output(struct cli *cli)
{
    if (fflush(stdout) == 0 && !ferror(stdout))
        return 0;
    return thin_fail_code(&cli->err, -(errno ? errno : EIO), "write the answer");
}

/* --json counts also where the command line could not be read to its end. */
static void
look_for_json(struct cli *cli, int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++)
        if (strcmp(argv[i], "--json") == 0)
            cli->json = true;
}

int
main(int argc, char **argv)
{
    struct cli cli = {0};
    int r;

    setlocale(LC_ALL, "");
    /* A reader that goes away shows as an error of stdout. */
    signal(SIGPIPE, SIG_IGN);
    look_for_json(&cli, argc, argv);
    r = cli_parse(&cli, cli_nouns, argc, argv);
    if (r == 0 && cli.version)
        printf("thincli %s\n", THIN_VERSION);
    else if (r == 0 && cli.help)
        print_help(&cli);
    else if (r == 0)
        r = cli.verb->run(&cli);
    if (r == 0)
        r = finish_output(&cli);
    if (r != 0)
        print_error(&cli, r == CLI_USAGE ? -THIN_E_INVALID : r, r == CLI_USAGE);
    cli_fini(&cli);
    return r == 0 ? 0 : r == CLI_USAGE ? CLI_USAGE : 1;
}
