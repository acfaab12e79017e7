/*
 * Lists the volumes of a pool and what each of them maps: an example for libthinmeta.
 *
 *      cc list-volumes.c $(pkg-config --cflags --libs libthinmeta)
 *      ./a.out /dev/mapper/pool_tmeta
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include <thinmeta.h>

struct ids {
    uint64_t *ids;
    size_t nr;
};

static int
print_run(void *arg, const struct thinmeta_run *run)
{
    uint64_t block = *(const uint64_t *)arg;

    printf("    %12" PRIu64 " + %-12" PRIu64 " at %" PRIu64 "\n",
           run->virtual_block * block, run->length * block, run->data_block * block);
    return 0;
}

/* A handle must not be used inside a callback: the ids are kept for later. */
static int
keep_device(void *arg, const struct thinmeta_device *dev)
{
    struct ids *ids = arg;
    uint64_t *more = realloc(ids->ids, (ids->nr + 1) * sizeof(*more));

    if (!more)
        return 1; /* cancels */
    ids->ids = more;
    ids->ids[ids->nr++] = dev->dev_id;
    printf("volume %" PRIu64 ": %" PRIu64 " blocks, %" PRIu64 " of them its own\n",
           dev->dev_id, dev->mapped_blocks, dev->exclusive_blocks);
    return 0;
}

static int
list(struct thinmeta *tm, struct thinmeta_error *err)
{
    struct thinmeta_info info = {.size = sizeof(info)};
    struct ids ids = {NULL, 0};
    int r = thinmeta_get_info(tm, THINMETA_LIVE, &info, err);

    if (r == 0) {
        printf("%" PRIu64 " of %" PRIu64 " data blocks of %" PRIu64 " bytes are used\n",
               info.nr_data_allocated, info.nr_data_blocks, info.data_block_bytes);
        r = thinmeta_list(tm, THINMETA_LIVE, keep_device, &ids, err);
    }
    for (size_t i = 0; i < ids.nr && r == 0; i++) {
        printf("  ranges of volume %" PRIu64 ", in bytes:\n", ids.ids[i]);
        r = thinmeta_map(tm, THINMETA_LIVE, ids.ids[i], print_run, &info.data_block_bytes,
                         err);
    }
    free(ids.ids);
    return r;
}

int
main(int argc, char **argv)
{
    struct thinmeta_error err = {0};
    struct thinmeta *tm;
    int r;

    if (argc != 2) {
        fprintf(stderr, "usage: %s METADATA\n", argv[0]);
        return 2;
    }
    r = thinmeta_open(argv[1], 0, &tm, &err);
    if (r == 0) {
        r = list(tm, &err);
        thinmeta_close(tm);
    }
    if (r < 0) {
        fprintf(stderr, "%s: %s\n", argv[0],
                err.text[0] ? err.text : thinmeta_strerror(r));
        return 1;
    }
    return 0;
}
