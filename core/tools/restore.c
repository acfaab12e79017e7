/* thinmeta restore, thin_restore: XML to a metadata device. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/offline/build.h"
#include "core/offline/xml_read.h"
#include "core/tools/tool.h"

struct restore_args {
    const char *input, *output;
    struct build_override over;
    bool quiet;
};

static long
pull_file(void *arg, char *buf, size_t room)
{
    const int *fd = arg;

    return tool_input_read(*fd, buf, room);
}

static int
restore(const struct restore_args *args, struct thin_error *err)
{
    AUTO_FD int fd = -1;
    struct meta_source *dst = NULL;
    struct builder b;
    int r;

    fd = strcmp(args->input, "-") == 0 ? dup(STDIN_FILENO)
                                       : open(args->input, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return thin_fail_code(err, -errno, "open %s", args->input);
    r = tool_open(args->output, SOURCE_WRITE, &dst, err);
    if (r < 0)
        return r == -ENOENT
                   ? thin_wrap(err, r,
                               "the output must be a block device or an existing "
                               "file that is large enough")
                   : r;
    r = builder_init(&b, dst, &args->over, err);
    if (r >= 0)
        r = xml_read(pull_file, &fd, &builder_visitor, &b, err);
    builder_fini(&b);
    tool_close(dst);
    tool_progress_end();
    return r < 0 ? thin_wrap(err, r, "restore %s", args->input) : 0;
}

int
tool_restore(const struct tool *tool, int argc, char **argv)
{
    enum { TRANS = 256, BLOCK_SIZE, NR_DATA };
    static const struct option longopts[] = {
        {"input", required_argument, NULL, 'i'},
        {"output", required_argument, NULL, 'o'},
        {"quiet", no_argument, NULL, 'q'},
        {"transaction-id", required_argument, NULL, TRANS},
        {"data-block-size", required_argument, NULL, BLOCK_SIZE},
        {"nr-data-blocks", required_argument, NULL, NR_DATA},
        TOOL_LONG_TAKEOVER,
        TOOL_LONG_COMMON,
    };
    struct restore_args args = {0};
    struct thin_error err;
    int opt, exit_code, r;

    while ((opt = getopt_long(argc, argv, "hVi:o:q", longopts, NULL)) != -1) {
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
        case 'q':
            args.quiet = true;
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
    if (!args.output)
        return tool_misused(tool, "No output file provided.");
    thin_error_init(&err);
    r = restore(&args, &err);
    return r < 0 ? tool_fail(tool, r, &err) : 0;
}
