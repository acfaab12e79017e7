/* thinmeta: one verb for each tool; it also answers to the official tools' names. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "core/tools/tool.h"

const struct tool tools[] = {
    {.verb = "check",
     .official = "thin_check",
     .run = tool_check,
     .synopsis = "[options] {device|file}",
     .summary = "verify everything that can be verified",
     .usage =
         "  -q, --quiet                    print nothing, the exit code tells\n"
         "      --json                     print one JSON document\n"
         "      --strict                   leaks and notes are faults too\n"
         "  -m, --metadata-snap[=BLOCK]    check the held snapshot\n"
         "      --super-block-only         look at the superblock only\n"
         "      --skip-mappings            do not walk the mapping trees\n"
         "      --ignore-non-fatal-errors  nodes may be too empty\n"
         "      --clear-needs-check-flag   clear the flag if all is good\n"
         "      --auto-repair              mend leaks, counts, mapped_blocks; then the\n"
         "                                 flag is cleared too\n"
         "      --override-mapping-root N  walk the mappings from this block\n" TOOL_USAGE_TAKEOVER},
    {.verb = "dump",
     .official = "thin_dump",
     .run = tool_dump,
     .synopsis = "[options] {device|file}",
     .half = "the output is incomplete",
     .summary = "print the metadata as XML, text or JSON",
     .usage = "  -f, --format xml|human_readable|json\n"
              "  -r, --repair                   what can still be reached\n"
              "  -m, --metadata-snap[=BLOCK]    the held snapshot\n"
              "      --dev-id N                 this device; may repeat\n"
              "      --skip-mappings            devices only\n"
              "      --transaction-id N         in place of what is found\n"
              "      --data-block-size SECTORS\n"
              "      --nr-data-blocks N\n"
              "  -o, --output FILE\n"},
    {.verb = "format",
     .run = tool_format,
     .synopsis = "[options] --data-size SIZE METADEV",
     .half = "what is on the output is no pool and has to be made again",
     .summary = "make the metadata of an empty pool",
     .usage =
         "      --data-size SIZE           of the data device (as 10G)\n"
         "      --data-block-size SIZE     default 64k\n"
         "      --metadata-size SIZE       of a file that is made\n"
         "      --force                    also over something else\n" TOOL_USAGE_TAKEOVER},
    {.verb = "restore",
     .official = "thin_restore",
     .run = tool_restore,
     .synopsis = "[options] -i XML -o {device|file}",
     .half = "what is on the output is no pool and has to be made again",
     .summary = "make metadata from a dump's XML",
     .usage = "  -i, --input FILE               - for standard input\n"
              "  -o, --output FILE              a device or an existing file\n"
              "      --transaction-id N         in place of the XML's\n"
              "      --data-block-size N        sectors\n"
              "      --nr-data-blocks N\n"
              "  -q, --quiet\n" TOOL_USAGE_TAKEOVER},
    {.verb = "size",
     .official = "thin_metadata_size",
     .run = tool_size_verb,
     .synopsis = "-b BLOCKSIZE -s POOLSIZE -m MAXTHINS [-u UNIT] [-n]",
     .summary = "how large a metadata device should be",
     .usage = "  -b, --block-size SIZE          [bskKmMgGtTpPeE]\n"
              "  -s, --pool-size SIZE\n"
              "  -m, --max-thins N\n"
              "  -u, --unit UNIT                of the answer\n"
              "  -n, --numeric-only[=short|long]\n"},
    {.verb = "ls",
     .official = "thin_ls",
     .run = tool_ls,
     .synopsis = "[options] {device|file}",
     .summary = "list the devices",
     .usage =
         "  -o, --format FIELDS            comma separated: DEV, MAPPED_BLOCKS,\n"
         "                                 EXCLUSIVE_BLOCKS, SHARED_BLOCKS,\n"
         "                                 HIGHEST_BLOCK, MAPPED_SECTORS,\n"
         "                                 EXCLUSIVE_SECTORS, SHARED_SECTORS,\n"
         "                                 MAPPED_BYTES, EXCLUSIVE_BYTES,\n"
         "                                 SHARED_BYTES, MAPPED, EXCLUSIVE, SHARED,\n"
         "                                 TRANSACTION, CREATE_TIME, SNAP_TIME\n"
         "      --no-headers\n"
         "      --json                     print one JSON document\n"
         "  -m, --metadata-snap[=BLOCK]    the held snapshot\n"},
    {.verb = "delta",
     .official = "thin_delta",
     .run = tool_delta,
     .synopsis = "[options] --thin1 N --thin2 N {device|file}",
     .half = "the output is incomplete",
     .summary = "what differs between two devices",
     .usage = "      --thin1 N, --snap1 N\n"
              "      --thin2 N, --snap2 N\n"
              "      --verbose                  with data blocks\n"
              "      --differences-only         nothing of what is the same\n"
              "  -m, --metadata-snap[=BLOCK]    the held snapshot\n"},
    {.verb = "rmap",
     .official = "thin_rmap",
     .run = tool_rmap,
     .synopsis = "--region A..B... {device|file}",
     .half = "the output is incomplete",
     .summary = "who maps these data blocks",
     .usage = "      --region A..B              blocks A to B - 1; may repeat\n"},
    {.verb = "repair",
     .official = "thin_repair",
     .run = tool_repair,
     .synopsis = "[options] -i {device|file} -o {device|file}",
     .half = "what is on the output is no pool and has to be made again",
     .summary = "make good metadata from what is left of damaged",
     .usage =
         "  -i, --input FILE               only read\n"
         "  -o, --output FILE              a device or an existing file\n"
         "      --dry-run                  only say what would be kept and lost\n" TOOL_USAGE_TAKEOVER
         "      --superblocks FILE         kept ones, tried first; else looked for\n"
         "      --transaction-id N         needed when the superblock is lost\n"
         "      --data-block-size N        sectors\n"
         "      --nr-data-blocks N\n"},
    {.verb = "trim",
     .official = "thin_trim",
     .run = tool_trim,
     .synopsis = "--metadata-dev {device|file} --data-dev {device|file}",
     .summary = "discard the free space of the data device",
     .usage = TOOL_USAGE_TAKEOVER},
    {.verb = "pack",
     .official = "thin_metadata_pack",
     .run = tool_pack,
     .synopsis = "-i {device|file} -o FILE",
     .half = "the output is incomplete",
     .summary = "metadata to a small file, to send to somebody",
     .usage = "  -i, --input FILE\n"
              "  -o, --output FILE\n"},
    {.verb = "unpack",
     .official = "thin_metadata_unpack",
     .run = tool_unpack,
     .synopsis = "-i FILE -o {device|file}",
     .half = "what is on the output is no pool and has to be made again",
     .summary = "the other way",
     .usage = "  -i, --input FILE\n"
              "  -o, --output FILE              made if missing\n" TOOL_USAGE_TAKEOVER},
    {0},
};

static int
usage(FILE *f)
{
    fprintf(f, "Usage: thinmeta VERB [options] ...   (thinmeta VERB --help)\n");
    for (const struct tool *t = tools; t->verb; t++)
        fprintf(f, "  %-8s %s\n", t->verb, t->summary);
    return f == stderr ? 2 : 0;
}

static int
run(const char *base, int argc, char **argv)
{
    for (const struct tool *t = tools; t->verb; t++)
        if (t->official && strcmp(base, t->official) == 0) {
            struct tool as = *t;

            as.as_official = true;
            return as.run(&as, argc, argv);
        }
    if (argc < 2)
        return usage(stderr);
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        printf("thinmeta %s\n", THIN_VERSION);
        return 0;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)
        return usage(stdout);
    for (const struct tool *t = tools; t->verb; t++)
        if (strcmp(argv[1], t->verb) == 0)
            return t->run(t, argc - 1, argv + 1);
    fprintf(stderr, "thinmeta: no such verb: %s\n", argv[1]);
    return usage(stderr);
}

int
main(int argc, char **argv)
{
    const char *base = argc > 0 ? argv[0] : "thinmeta";
    int exit_code;

    if (strrchr(base, '/'))
        base = strrchr(base, '/') + 1;
    exit_code = run(base, argc, argv);
    /* What was printed has to arrive, also the answer of a tool that did its work. */
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout))
        return exit_code;
    if (exit_code == 0)
        fprintf(stderr, "%s: write the output: %s\n", base,
                strerror(errno ? errno : EIO));
    return exit_code ? exit_code : 1;
}
