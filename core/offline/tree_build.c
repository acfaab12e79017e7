#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/offline/build.h"

int
tree_build_init(struct tree_build *t, struct block_out *out, uint32_t value_size)
{
    memset(t, 0, sizeof(*t));
    t->out = out;
    t->value_size = value_size;
    return 0;
}

void
tree_build_fini(struct tree_build *t)
{
    for (unsigned i = 0; i < BUILD_LEVELS_MAX; i++) {
        free(t->levels[i].keys);
        free(t->levels[i].values);
    }
    memset(t, 0, sizeof(*t));
}

static int
start_level(struct tree_build *t, unsigned n)
{
    struct tree_level *level;

    if (n >= BUILD_LEVELS_MAX)
        return thin_fail(t->out->err, -THIN_E_LIMIT, "a tree would be too deep");
    level = &t->levels[n];
    level->value_size = n ? VALUE_SIZE_MAPPING : t->value_size;
    level->max = node_max_entries_for(level->value_size);
    level->nr = 0;
    level->written = false;
    if (!level->keys) {
        level->keys = malloc(2 * (size_t)level->max * 8);
        level->values = malloc(2 * (size_t)level->max * level->value_size);
    }
    if (!level->keys || !level->values)
        return thin_fail_code(t->out->err, -ENOMEM, "build a tree");
    t->nr_levels = n + 1;
    return 0;
}

static int add_to_level(struct tree_build *t, unsigned n, uint64_t key,
                        const void *value);

/* Writes the first `nr` pending entries of a level as a node. */
static int
write_node(struct tree_build *t, unsigned n, uint32_t nr, mblock_t *ret_block)
{
    struct tree_level *level = &t->levels[n];
    uint8_t *bytes = NULL;
    mblock_t b;
    int r = block_out_alloc(t->out, &b);

    if (r >= 0)
        r = block_out_place(t->out, b, &bytes);
    if (r < 0)
        return r;
    node_init(bytes, n == 0, level->max, level->value_size);
    node_set_nr_entries(bytes, nr);
    if (nr) {
        memcpy(bytes + NODE_KEYS, level->keys, 8 * (size_t)nr);
        memcpy(node_value_rw(bytes, 0), level->values, (size_t)nr * level->value_size);
    }
    block_seal(BLOCK_NODE, bytes, b);
    level->written = true;
    *ret_block = b;
    return 0;
}

/* Writes a node and hands it to the level above; what is left moves to the front. */
static int
flush_node(struct tree_build *t, unsigned n, uint32_t nr)
{
    struct tree_level *level = &t->levels[n];
    uint64_t first = load_le64(level->keys);
    uint8_t value[8];
    mblock_t b;
    int r = write_node(t, n, nr, &b);

    if (r < 0)
        return r;
    level->nr -= nr;
    memmove(level->keys, level->keys + 8 * (size_t)nr, 8 * (size_t)level->nr);
    memmove(level->values, level->values + (size_t)nr * level->value_size,
            (size_t)level->nr * level->value_size);
    store_le64(value, b);
    return add_to_level(t, n + 1, first, value);
}

static int
add_to_level(struct tree_build *t, unsigned n, uint64_t key, const void *value)
{
    struct tree_level *level = &t->levels[n];
    int r;

    if (n >= t->nr_levels) {
        r = start_level(t, n);
        if (r < 0)
            return r;
    }
    /* As much is kept back as the last two nodes need to be filled evenly. */
    if (level->nr == 2 * level->max) {
        r = flush_node(t, n, level->max);
        if (r < 0)
            return r;
    }
    store_le64(level->keys + 8 * (size_t)level->nr, key);
    memcpy(level->values + (size_t)level->nr * level->value_size, value,
           level->value_size);
    level->nr++;
    return 0;
}

int
tree_build_add(struct tree_build *t, uint64_t key, const void *value)
{
    return add_to_level(t, 0, key, value);
}

int
tree_build_add_run(struct tree_build *t, uint64_t key, uint64_t value, uint64_t step,
                   uint64_t nr)
{
    struct tree_level *level = &t->levels[0];
    int r = t->nr_levels ? 0 : start_level(t, 0);

    THIN_ASSERT(t->value_size == 8);
    while (nr && r >= 0) {
        uint32_t n = 2 * level->max - level->nr;
        uint8_t *keys = level->keys + 8 * (size_t)level->nr;
        uint8_t *values = level->values + 8 * (size_t)level->nr;

        if (n == 0) {
            r = flush_node(t, 0, level->max);
            continue;
        }
        if (n > nr)
            n = (uint32_t)nr;
        for (uint32_t i = 0; i < n; i++) {
            store_le64(keys + 8 * (size_t)i, key + i);
            store_le64(values + 8 * (size_t)i, value + i * step);
        }
        level->nr += n;
        key += n;
        value += n * step;
        nr -= n;
    }
    return r;
}

int
tree_build_end(struct tree_build *t, mblock_t *ret_root)
{
    int r = 0;

    if (t->nr_levels == 0)
        r = start_level(t, 0);
    for (unsigned n = 0; r >= 0 && n < t->nr_levels; n++) {
        struct tree_level *level = &t->levels[n];
        bool top = n + 1 == t->nr_levels && !level->written;

        if (top && level->nr <= level->max) {
            r = write_node(t, n, level->nr, ret_root);
            break;
        }
        if (level->nr > level->max)
            r = flush_node(t, n, (level->nr + 1) / 2);
        if (r >= 0)
            r = flush_node(t, n, level->nr);
    }
    t->nr_levels = 0;
    return r;
}
