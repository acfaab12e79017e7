#include "core/offline/delta.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/cleanup.h"
#include "core/ondisk/mapping.h"
#include "core/ondisk/node.h"

/* The three streams: leaves of one tree only, and those of both. */
enum { LEFT, RIGHT, BOTH, NR_STREAMS };

struct stream {
    struct leaf_list list;
    struct leaf_cursor cursor;
    const uint8_t *data;
    uint32_t i, nr;
    bool ended;
    uint64_t key;
    dblock_t block;
};

struct delta {
    struct tree_shape tree;
    struct stream streams[NR_STREAMS];
    struct delta_run open; /* len 0: none */
    bool differences_only;
    delta_run_fn *run;
    void *arg;
    struct thin_error *err;
};

const char *
delta_kind_name(enum delta_kind kind)
{
    static const char *const names[] = {"same", "left_only", "right_only", "different"};

    return names[kind];
}

/* ---- streams --------------------------------------------------------------------- */

static int
stream_next(struct delta *d, struct stream *s)
{
    while (!s->ended && s->i == s->nr) {
        const struct leaf_ref *ref;
        int r = leaf_cursor_next(&s->cursor, &ref, &s->data, d->err);

        if (r < 0)
            return r;
        s->ended = !s->data;
        s->i = 0;
        s->nr = s->data ? node_nr_entries(s->data) : 0;
    }
    if (s->ended)
        return 0;
    s->key = node_key(s->data, s->i);
    s->block = mapping_block(node_value64(s->data, s->i));
    s->i++;
    return 0;
}

static bool
marked(const uint8_t *bits, mblock_t b)
{
    return bits[b / 8] >> (b % 8) & 1u;
}

/* Drops the leaves of `list` that are marked; appends them to `common` if given. */
static int
drop_marked(struct leaf_list *list, const uint8_t *bits, mblock_t nr_blocks,
            struct leaf_list *common)
{
    size_t kept = 0;

    for (size_t i = 0; i < list->nr; i++) {
        const struct leaf_ref ref = list->refs[i];

        if (ref.block >= nr_blocks || !marked(bits, ref.block))
            list->refs[kept++] = ref;
        else if (common)
            common->refs[common->nr++] = ref;
    }
    list->nr = kept;
    return 0;
}

/*
 * Takes what both trees hold out of their lists. Its entries stand on both sides with
 * the same value, so the rest can be compared without them.
 */
static int
part_lists(struct delta *d)
{
    struct leaf_list *left = &d->streams[LEFT].list, *right = &d->streams[RIGHT].list;
    struct leaf_list *both = &d->streams[BOTH].list;
    mblock_t nr_blocks = d->tree.nr_blocks;
    AUTO_FREE uint8_t *in_left = calloc(nr_blocks / 8 + 1, 1);
    AUTO_FREE uint8_t *in_both = calloc(nr_blocks / 8 + 1, 1);

    leaf_list_fini(both);
    both->refs = malloc((left->nr + 1) * sizeof(*both->refs));
    if (!in_left || !in_both || !both->refs)
        return thin_fail_code(d->err, -ENOMEM, "compare devices");
    both->room = left->nr + 1;
    for (size_t i = 0; i < left->nr; i++)
        if (left->refs[i].block < nr_blocks)
            in_left[left->refs[i].block / 8] |=
                (uint8_t)(1u << (left->refs[i].block % 8));
    for (size_t i = 0; i < right->nr; i++)
        if (right->refs[i].block < nr_blocks && marked(in_left, right->refs[i].block))
            in_both[right->refs[i].block / 8] |=
                (uint8_t)(1u << (right->refs[i].block % 8));
    (void)drop_marked(left, in_both, nr_blocks, both);
    return drop_marked(right, in_both, nr_blocks, NULL);
}

/*
 * The leaves that only one of the trees has, without ever entering what both have: level
 * by level from the roots, the taller tree first.
 */
static int
list_differing(struct delta *d, mblock_t left_root, mblock_t right_root)
{
    struct leaf_list *lists[] = {&d->streams[LEFT].list, &d->streams[RIGHT].list};
    const struct leaf_ref roots[] = {{.block = left_root, .last = UINT64_MAX},
                                     {.block = right_root, .last = UINT64_MAX}};
    unsigned height[2];
    int r = 0;

    for (unsigned i = 0; i < 2 && r >= 0; i++) {
        r = leaves_height(&d->tree, roots[i].block, &height[i], d->err);
        if (r >= 0 && leaf_list_add(lists[i], &roots[i]) < 0)
            r = thin_fail_code(d->err, -ENOMEM, "compare devices");
    }
    while (r >= 0) {
        unsigned most = height[0] > height[1] ? height[0] : height[1];

        if (height[0] == height[1])
            r = part_lists(d);
        if (most == 0)
            break;
        for (unsigned i = 0; i < 2 && r >= 0; i++)
            if (height[i] == most) {
                r = leaves_descend(&d->tree, lists[i], d->err);
                height[i]--;
            }
    }
    return r;
}

