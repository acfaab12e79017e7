/* thinmeta dump, thin_dump: the metadata as text. */
#include <string.h>

#include "core/offline/build.h"
#include "core/offline/live.h"
#include "core/offline/text_write.h"
#include "core/tools/tool.h"

#define DEV_IDS_MAX 256u /* --dev-id may repeat */

struct dump_args {
    struct live_options live;
    struct build_override over;
    uint64_t dev_ids[DEV_IDS_MAX];
    const struct ir_visitor *form;
    const char *output;
};

static const struct ir_visitor *
form_by_name(const char *name)
{
    if (strcmp(name, "xml") == 0)
        return &xml_writer;
    if (strcmp(name, "human_readable") == 0)
        return &human_writer;
    return strcmp(name, "json") == 0 ? &json_writer : NULL;
}

static int
dump_to(const struct dump_args *args, struct meta_source *src, struct tool_output *out,
        struct thin_error *err)
{
    struct textbuf text;
    struct text_writer writer = {.text = &text};
    int r = textbuf_init(&text, tool_output_write, out);

    if (r < 0)
        return thin_fail_code(err, r, "dump");
    r = live_read(src, &args->live, args->form, &writer, err);
    /* What came before the damage is still worth reading. */
    if (r < 0)
        (void)textbuf_flush(&text);
    textbuf_fini(&text);
    return r;
}

static int
dump(const struct tool *tool, const struct dump_args *args, const char *path)
{
    struct meta_source *src = NULL;
    struct tool_output out = {.fd = -1};
    struct thin_error err;
    int r;

    thin_error_init(&err);
    r = tool_open(path, args->live.metadata_snap ? SOURCE_READ_SHARED : SOURCE_READ, &src,
                  &err);
    if (r >= 0)
        r = tool_output_open(&out, args->output, &err);
    if (r >= 0)
        r = tool_output_told(&out, dump_to(args, src, &out, &err), &err);
    if (r >= 0)
        r = tool_output_close(&out, &err);
    tool_close(src);
    tool_progress_end();
    if (is_damage(r) && !args->live.lenient)
        r = thin_wrap(&err, r,
                      "the metadata is damaged (check tells more, --repair dumps "
                      "what can be reached)");
    if (r < 0)
        return tool_fail(tool, r, &err);
    return 0;
}

int
tool_dump(const struct tool *tool, int argc, char **argv)
{
    enum { TRANS = 256 };
    static const struct option longopts[] = {
        {"format", required_argument, NULL, 'f'},
        {"repair", no_argument, NULL, 'r'},
        {"metadata-snap", optional_argument, NULL, 'm'},
        {"dev-id", required_argument, NULL, 'd'},
        {"skip-mappings", no_argument, NULL, 's'},
        {"output", required_argument, NULL, 'o'},
        {"transaction-id", required_argument, NULL, TRANS},
        {"data-block-size", required_argument, NULL, TRANS + 1},
        {"nr-data-blocks", required_argument, NULL, TRANS + 2},
        TOOL_LONG_COMMON,
    };
    struct dump_args args = {.form = &xml_writer};
    const char *path;
    int opt, exit_code;

    while ((opt = getopt_long(argc, argv, "hVrf:m::o:", longopts, NULL)) != -1) {
        if (tool_common_option(tool, opt, &exit_code))
            return exit_code;
        switch (opt) {
        case 'f':
            args.form = optarg ? form_by_name(optarg) : NULL;
            if (!args.form)
                return tool_misused(tool, "unknown format '%s'", optarg ? optarg : "");
            break;
        case 'r':
            args.live.lenient = true;
            break;
        case 'm':
            args.live.metadata_snap = true;
            if (optarg && !tool_number(optarg, &args.live.snap_block))
                return tool_misused(tool, "not a block number: '%s'", optarg);
            break;
        case 'd':
            if (args.live.nr_dev_ids == DEV_IDS_MAX)
                return tool_misused(tool, "more than %u devices", DEV_IDS_MAX);
            if (!tool_number(optarg, &args.dev_ids[args.live.nr_dev_ids++]))
                return tool_misused(tool, "not a device id: '%s'", optarg);
            break;
        case 's':
            args.live.skip_mappings = true;
            break;
        case 'o':
            args.output = optarg;
            break;
        default:
            if (!tool_override(&args.over, opt - TRANS, optarg) ||
                args.over.data_block_size > UINT32_MAX)
                return tool_misused(tool, "not a number: '%s'", optarg);
            break;
        }
    }
    args.live.dev_ids = args.dev_ids;
    args.live.over = &args.over;
    /* The official tool dumps all that is live with --repair, whatever else is said. */
    if (tool->as_official && args.live.lenient) {
        args.live.metadata_snap = args.live.skip_mappings = false;
        args.live.nr_dev_ids = 0;
    }
    exit_code = tool_argument(tool, argc, argv, "No input file provided.", &path);
    if (exit_code)
        return exit_code;
    return dump(tool, &args, path);
}
