/* thinmeta delta, thin_delta: the difference of two devices as XML. */
#include <errno.h>
#include <inttypes.h>

#include "core/offline/delta_text.h"
#include "core/tools/tool.h"

struct delta_args {
    struct live_options live;
    uint64_t left, right;
    bool have_left, have_right;
    bool verbose, differences_only;
};

static int
write_delta(const struct delta_args *args, struct live_pool *pool, struct textbuf *text,
            struct thin_error *err)
{
    const struct live_device *left = live_find(pool, args->left);
    const struct live_device *right = live_find(pool, args->right);
    struct delta_text w = {.text = text, .verbose = args->verbose};
    int r;

    if (!left)
        return thin_fail(err, -THIN_E_NOT_FOUND,
                         "Unable to find mapping tree for snap1 (%" PRIu64 ")",
                         args->left);
    if (!right)
        return thin_fail(err, -THIN_E_NOT_FOUND,
                         "Unable to find mapping tree for snap2 (%" PRIu64 ")",
                         args->right);
    delta_text_begin(&w, &pool->sb, args->left, args->right);
    r = delta_devices(pool, left, right, args->differences_only, delta_text_run, &w, err);
    return r < 0 ? r : delta_text_end(&w);
}

static int
delta(const struct delta_args *args, const char *path, struct thin_error *err)
{
    struct meta_source *src = NULL;
    struct live_pool pool;
    struct tool_output out;
    struct textbuf text;
    int r = tool_output_open(&out, NULL, err);

    if (r >= 0)
        r = tool_open(path, args->live.metadata_snap ? SOURCE_READ_SHARED : SOURCE_READ,
                      &src, err);
    if (r < 0)
        return r;
    r = live_open(src, &args->live, &pool, err);
    if (r >= 0) {
        r = textbuf_init(&text, tool_output_write, &out);
        if (r >= 0) {
            r = write_delta(args, &pool, &text, err);
            textbuf_fini(&text);
        }
        live_close(&pool);
    }
    tool_close(src);
    tool_progress_end();
    return tool_output_told(&out, r, err);
}

int
tool_delta(const struct tool *tool, int argc, char **argv)
{
    enum { LEFT = 256, RIGHT, VERBOSE, DIFFERENCES };
    static const struct option longopts[] = {
        {"thin1", required_argument, NULL, LEFT},
        {"snap1", required_argument, NULL, LEFT},
        {"thin2", required_argument, NULL, RIGHT},
        {"snap2", required_argument, NULL, RIGHT},
        {"metadata-snap", optional_argument, NULL, 'm'},
        {"verbose", no_argument, NULL, VERBOSE},
        {"differences-only", no_argument, NULL, DIFFERENCES},
        TOOL_LONG_COMMON,
    };
    struct delta_args args = {0};
    struct thin_error err;
    const char *path;
    int opt, exit_code, r;

    while ((opt = getopt_long(argc, argv, "hVm::", longopts, NULL)) != -1) {
        if (tool_common_option(tool, opt, &exit_code))
            return exit_code;
        switch (opt) {
        case LEFT:
            args.have_left = tool_number(optarg, &args.left);
            break;
        case RIGHT:
            args.have_right = tool_number(optarg, &args.right);
            break;
        case 'm':
            args.live.metadata_snap = true;
            if (optarg && !tool_number(optarg, &args.live.snap_block))
                return tool_misused(tool, "not a block number: '%s'", optarg);
            break;
        case VERBOSE:
            args.verbose = true;
            break;
        default:
            args.differences_only = true;
            break;
        }
    }
    exit_code = tool_argument(tool, argc, argv, "No input device provided.", &path);
    if (exit_code)
        return exit_code;
    if (!args.have_left)
        return tool_misused(tool, "--snap1 not specified.");
    if (!args.have_right)
        return tool_misused(tool, "--snap2 not specified.");
    thin_error_init(&err);
    r = delta(&args, path, &err);
    return r < 0 ? tool_fail(tool, r, &err) : 0;
}
