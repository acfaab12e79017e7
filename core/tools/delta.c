/* thinmeta delta, thin_delta: the difference of two devices as XML. */
#include <errno.h>
#include <inttypes.h>

#include "core/offline/delta.h"
#include "core/tools/tool.h"

struct delta_args {
    struct live_options live;
    uint64_t left, right;
    bool have_left, have_right;
    bool verbose, differences_only;
};

struct delta_writer {
    struct textbuf *text;
    bool verbose;
    struct delta_run open; /* not verbose: joined by kind alone; len 0: none */
    bool in_kind;          /* verbose: an element is open */
    enum delta_kind kind;
};

static int
write_joined(struct delta_writer *w)
{
    struct textbuf *t = w->text;

    if (!w->open.len)
        return 0;
    textbuf_str(t, "    <");
    textbuf_text(t, delta_kind_name(w->open.kind));
    textbuf_str(t, " begin=\"");
    textbuf_u64(t, w->open.begin);
    textbuf_str(t, "\" length=\"");
    textbuf_u64(t, w->open.len);
    textbuf_str(t, "\"/>\n");
    w->open.len = 0;
    return textbuf_line(t);
}

static int
end_kind(struct delta_writer *w)
{
    struct textbuf *t = w->text;

    if (!w->in_kind)
        return 0;
    w->in_kind = false;
    textbuf_str(t, "    </");
    textbuf_text(t, delta_kind_name(w->kind));
    textbuf_str(t, ">\n");
    return textbuf_line(t);
}

static int
write_verbose(struct delta_writer *w, const struct delta_run *run)
{
    struct textbuf *t = w->text;
    int r = 0;

    if (w->in_kind && w->kind != run->kind)
        r = end_kind(w);
    if (!w->in_kind) {
        w->in_kind = true;
        w->kind = run->kind;
        textbuf_str(t, "    <");
        textbuf_text(t, delta_kind_name(run->kind));
        textbuf_str(t, ">\n");
    }
    textbuf_str(t, "      <range begin=\"");
    textbuf_u64(t, run->begin);
    if (run->kind == DELTA_DIFFERENT) {
        textbuf_str(t, "\" left_data_begin=\"");
        textbuf_u64(t, run->left);
        textbuf_str(t, "\" right_data_begin=\"");
        textbuf_u64(t, run->right);
    } else {
        textbuf_str(t, "\" data_begin=\"");
        textbuf_u64(t, run->kind == DELTA_RIGHT_ONLY ? run->right : run->left);
    }
    textbuf_str(t, "\" length=\"");
    textbuf_u64(t, run->len);
    textbuf_str(t, "\"/>\n");
    return r < 0 ? r : textbuf_line(t);
}

static int
on_run(void *arg, const struct delta_run *run)
{
    struct delta_writer *w = arg;
    int r;

    if (w->verbose)
        return write_verbose(w, run);
    if (w->open.len && w->open.kind == run->kind &&
        run->begin == w->open.begin + w->open.len) {
        w->open.len += run->len;
        return 0;
    }
    r = write_joined(w);
    w->open = *run;
    return r;
}

static void
write_head(struct textbuf *t, const struct live_pool *pool, const struct delta_args *args)
{
    textbuf_str(t, "<superblock uuid=\"\" time=\"");
    textbuf_u64(t, pool->sb.time);
    textbuf_str(t, "\" transaction=\"");
    textbuf_u64(t, pool->sb.trans_id);
    textbuf_str(t, "\" data_block_size=\"");
    textbuf_u64(t, pool->sb.data_block_size);
    textbuf_str(t, "\" nr_data_blocks=\"");
    textbuf_u64(t, pool->sb.data_sm.nr_blocks);
    if (pool->sb.held_root) {
        textbuf_str(t, "\" metadata_snap=\"");
        textbuf_u64(t, pool->sb.held_root);
    }
    textbuf_str(t, "\">\n  <diff left=\"");
    textbuf_u64(t, args->left);
    textbuf_str(t, "\" right=\"");
    textbuf_u64(t, args->right);
    textbuf_str(t, "\">\n");
}

static int
write_delta(const struct delta_args *args, struct live_pool *pool, struct textbuf *text,
            struct thin_error *err)
{
    const struct live_device *left = live_find(pool, args->left);
    const struct live_device *right = live_find(pool, args->right);
    struct delta_writer w = {.text = text, .verbose = args->verbose};
    int r;

    if (!left)
        return thin_fail(err, -THIN_E_NOT_FOUND,
                         "Unable to find mapping tree for snap1 (%" PRIu64 ")",
                         args->left);
    if (!right)
        return thin_fail(err, -THIN_E_NOT_FOUND,
                         "Unable to find mapping tree for snap2 (%" PRIu64 ")",
                         args->right);
    write_head(text, pool, args);
    r = delta_devices(pool, left, right, args->differences_only, on_run, &w, err);
    if (r >= 0)
        r = args->verbose ? end_kind(&w) : write_joined(&w);
    if (r < 0)
        return r;
    textbuf_str(text, "  </diff>\n</superblock>\n");
    return textbuf_flush(text);
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
    source_close(src);
    tool_progress_end();
    return r;
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
    path = tool_argument(argc, argv);
    if (!path)
        return tool_misused(tool, "No input device provided.");
    if (!args.have_left)
        return tool_misused(tool, "--snap1 not specified.");
    if (!args.have_right)
        return tool_misused(tool, "--snap2 not specified.");
    thin_error_init(&err);
    r = delta(&args, path, &err);
    return r < 0 ? tool_fail(tool, r, &err) : 0;
}
