/* thinmeta format: an empty pool's metadata. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/offline/build.h"
#include "core/offline/size.h"
#include "core/tools/tool.h"

#define FORMAT_BYTES_MIN (2u << 20) /* of a metadata file that is made */
#define FORMAT_THINS     1000u      /* volumes that such a file has room for */

struct format_args {
    const char *path;
    uint64_t block_size, metadata_size, data_size; /* bytes */
    bool force;
};

/* Makes the file, with every byte in its place. */
static int
make_file(const struct format_args *args, struct thin_error *err)
{
    AUTO_FD int fd = -1;
    uint64_t size = args->metadata_size;
    int r;

    if (!size) {
        size = SECTOR_SIZE * metadata_size_sectors(args->block_size / SECTOR_SIZE,
                                                   args->data_size / SECTOR_SIZE,
                                                   FORMAT_THINS);
        size = max_u64(round_up_u64(size, FORMAT_BYTES_MIN), FORMAT_BYTES_MIN);
    }
    fd = open(args->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return thin_fail_code(err, -errno, "create %s", args->path);
    r = -posix_fallocate(fd, 0, (off_t)size);
    if (r < 0) {
        unlink(args->path);
        return thin_fail_code(err, r, "create %s of %" PRIu64 " bytes", args->path, size);
    }
    return 0;
}

/* A device that holds something is formatted only when that is said twice. */
static int
judge_old(struct meta_source *dst, const struct format_args *args, struct thin_error *err)
{
    AUTO_FREE uint8_t *block = malloc(METADATA_BLOCK_SIZE);
    int r;

    if (args->force)
        return 0;
    if (!block)
        return thin_fail_code(err, -ENOMEM, "format");
    r = source_read(dst, SUPERBLOCK_LOCATION, block, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < METADATA_BLOCK_SIZE; i++)
        if (block[i])
            return thin_fail(err, -THIN_E_SIGNATURE,
                             "%s is not empty (%s); --force formats it all the same",
                             args->path,
                             superblock_is_thin(block) ? "it holds thin metadata"
                                                       : "block 0 is not all zeros");
    return 0;
}

static int
format(const struct format_args *args, struct thin_error *err)
{
    struct ir_superblock ir = {.version = SUPERBLOCK_VERSION,
                               .data_block_size =
                                   (uint32_t)(args->block_size / SECTOR_SIZE),
                               .nr_data_blocks = args->data_size / args->block_size};
    struct meta_source *dst = NULL;
    struct builder b;
    int r = 0;

    if (access(args->path, F_OK) < 0)
        r = make_file(args, err);
    if (r >= 0)
        r = tool_open(args->path, SOURCE_WRITE, &dst, err);
    if (r >= 0)
        r = judge_old(dst, args, err);
    if (r < 0) {
        tool_close(dst);
        return r;
    }
    r = builder_init(&b, dst, NULL, err);
    b.keep_trailer = true; /* a new pool has no catalogue yet: zeros */
    if (r >= 0)
        r = builder_visitor.superblock(&b, &ir);
    if (r >= 0)
        r = builder_visitor.end(&b);
    builder_fini(&b);
    tool_close(dst);
    tool_progress_end();
    return r < 0 ? thin_wrap(err, r, "format %s", args->path) : 0;
}

int
tool_format(const struct tool *tool, int argc, char **argv)
{
    enum { BLOCK_SIZE = 256, METADATA_SIZE, DATA_SIZE, FORCE };
    static const struct option longopts[] = {
        {"data-block-size", required_argument, NULL, BLOCK_SIZE},
        {"metadata-size", required_argument, NULL, METADATA_SIZE},
        {"data-size", required_argument, NULL, DATA_SIZE},
        {"force", no_argument, NULL, FORCE},
        TOOL_LONG_TAKEOVER,
        TOOL_LONG_COMMON,
    };
    struct format_args args = {.block_size = 64u << 10};
    struct thin_error err;
    bool good = true;
    int opt, exit_code, r;

    while ((opt = getopt_long(argc, argv, "hV", longopts, NULL)) != -1) {
        if (tool_common_option(tool, opt, &exit_code))
            return exit_code;
        if (opt == 0)
            continue;
        if (opt == BLOCK_SIZE)
            good = tool_size(optarg, &args.block_size);
        else if (opt == METADATA_SIZE)
            good = tool_size(optarg, &args.metadata_size);
        else if (opt == DATA_SIZE)
            good = tool_size(optarg, &args.data_size);
        else
            args.force = true;
        if (!good)
            return tool_misused(tool, "not a size (as 512, 64k, 10G): '%s'", optarg);
    }
    exit_code =
        tool_argument(tool, argc, argv, "No metadata device provided.", &args.path);
    if (exit_code)
        return exit_code;
    if (!args.data_size)
        return tool_misused(tool, "--data-size is needed");
    if (args.block_size % (DATA_BLOCK_SECTORS_MIN * SECTOR_SIZE) ||
        args.block_size < DATA_BLOCK_SECTORS_MIN * SECTOR_SIZE ||
        args.block_size > (uint64_t)DATA_BLOCK_SECTORS_MAX * SECTOR_SIZE)
        return tool_misused(tool, "a data block is a multiple of 64k, up to 1G");
    thin_error_init(&err);
    r = format(&args, &err);
    return r < 0 ? tool_fail(tool, r, &err) : 0;
}