static int
list_all(struct delta *d, const struct live_device *left, const struct live_device *right)
{
    int r = leaves_list(&d->tree, left->root, &d->streams[LEFT].list, d->err);

    if (r < 0)
        return thin_wrap(d->err, r, "device %" PRIu64, left->dev_id);
    r = leaves_list(&d->tree, right->root, &d->streams[RIGHT].list, d->err);
    if (r < 0)
        return thin_wrap(d->err, r, "device %" PRIu64, right->dev_id);
    return part_lists(d);
}

/* ---- runs ------------------------------------------------------------------------- */

static int
end_run(struct delta *d)
{
    bool tell = d->open.len && !(d->differences_only && d->open.kind == DELTA_SAME);
    int r = tell ? d->run(d->arg, &d->open) : 0;

    d->open.len = 0;
    return r;
}

static int
add(struct delta *d, enum delta_kind kind, vblock_t key, dblock_t left, dblock_t right)
{
    struct delta_run *o = &d->open;
    int r;

    if (o->len && o->kind == kind && key == o->begin + o->len &&
        (kind == DELTA_RIGHT_ONLY || left == o->left + o->len) &&
        (kind == DELTA_LEFT_ONLY || right == o->right + o->len)) {
        o->len++;
        return 0;
    }
    r = end_run(d);
    *o = (struct delta_run){kind, key, 1, left, right};
    return r;
}

/* Takes what the shared leaf holds below `limit`, where neither tree has a leaf of its
   own: most of two near devices. */
static int
take_shared(struct delta *d, uint64_t limit)
{
    struct stream *b = &d->streams[BOTH];
    struct delta_run *o = &d->open;
    const uint8_t *keys = b->data + NODE_KEYS;
    const uint8_t *values = node_value(b->data, 0);
    int r = add(d, DELTA_SAME, b->key, b->block, b->block);

    while (r >= 0 && b->i < b->nr) {
        uint64_t key = load_le64(keys + 8 * (size_t)b->i);
        dblock_t block = mapping_block(load_le64(values + 8 * (size_t)b->i));

        if (key >= limit)
            break;
        if (key - o->begin == o->len && block - o->left == o->len) {
            o->len++;
        } else {
            r = end_run(d);
            *o = (struct delta_run){DELTA_SAME, key, 1, block, block};
        }
        b->i++;
    }
    return r < 0 ? r : stream_next(d, b);
}

/* Takes the least key of the three streams. */
static int
step(struct delta *d)
{
    struct stream *l = &d->streams[LEFT], *r = &d->streams[RIGHT];
    struct stream *b = &d->streams[BOTH];
    uint64_t least = UINT64_MAX;
    int rc;

    for (unsigned i = 0; i < NR_STREAMS; i++)
        if (!d->streams[i].ended && d->streams[i].key < least)
            least = d->streams[i].key;
    if (!b->ended && b->key == least) {
        uint64_t limit = l->ended ? UINT64_MAX : l->key;

        return take_shared(d, !r->ended && r->key < limit ? r->key : limit);
    }
    if (!l->ended && !r->ended && l->key == r->key) {
        rc = add(d, l->block == r->block ? DELTA_SAME : DELTA_DIFFERENT, least, l->block,
                 r->block);
        if (rc >= 0)
            rc = stream_next(d, l);
        return rc < 0 ? rc : stream_next(d, r);
    }
    if (!l->ended && l->key == least) {
        rc = add(d, DELTA_LEFT_ONLY, least, l->block, 0);
        return rc < 0 ? rc : stream_next(d, l);
    }
    rc = add(d, DELTA_RIGHT_ONLY, least, 0, r->block);
    return rc < 0 ? rc : stream_next(d, r);
}

static int
merge(struct delta *d)
{
    int r = 0;

    if (d->differences_only)
        d->streams[BOTH].list.nr = 0;
    for (unsigned i = 0; i < NR_STREAMS && r >= 0; i++)
        r = leaf_cursor_init(&d->streams[i].cursor, &d->tree, &d->streams[i].list,
                             d->err);
    for (unsigned i = 0; i < NR_STREAMS && r >= 0; i++)
        r = stream_next(d, &d->streams[i]);
    while (r >= 0 &&
           !(d->streams[LEFT].ended && d->streams[RIGHT].ended && d->streams[BOTH].ended))
        r = step(d);
    return r < 0 ? r : end_run(d);
}

int
delta_devices(struct live_pool *pool, const struct live_device *left,
              const struct live_device *right, bool differences_only, delta_run_fn *run,
              void *arg, struct thin_error *err)
{
    struct delta *d = calloc(1, sizeof(*d));
    int r;

    if (!d)
        return thin_fail_code(err, -ENOMEM, "compare devices");
    d->tree = live_mapping_tree(pool, false);
    d->differences_only = differences_only;
    d->run = run;
    d->arg = arg;
    d->err = err;
    r = differences_only ? list_differing(d, left->root, right->root)
                         : list_all(d, left, right);
    if (r >= 0)
        r = merge(d);
    for (unsigned i = 0; i < NR_STREAMS; i++) {
        leaf_cursor_fini(&d->streams[i].cursor);
        leaf_list_fini(&d->streams[i].list);
    }
    free(d);
    return r;
}
