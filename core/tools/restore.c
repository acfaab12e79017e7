/* thinmeta restore, thin_restore: XML to a metadata device. */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
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
build(const struct restore_args *args, int fd, struct meta_source *dst, bool rehearsal,
      struct thin_error *err)
{
    struct builder b;
    int r = builder_init(&b, dst, &args->over, err);

    if (rehearsal)
        builder_rehearse(&b);
    if (r >= 0)
        r = xml_read(pull_file, &fd, &builder_visitor, &b, err);
    builder_fini(&b);
    return r;
}

/* What can be read twice is: if something is wrong with it, the output keeps what it has. */
static int
rehearse(const struct restore_args *args, int fd, struct meta_source *dst,
         struct thin_error *err)
{
    off_t at = lseek(fd, 0, SEEK_CUR);
    struct stat st;
    int r;

    if (at < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return 0;
    r = build(args, fd, dst, true, err);
    if (r >= 0 && lseek(fd, at, SEEK_SET) < 0)
        r = thin_fail_code(err, -errno, "read the XML again");
    return r;
}

static int
restore(const struct restore_args *args, struct thin_error *err)
{
    AUTO_FD int fd = -1;
    struct meta_source *dst = NULL;
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
    r = rehearse(args, fd, dst, err);
    if (r >= 0)
        r = build(args, fd, dst, false, err);
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
