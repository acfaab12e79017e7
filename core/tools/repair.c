/* thinmeta repair, thin_repair: what can be had from damaged metadata, to a new device. */
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "core/offline/repair.h"
#include "core/tools/tool.h"

struct repair_args {
    const char *input, *output;
    const char *superblocks; /* a file of them; NULL: looked for */
    struct build_override over;
    bool dry_run;
};

/* Where thinsrv keeps copies, unless its state_dir is another one. */
#define BACKUPS_FOLDER "/var/lib/thinsrv/backups"

static void
print_plan(const struct repair_plan *plan)
{
    const struct live_pool *pool = &plan->pool;

    char when[32] = "";

    if (plan->superblock_lost)
        printf("the superblock is lost\n");
    if (plan->from_kept) {
        time_t t = (time_t)plan->kept_unix_s;
        struct tm tm;

        if (gmtime_r(&t, &tm))
            strftime(when, sizeof(when), "%Y-%m-%d %H:%M:%S", &tm);
        printf("the superblock is one that was kept, of %s UTC\n", when);
    }
    if (plan->trees_whole)
        printf("both trees are whole: the space maps are made anew\n");
    for (size_t i = 0; i < pool->nr_devices; i++) {
        const struct repair_device *d = &plan->devices[i];

        printf("device %" PRIu64 ": %" PRIu64 " mappings kept", pool->devices[i].dev_id,
               d->recovered);
        if (d->details_made)
            printf(", its record was lost");
        else if (pool->devices[i].details.mapped_blocks > d->recovered)
            printf(", %" PRIu64 " lost",
                   pool->devices[i].details.mapped_blocks - d->recovered);
        else
            printf(" of %" PRIu64, pool->devices[i].details.mapped_blocks);
        printf(" (%s)\n", repair_origin_name(d->origin));
    }
    for (size_t i = 0; i < plan->lost.nr_affected; i++) {
        const struct affected *a = &plan->lost.affected[i];

        if (a->last == UINT64_MAX)
            printf("lost: device %" PRIu64 ", what was mapped from virtual block %" PRIu64
                   " on\n",
                   a->dev_id, a->begin);
        else
            printf("lost: device %" PRIu64 ", what was mapped in virtual blocks %" PRIu64
                   " to %" PRIu64 "\n",
                   a->dev_id, a->begin, a->last);
    }
    if (plan->lost.nr_affected_all > plan->lost.nr_affected)
        printf("lost: and more ranges\n");
    printf("%zu devices, %" PRIu64 " mappings kept\n", pool->nr_devices, plan->recovered);
}

static bool
same_file(const char *a, const char *b)
{
    struct stat sa, sb;

    if (stat(a, &sa) < 0 || stat(b, &sb) < 0)
        return false;
    if (S_ISBLK(sa.st_mode) && S_ISBLK(sb.st_mode))
        return sa.st_rdev == sb.st_rdev;
    return sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

static int
build(const struct tool *tool, const struct repair_args *args, struct repair_plan *plan,
      struct thin_error *err)
{
    struct meta_source *dst = NULL;
    struct builder b;
    int r = tool_open(args->output, SOURCE_WRITE, &dst, err);

    if (r < 0)
        return r;
    /* All is made anew, so nothing is left to check; thin_repair keeps the flag. */
    if (!tool->as_official)
        plan->pool.sb.flags &= ~SUPERBLOCK_NEEDS_CHECK;
    r = builder_init(&b, dst, NULL, err);
    b.keep_trailer = true;
    memcpy(b.trailer, plan->trailer, sizeof(b.trailer));
    if (r >= 0)
        r = repair_plan_feed(plan, &builder_visitor, &b, err);
    builder_fini(&b);
    tool_close(dst);
    return r;
}

/* What was kept of this device. None is no mistake, unless a file of them was named. */
static int
read_kept(const struct repair_args *args, struct kept *ret, struct thin_error *err)
{
    char path[KEPT_PATH_MAX + 64];

    memset(ret, 0, sizeof(*ret));
    if (args->superblocks)
        return kept_read(args->superblocks, ret, err);
    if (kept_find(BACKUPS_FOLDER, args->input, path, sizeof(path)) == 0)
        kept_read(path, ret, NULL);
    return 0;
}

static int
repair(const struct tool *tool, const struct repair_args *args, struct thin_error *err)
{
    struct meta_source *src = NULL;
    struct repair_plan plan;
    struct kept kept;
    int r;

    if (args->output && same_file(args->input, args->output))
        return thin_fail(
            err, -THIN_E_INVALID,
            "input and output are the same device; repair needs another one");
    r = tool_open(args->input, SOURCE_READ, &src, err);
    if (r < 0)
        return r;
    r = read_kept(args, &kept, err);
    if (r < 0) {
        tool_close(src);
        return r;
    }
    r = repair_plan_make(&plan, src, &args->over, &kept, err);
    kept_fini(&kept);
    tool_progress_end();
    if (r >= 0 && !tool->as_official)
        print_plan(&plan);
    if (r >= 0 && !args->dry_run)
        r = build(tool, args, &plan, err);
    tool_progress_end();
    repair_plan_fini(&plan);
    tool_close(src);
    return r < 0 ? thin_wrap(err, r, "repair %s", args->input) : 0;
}

int
tool_repair(const struct tool *tool, int argc, char **argv)
{
    enum { TRANS = 256, BLOCK_SIZE, NR_DATA, DRY_RUN, SUPERBLOCKS };
    static const struct option longopts[] = {
        {"input", required_argument, NULL, 'i'},
        {"output", required_argument, NULL, 'o'},
        {"dry-run", no_argument, NULL, DRY_RUN},
        {"transaction-id", required_argument, NULL, TRANS},
        {"data-block-size", required_argument, NULL, BLOCK_SIZE},
        {"nr-data-blocks", required_argument, NULL, NR_DATA},
        {"superblocks", required_argument, NULL, SUPERBLOCKS},
        TOOL_LONG_TAKEOVER,
        TOOL_LONG_COMMON,
    };
    struct repair_args args = {0};
    struct thin_error err;
    int opt, exit_code, r;

    while ((opt = getopt_long(argc, argv, "hVi:o:", longopts, NULL)) != -1) {
        if (tool_common_option(tool, opt, &exit_code))
            return exit_code;
        if (opt == 0)
            continue;
        switch (opt) {
        case 'i':
            args.input = optarg;
            break;
        case 'o':
            args.output = optarg;
            break;
        case DRY_RUN:
            args.dry_run = true;
            break;
        case SUPERBLOCKS:
            args.superblocks = optarg;
            break;
        default:
            if (!tool_override(&args.over, opt - TRANS, optarg))
                return tool_misused(tool, "not a number: '%s'", optarg);
            break;
        }
    }
    if (optind != argc)
        return tool_misused(tool, "unexpected argument '%s'", argv[optind]);
    if (!args.input)
        return tool_misused(tool, "No input file provided.");
    if (!args.output && !args.dry_run)
        return tool_misused(tool, "No output file provided.");
    thin_error_init(&err);
    r = repair(tool, &args, &err);
    return r < 0 ? tool_fail(tool, r, &err) : 0;
}
