/*
 * Snapshots that share subtrees, for make bench: takes a pool with device 0, and for
 * each of NR snapshots makes one (FIRST and on, default 1) and then overwrites RUNS runs of LENGTH
 * blocks at random places of device 0, each run in one leaf or two.
 *
 *     make_image METADATA NR RUNS LENGTH [SEED [FIRST]]
 */
#include <stdio.h>
#include <stdlib.h>

#include "core/base/poll_loop.h"
#include "core/base/random.h"
#include "core/device/device.h"
#include "core/metadata/metadata.h"

#define CACHE_BLOCKS 65536u /* 256 MiB: an image is made without reading twice */
#define ORIGIN       0u

struct maker {
    struct metadata *md;
    struct thin_random rng;
    struct thin_error err;
    uint64_t nr_data;
    vblock_t nr_virtual;
    dblock_t next; /* where free blocks are looked for */
};

/* Where the next free data blocks are, `*ret_nr` of at most `wanted`. */
static int
find_room(struct maker *m, uint64_t wanted, dblock_t *ret_begin, uint64_t *ret_nr)
{
    dblock_t next = m->next;
    int r;

    *ret_nr = 0;
    do {
        m->next = next;
        r = metadata_find_free(m->md, m->next, m->nr_data, wanted, ret_begin, ret_nr,
                               &next, &m->err);
    } while (r == 0 && *ret_nr == 0 && next < m->nr_data);
    if (r == 0 && *ret_nr == 0)
        return thin_fail(&m->err, -THIN_E_NO_DATA_SPACE, "the data device is full");
    return r;
}

static int
map_one(struct maker *m, vblock_t vblock, dblock_t dblock)
{
    uint64_t value;
    int r;

    metadata_op_begin(m->md, TM_NORMAL);
    r = metadata_take_data(m->md, dblock, &m->err);
    if (r == 0)
        r = metadata_insert(m->md, ORIGIN, vblock, dblock, &value, &m->err);
    if (r < 0) {
        metadata_op_undo(m->md);
        return r;
    }
    return metadata_op_end(m->md, &m->err);
}

static int
overwrite(struct maker *m, vblock_t begin, uint64_t len)
{
    while (len > 0) {
        dblock_t b = 0;
        uint64_t nr;
        int r = find_room(m, len, &b, &nr);

        for (uint64_t i = 0; i < nr && r == 0; i++) {
            r = map_one(m, begin + i, b + i);
            if (r == -THIN_E_NEED_COMMIT || r == -THIN_E_CACHE_FULL) {
                r = metadata_commit_wait(m->md, NULL, &m->err);
                if (r == 0)
                    r = map_one(m, begin + i, b + i);
            }
        }
        if (r < 0)
            return r;
        m->next = b + nr;
        begin += nr;
        len -= nr;
    }
    return 0;
}

static int
make_snapshot(struct maker *m, uint32_t id)
{
    int r;

    metadata_op_begin(m->md, TM_NORMAL);
    r = metadata_create_snap(m->md, id, ORIGIN, &m->err);
    if (r < 0) {
        metadata_op_undo(m->md);
        return r;
    }
    return metadata_op_end(m->md, &m->err);
}

static int
make_all(struct maker *m, uint32_t first, uint32_t nr_snapshots, uint32_t nr_runs,
         uint32_t run_len)
{
    bool found = false;
    int r = metadata_load(m->md, &m->err);

    if (r == 0)
        r = metadata_highest_mapped(m->md, ORIGIN, &m->nr_virtual, &found, &m->err);
    if (r == 0 && (!found || m->nr_virtual <= run_len))
        r = thin_fail(&m->err, -THIN_E_INVALID, "device 0 is too small");
    if (r < 0)
        return r;
    m->nr_data = metadata_superblock(m->md)->data_sm.nr_blocks;
    for (uint32_t id = first; id - first < nr_snapshots && r == 0; id++) {
        r = make_snapshot(m, id);
        for (uint32_t i = 0; i < nr_runs && r == 0; i++)
            r = overwrite(m, random_below(&m->rng, m->nr_virtual - run_len), run_len);
        if (r == 0)
            r = metadata_commit_wait(m->md, NULL, &m->err);
    }
    return r;
}

int
main(int argc, char **argv)
{
    struct device_file_params file = {.way = DEVICE_WAY_INLINE};
    struct metadata_params params = {.cache_blocks = CACHE_BLOCKS, .waiting = true};
    struct maker m = {0};
    struct thin_loop *loop = poll_loop_create();
    struct device *dev = NULL;
    int r;

    if (argc < 5 || !loop) {
        fprintf(stderr,
                "usage: make_image METADATA SNAPSHOTS RUNS LENGTH [SEED [FIRST]]\n");
        return 2;
    }
    thin_error_init(&m.err);
    random_seed(&m.rng, argc > 5 ? strtoull(argv[5], NULL, 0) : 1);
    file.path = argv[1];
    r = device_file_open(loop, &file, &dev, &m.err);
    params.dev = dev;
    if (r == 0)
        r = metadata_create(&params, &m.md);
    if (r == 0)
        r = make_all(&m, argc > 6 ? (uint32_t)strtoul(argv[6], NULL, 10) : 1,
                     (uint32_t)strtoul(argv[2], NULL, 10),
                     (uint32_t)strtoul(argv[3], NULL, 10),
                     (uint32_t)strtoul(argv[4], NULL, 10));
    if (r < 0)
        fprintf(stderr, "make_image: %s\n", thin_error_text(&m.err, r));
    metadata_destroy(m.md);
    if (dev)
        device_close_wait(dev);
    poll_loop_destroy(loop);
    return r < 0;
}
