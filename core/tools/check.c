/* thinmeta check, thin_check. */
#include <inttypes.h>
#include <string.h>

#include "core/offline/check_text.h"
#include "core/offline/mend.h"
#include "core/offline/owner.h"
#include "core/tools/tool.h"

struct check_args {
    struct check_options opts;
    bool quiet, strict, json, clear_needs_check, auto_repair;
};

static int
print_report(const struct tool *tool, const struct check_args *args,
             const struct report *rep, const struct check_result *res, bool good,
             struct thin_error *err)
{
    const struct check_text form = {.catalogue = !tool->as_official,
                                    .metadata_snap = args->opts.metadata_snap,
                                    .super_block_only = args->opts.super_block_only};
    struct tool_output out;
    struct textbuf text;
    int r = tool_output_open(&out, NULL, err);

    if (r == 0)
        r = textbuf_init(&text, tool_output_write, &out);
    if (r < 0)
        return r;
    r = args->json ? check_json_write(&text, rep, res, good)
                   : check_text_write(&text, &form, rep, res);
    textbuf_fini(&text);
    return r < 0 ? thin_fail_code(err, r, "write the report") : 0;
}

/* What decides the exit code: damage, and leaks where they count. */
static bool
is_good(const struct tool *tool, const struct check_args *args, const struct report *rep,
        const struct check_result *res)
{
    if (rep->nr_class[REPORT_DAMAGE])
        return false;
    if (args->strict &&
        (res->leaked_metadata || res->leaked_data || rep->nr_class[REPORT_NOTE]))
        return false;
    /* thin_check fails on leaked metadata blocks, and never looks at data counts. */
    return !(tool->as_official && !args->opts.ignore_non_fatal && res->leaked_metadata);
}

/* What the options say about writing, after a check that went well enough. */
static int
mend(const struct check_args *args, struct meta_source *src, const struct report *rep,
     const struct check_result *res, bool *good, struct thin_error *err)
{
    bool mendable = rep->nr_class[REPORT_DAMAGE] || rep->nr_class[REPORT_LEAK] ||
                    rep->nr_class[REPORT_NOTE];
    int r;

    if (args->auto_repair && mendable && res->trees_known) {
        r = mend_counts(src, rep, res, err);
        if (r < 0)
            return thin_wrap(err, r, "auto-repair");
        *good = true;
        if (!args->quiet && !args->json && res->nr_miscounts)
            printf("the mapped blocks of %zu devices were counted anew\n",
                   res->nr_miscounts);
        if (!args->quiet && !args->json)
            printf("the space maps were made anew\n");
    }
    /* As thin_check: what was mended, or had nothing to mend, needs no check any more. */
    if ((args->clear_needs_check || args->auto_repair) && *good && res->needs_check) {
        r = mend_clear_needs_check(src, err);
        if (r < 0)
            return r;
        if (!args->quiet && !args->json)
            printf("needs_check is cleared\n");
    }
    return 0;
}

static int
check_source(const struct tool *tool, const struct check_args *args,
             struct meta_source *src, struct thin_error *err)
{
    struct report rep;
    struct check_result res;
    bool good = false;
    int r;

    report_init(&rep);
    r = check_run(src, &args->opts, &rep, &res, err);
    tool_progress_end();
    if (r >= 0) {
        good = is_good(tool, args, &rep, &res);
        if (args->json || !args->quiet)
            r = print_report(tool, args, &rep, &res, good, err);
    }
    if (r >= 0)
        r = mend(args, src, &rep, &res, &good, err);
    check_result_fini(&res);
    report_fini(&rep);
    return r < 0 ? r : good ? 0 : 1;
}

static int
check(const struct tool *tool, const struct check_args *args, const char *path)
{
    bool writes = args->clear_needs_check || args->auto_repair;
    struct meta_source *src = NULL;
    struct thin_error err;
    int r;

    thin_error_init(&err);
    r = tool_open(path,
                  writes                     ? SOURCE_WRITE
                  : args->opts.metadata_snap ? SOURCE_READ_SHARED
                                             : SOURCE_READ,
                  &src, &err);
    if (r >= 0)
        r = check_source(tool, args, src, &err);
    tool_close(src);
    if (r >= 0)
        return r;
    if (args->quiet)
        return 1;
    return tool_fail(tool, r, &err);
}

int
tool_check(const struct tool *tool, int argc, char **argv)
{
    enum { CLEAR = 256, AUTO, LAX, SKIP, SUPER, STRICT, JSON, ROOT };
    static const struct option longopts[] = {
        {"quiet", no_argument, NULL, 'q'},
        {"metadata-snap", optional_argument, NULL, 'm'},
        {"clear-needs-check-flag", no_argument, NULL, CLEAR},
        {"auto-repair", no_argument, NULL, AUTO},
        {"ignore-non-fatal-errors", no_argument, NULL, LAX},
        {"skip-mappings", no_argument, NULL, SKIP},
        {"super-block-only", no_argument, NULL, SUPER},
        {"strict", no_argument, NULL, STRICT},
        {"json", no_argument, NULL, JSON},
        {"override-mapping-root", required_argument, NULL, ROOT},
        TOOL_LONG_TAKEOVER,
        TOOL_LONG_COMMON,
    };
    struct check_args args = {0};
    const char *path;
    int opt, exit_code;

    while ((opt = getopt_long(argc, argv, "hVqm::", longopts, NULL)) != -1) {
        if (tool_common_option(tool, opt, &exit_code))
            return exit_code;
        if (opt == 0)
            continue;
        switch (opt) {
        case 'q':
            args.quiet = true;
            break;
        case 'm':
            args.opts.metadata_snap = true;
            if (optarg && !tool_number(optarg, &args.opts.snap_block))
                return tool_misused(tool, "not a block number: '%s'", optarg);
            break;
        case CLEAR:
            args.clear_needs_check = true;
            break;
        case AUTO:
            args.auto_repair = true;
            break;
        case LAX:
            args.opts.ignore_non_fatal = true;
            break;
        case SKIP:
            args.opts.skip_mappings = true;
            break;
        case SUPER:
            args.opts.super_block_only = true;
            break;
        case ROOT:
            if (!tool_number(optarg, &args.opts.mapping_root) || !args.opts.mapping_root)
                return tool_misused(tool, "not a block number: '%s'", optarg);
            break;
        case STRICT:
            args.strict = true;
            break;
        default:
            args.json = true;
            break;
        }
    }
    exit_code = tool_argument(tool, argc, argv, "No input file provided.", &path);
    if (exit_code)
        return exit_code;
    if ((args.clear_needs_check || args.auto_repair) && args.opts.metadata_snap)
        return tool_misused(tool, "a metadata snapshot cannot be changed");
    if ((args.clear_needs_check || args.auto_repair) &&
        (args.opts.super_block_only || args.opts.skip_mappings ||
         args.opts.ignore_non_fatal || args.opts.mapping_root))
        return tool_misused(tool, "only a full check may change anything");
    return check(tool, &args, path);
}
