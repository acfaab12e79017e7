/* thinmeta pack and unpack. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <sys/stat.h>
#include <unistd.h>

#include "core/base/cleanup.h"
#include "core/offline/pack.h"
#include "core/tools/tool.h"

static int
write_fd(void *arg, const void *bytes, size_t len)
{
    return tool_output_write(arg, bytes, len);
}

static long
read_fd(void *arg, void *buf, size_t room)
{
    const int *fd = arg;

    return tool_input_read(*fd, buf, room);
}

static int
pack(const char *input, const char *output, struct thin_error *err)
{
    struct meta_source *src = NULL;
    struct tool_output out = {.fd = -1};
    uint64_t nr;
    int r = tool_open(input, SOURCE_READ, &src, err);

    if (r >= 0)
        r = tool_output_open(&out, output, err);
    if (r >= 0)
        r = tool_output_told(&out, pack_device(src, write_fd, &out, &nr, err), err);
    if (r >= 0)
        r = tool_output_close(&out, err);
    tool_close(src);
    tool_progress_end();
    return r < 0 ? thin_wrap(err, r, "pack %s", input) : 0;
}

/* A missing output becomes a file of the right size. */
static int
make_output(int fd, const char *output, struct thin_error *err)
{
    uint8_t header[PACK_HEADER_BYTES];
    AUTO_FD int made = -1;
    uint64_t nr_blocks;
    ssize_t n;
    int r;

    if (access(output, F_OK) == 0)
        return 0;
    n = pread(fd, header, sizeof(header), 0);
    if (n < 0 && errno == ESPIPE)
        return thin_fail(err, -ENOENT, "%s must exist when the pack comes through a pipe",
                         output);
    if (n != (ssize_t)sizeof(header))
        return thin_fail(err, -THIN_E_INVALID, "this is no packed metadata");
    r = pack_judge_header(header, &nr_blocks, err);
    if (r < 0)
        return r;
    made = open(output, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (made < 0)
        return thin_fail_code(err, -errno, "create %s", output);
    if (ftruncate(made, (off_t)(nr_blocks * METADATA_BLOCK_SIZE)) < 0) {
        r = thin_fail_code(err, -errno, "create %s", output);
        unlink(output);
    }
    return r;
}

/* What can be read twice is: if something is wrong with it, the output stays as it is. */
static int
rehearse(int fd, struct thin_error *err)
{
    struct stat st;
    int r;

    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode))
        return 0;
    r = unpack_device(read_fd, &fd, NULL, err);
    if (r >= 0 && lseek(fd, 0, SEEK_SET) < 0)
        r = thin_fail_code(err, -errno, "read the pack again");
    return r;
}

static int
unpack(const char *input, const char *output, struct thin_error *err)
{
    struct meta_source *dst = NULL;
    AUTO_FD int fd = open(input, O_RDONLY | O_CLOEXEC);
    int r;

    if (fd < 0)
        return thin_fail_code(err, -errno, "open %s", input);
    r = rehearse(fd, err);
    if (r >= 0)
        r = make_output(fd, output, err);
    if (r >= 0)
        r = tool_open(output, SOURCE_WRITE, &dst, err);
    if (r >= 0)
        r = unpack_device(read_fd, &fd, dst, err);
    tool_close(dst);
    tool_progress_end();
    return r < 0 ? thin_wrap(err, r, "unpack %s", input) : 0;
}

static int
run(const struct tool *tool, int argc, char **argv,
    int (*work)(const char *, const char *, struct thin_error *))
{
    static const struct option longopts[] = {
        {"input", required_argument, NULL, 'i'},
        {"output", required_argument, NULL, 'o'},
        TOOL_LONG_TAKEOVER,
        TOOL_LONG_COMMON,
    };
    const char *input = NULL, *output = NULL;
    struct thin_error err;
    int opt, exit_code, r;

    while ((opt = getopt_long(argc, argv, "hVi:o:", longopts, NULL)) != -1) {
        if (tool_common_option(tool, opt, &exit_code))
            return exit_code;
        if (opt == 0)
            continue;
        *(opt == 'i' ? &input : &output) = optarg;
    }
    if (optind != argc)
        return tool_misused(tool, "unexpected argument '%s'", argv[optind]);
    if (!input)
        return tool_misused(tool, "No input file provided.");
    if (!output)
        return tool_misused(tool, "No output file provided.");
    thin_error_init(&err);
    r = work(input, output, &err);
    return r < 0 ? tool_fail(tool, r, &err) : 0;
}

int
tool_pack(const struct tool *tool, int argc, char **argv)
{
    return run(tool, argc, argv, pack);
}

int
tool_unpack(const struct tool *tool, int argc, char **argv)
{
    return run(tool, argc, argv, unpack);
}
