/* The public face (thinmeta.h) over the functions that the verbs use as well. */
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/offline/api_private.h"
#include "core/offline/build.h"
#include "core/offline/check.h"
#include "core/offline/delta.h"
#include "core/offline/live.h"
#include "core/offline/mend.h"
#include "core/offline/owner.h"
#include "core/offline/shares.h"
#include "core/offline/size.h"
#include "core/offline/text_write.h"
#include "core/offline/xml_read.h"

_Static_assert(sizeof(struct thinmeta_error) == sizeof(struct thin_error) &&
                   offsetof(struct thinmeta_error, text) ==
                       offsetof(struct thin_error, text),
               "the public error is ours under another name");
_Static_assert(THINMETA_E_CHECKSUM == -THIN_E_CHECKSUM &&
                   THINMETA_E_BAD_BLOCK == -THIN_E_BAD_BLOCK &&
                   THINMETA_E_NOT_THIN == -THIN_E_NOT_THIN &&
                   THINMETA_E_VERSION == -THIN_E_VERSION &&
                   THINMETA_E_NO_METADATA_SPACE == -THIN_E_NO_METADATA_SPACE &&
                   THINMETA_E_READ_ONLY == -THIN_E_READ_ONLY &&
                   THINMETA_E_NOT_FOUND == -THIN_E_NOT_FOUND &&
                   THINMETA_E_BUSY == -THIN_E_BUSY &&
                   THINMETA_E_INVALID == -THIN_E_INVALID &&
                   THINMETA_E_UNSUPPORTED == -THIN_E_UNSUPPORTED &&
                   THINMETA_E_CANCELLED == -THIN_E_CANCELLED,
               "the public codes are the table's");

const char *
thinmeta_version(void)
{
    return THIN_VERSION;
}

const char *
thinmeta_strerror(int code)
{
    return thin_strerror(code);
}

/* ---- handles ------------------------------------------------------------------------- */

int
thinmeta_open(const char *path, unsigned flags, struct thinmeta **ret,
              struct thinmeta_error *err)
{
    struct thinmeta *tm = calloc(1, sizeof(*tm));
    int r;

    if (!tm)
        return thin_fail_code(api_words(err), -ENOMEM, "open %s", path);
    r = source_open_path(path,
                         flags & THINMETA_WRITE    ? SOURCE_WRITE
                         : flags & THINMETA_SHARED ? SOURCE_READ_SHARED
                                                   : SOURCE_READ,
                         &tm->src, api_words(err));
    if (r == 0 && flags & THINMETA_WRITE) {
        r = owner_judge(tm->src, flags & THINMETA_TAKEOVER, api_words(err));
        if (r < 0)
            source_close(tm->src);
    }
    if (r < 0) {
        free(tm);
        return r;
    }
    *ret = tm;
    return 0;
}

static int
io_read(void *arg, uint64_t offset, void *buf, size_t len)
{
    struct thinmeta *tm = arg;

    return api_said(tm->io.read(tm->io.arg, offset, buf, len));
}

static int
io_write(void *arg, uint64_t offset, const void *buf, size_t len)
{
    struct thinmeta *tm = arg;

    return api_said(tm->io.write(tm->io.arg, offset, buf, len));
}

static int
io_flush(void *arg)
{
    struct thinmeta *tm = arg;

    return tm->io.flush ? api_said(tm->io.flush(tm->io.arg)) : 0;
}

static const struct source_ops io_ops = {
    .read = io_read,
    .write = io_write,
    .flush = io_flush,
};

int
thinmeta_open_io(const struct thinmeta_io *io, struct thinmeta **ret,
                 struct thinmeta_error *err)
{
    struct thinmeta *tm;
    int r;

    if (io->size < sizeof(*io) || !io->read || io->device_bytes < METADATA_BLOCK_SIZE)
        return thin_fail(api_words(err), -THIN_E_INVALID,
                         "struct thinmeta_io is not filled as it must be");
    tm = calloc(1, sizeof(*tm));
    if (!tm)
        return thin_fail_code(api_words(err), -ENOMEM, "open");
    memcpy(&tm->io, io, sizeof(tm->io));
    r = source_open_ops(&io_ops, tm, io->device_bytes, io->write != NULL, &tm->src);
    if (r < 0) {
        free(tm);
        return thin_fail_code(api_words(err), r, "open");
    }
    *ret = tm;
    return 0;
}

void
thinmeta_close(struct thinmeta *tm)
{
    if (!tm)
        return;
    source_close(tm->src);
    free(tm);
}

void
thinmeta_set_progress(struct thinmeta *tm, thinmeta_progress_fn *fn, void *arg)
{
    tm->src->progress.tick = fn;
    tm->src->progress.arg = arg;
}

/* ---- reading -------------------------------------------------------------------------- */

static int
open_pool(struct thinmeta *tm, unsigned where, struct live_pool *ret,
          struct thin_error *err)
{
    struct live_options opts = {.metadata_snap = where == THINMETA_SNAP};

    return live_open(tm->src, &opts, ret, err);
}

int
thinmeta_get_info(struct thinmeta *tm, unsigned where, struct thinmeta_info *ret,
                  struct thinmeta_error *err)
{
    struct thinmeta_info info = {.size = ret->size};
    struct live_pool pool;
    int r = open_pool(tm, where, &pool, api_words(err));

    if (r < 0)
        return r;
    info.transaction_id = pool.sb.trans_id;
    info.time = pool.sb.time;
    info.data_block_bytes = (uint64_t)pool.sb.data_block_size * SECTOR_SIZE;
    info.nr_data_blocks = pool.sb.data_sm.nr_blocks;
    info.nr_data_allocated = pool.sb.data_sm.nr_allocated;
    info.nr_metadata_blocks = pool.sb.metadata_sm.nr_blocks;
    info.nr_metadata_allocated = pool.sb.metadata_sm.nr_allocated;
    info.held_root = pool.sb.held_root;
    info.needs_check = pool.sb.flags & SUPERBLOCK_NEEDS_CHECK ? 1 : 0;
    memcpy(ret, &info, min_u64(ret->size, sizeof(info)));
    live_close(&pool);
    return 0;
}

static int
list_pool(struct live_pool *pool, thinmeta_device_fn *fn, void *arg,
          struct thin_error *err)
{
    AUTO_FREE struct device_shares *shares =
        calloc(pool->nr_devices + 1, sizeof(*shares));
    int r = shares ? shares_count(pool, shares, err)
                   : thin_fail_code(err, -ENOMEM, "list devices");

    for (size_t i = 0; i < pool->nr_devices && r >= 0; i++) {
        const struct live_device *dev = &pool->devices[i];
        struct thinmeta_device out = {
            .size = sizeof(out),
            .dev_id = dev->dev_id,
            .mapped_blocks = dev->details.mapped_blocks,
            .exclusive_blocks = shares[i].exclusive,
            .transaction_id = dev->details.transaction_id,
            .creation_time = dev->details.creation_time,
            .snapshotted_time = dev->details.snapshotted_time,
            .any_mapped = shares[i].any,
            .highest_block = shares[i].highest,
        };

        r = api_said(fn(arg, &out));
    }
    return r;
}

int
thinmeta_list(struct thinmeta *tm, unsigned where, thinmeta_device_fn *fn, void *arg,
              struct thinmeta_error *err)
{
    struct live_pool pool;
    int r = open_pool(tm, where, &pool, api_words(err));

    if (r < 0)
        return r;
    r = list_pool(&pool, fn, arg, (struct thin_error *)(void *)err);
    live_close(&pool);
    return r;
}

/* A visitor that only hands runs on. */
struct mapper {
    thinmeta_run_fn *fn;
    void *arg;
};

static int
map_superblock(void *arg, const struct ir_superblock *sb)
{
    (void)arg;
    (void)sb;
    return 0;
}

static int
map_device(void *arg, const struct ir_device *dev)
{
    (void)arg;
    (void)dev;
    return 0;
}

static int
map_run(void *arg, const struct ir_run *run)
{
    struct mapper *m = arg;
    struct thinmeta_run out = {run->virt, run->data, run->len, run->time};

    return api_said(m->fn(m->arg, &out));
}

static int
map_end(void *arg)
{
    (void)arg;
    return 0;
}

static const struct ir_visitor map_visitor = {
    .superblock = map_superblock,
    .device_begin = map_device,
    .run = map_run,
    .device_end = map_end,
    .end = map_end,
};

int
thinmeta_map(struct thinmeta *tm, unsigned where, uint64_t dev_id, thinmeta_run_fn *fn,
             void *arg, struct thinmeta_error *err)
{
    struct live_options opts = {
        .metadata_snap = where == THINMETA_SNAP, .dev_ids = &dev_id, .nr_dev_ids = 1};
    struct mapper m = {fn, arg};
    struct live_pool pool;
    bool found;
    int r = open_pool(tm, where, &pool, api_words(err));

    if (r < 0)
        return r;
    found = live_find(&pool, dev_id);
    live_close(&pool);
    if (!found)
        return thin_fail(api_words(err), -THIN_E_NOT_FOUND, "there is no device %llu",
                         (unsigned long long)dev_id);
    return live_read(tm->src, &opts, &map_visitor, &m, api_words(err));
}

struct delta_caller {
    thinmeta_delta_fn *fn;
    void *arg;
};

static int
delta_run(void *arg, const struct delta_run *run)
{
    struct delta_caller *c = arg;
    struct thinmeta_delta_run out = {(int)run->kind, run->begin, run->len, run->left,
                                     run->right};

    return api_said(c->fn(c->arg, &out));
}

int
thinmeta_delta(struct thinmeta *tm, unsigned where, uint64_t left, uint64_t right,
               int differences_only, thinmeta_delta_fn *fn, void *arg,
               struct thinmeta_error *err)
{
    struct delta_caller c = {fn, arg};
    const struct live_device *l, *r_dev;
    struct live_pool pool;
    int r = open_pool(tm, where, &pool, api_words(err));

    if (r < 0)
        return r;
    l = live_find(&pool, left);
    r_dev = live_find(&pool, right);
    if (l && r_dev)
        r = delta_devices(&pool, l, r_dev, differences_only, delta_run, &c,
                          api_words(err));
    else
        r = thin_fail(api_words(err), -THIN_E_NOT_FOUND, "there is no device %llu",
                      (unsigned long long)(l ? right : left));
    live_close(&pool);
    return r;
}

struct write_caller {
    thinmeta_write_fn *fn;
    void *arg;
};

static int
write_bytes(void *arg, const char *bytes, size_t len)
{
    struct write_caller *c = arg;

    return api_said(c->fn(c->arg, bytes, len));
}

int
thinmeta_dump(struct thinmeta *tm, const struct thinmeta_dump_options *opts,
              thinmeta_write_fn *fn, void *arg, struct thinmeta_error *err)
{
    static const struct ir_visitor *const forms[] = {&xml_writer, &human_writer,
                                                     &json_writer};
    struct thinmeta_dump_options o = {.size = sizeof(o)};
    struct write_caller c = {fn, arg};
    struct live_options live;
    struct textbuf text;
    struct text_writer writer = {.text = &text};
    int r;

    if (opts)
        memcpy(&o, opts, min_u64(opts->size, sizeof(o)));
    if (o.format < THINMETA_XML || o.format > THINMETA_JSON)
        return thin_fail(api_words(err), -THIN_E_INVALID, "unknown format %d", o.format);
    live = (struct live_options){.metadata_snap = o.where == THINMETA_SNAP,
                                 .skip_mappings = o.skip_mappings,
                                 .lenient = o.lenient,
                                 .dev_ids = &o.dev_id,
                                 .nr_dev_ids = o.only_dev ? 1 : 0};
    r = textbuf_init(&text, write_bytes, &c);
    if (r < 0)
        return thin_fail_code(api_words(err), r, "dump");
    r = live_read(tm->src, &live, forms[o.format], &writer, api_words(err));
    textbuf_fini(&text);
    return r;
}

/* ---- checking ---------------------------------------------------------------------------- */

static int
tell(const struct thinmeta_check_options *o, const struct report *rep)
{
    int r = 0;

    for (size_t i = 0; i < rep->nr && r >= 0 && o->finding; i++) {
        const struct finding *f = &rep->findings[i];
        struct thinmeta_finding out = {(int)f->class, report_place_name(f->place),
                                       f->block, f->text};

        r = api_said(o->finding(o->arg, &out));
    }
    for (size_t i = 0; i < rep->nr_affected && r >= 0 && o->affected; i++) {
        const struct affected *a = &rep->affected[i];
        struct thinmeta_affected out = {a->dev_id, a->begin, a->last, a->held, a->block};

        r = api_said(o->affected(o->arg, &out));
    }
    return r;
}

static int
mend(struct thinmeta *tm, const struct thinmeta_check_options *o,
     const struct report *rep, const struct check_result *res, int *ret_mended,
     struct thin_error *err)
{
    bool odd = rep->nr_class[REPORT_DAMAGE] || rep->nr_class[REPORT_LEAK] ||
               rep->nr_class[REPORT_NOTE];
    int r = 0;

    if (o->auto_repair && odd && res->trees_known) {
        r = mend_counts(tm->src, rep, res, err);
        *ret_mended = r == 0;
    }
    if (r >= 0 && o->clear_needs_check && res->needs_check &&
        (*ret_mended || !rep->nr_class[REPORT_DAMAGE]))
        r = mend_clear_needs_check(tm->src, err);
    return r;
}

int
thinmeta_check(struct thinmeta *tm, const struct thinmeta_check_options *opts,
               struct thinmeta_check_result *ret, struct thinmeta_error *err)
{
    struct thinmeta_check_options o = {.size = sizeof(o)};
    struct thinmeta_check_result out = {.size = ret->size};
    struct check_options check_opts;
    struct check_result res;
    struct report rep;
    int r;

    if (opts)
        memcpy(&o, opts, min_u64(opts->size, sizeof(o)));
    check_opts = (struct check_options){.super_block_only = o.super_block_only,
                                        .skip_mappings = o.skip_mappings,
                                        .ignore_non_fatal = o.ignore_non_fatal,
                                        .metadata_snap = o.where == THINMETA_SNAP};
    if ((o.auto_repair || o.clear_needs_check) &&
        (o.super_block_only || o.skip_mappings || o.where == THINMETA_SNAP))
        return thin_fail(api_words(err), -THIN_E_INVALID,
                         "only a full check may change anything");
    report_init(&rep);
    r = check_run(tm->src, &check_opts, &rep, &res, api_words(err));
    if (r >= 0)
        r = tell(&o, &rep);
    if (r >= 0)
        r = mend(tm, &o, &rep, &res, &out.mended, api_words(err));
    out.nr_damage = rep.nr_class[REPORT_DAMAGE];
    out.nr_notes = rep.nr_class[REPORT_NOTE];
    out.leaked_metadata_blocks = res.leaked_metadata;
    out.leaked_data_blocks = res.leaked_data;
    out.nr_devices = res.nr_devices;
    out.nr_mappings = res.nr_mappings;
    out.metadata_blocks = res.metadata_blocks;
    out.metadata_used = res.metadata_used;
    out.data_blocks = res.data_blocks;
    out.data_used = res.data_used;
    out.needs_check = res.needs_check;
    if (r >= 0)
        memcpy(ret, &out, min_u64(ret->size, sizeof(out)));
    check_result_fini(&res);
    report_fini(&rep);
    return r;
}

/* ---- making -------------------------------------------------------------------------------- */

int
thinmeta_format(struct thinmeta *tm, uint64_t data_block_bytes, uint64_t data_bytes,
                struct thinmeta_error *err)
{
    struct ir_superblock ir = {.version = SUPERBLOCK_VERSION};
    struct builder b;
    int r;

    if (!data_block_bytes || data_block_bytes % SECTOR_SIZE ||
        data_block_bytes / SECTOR_SIZE > DATA_BLOCK_SECTORS_MAX)
        return thin_fail(api_words(err), -THIN_E_INVALID,
                         "a data block is a multiple of 64 KiB, up to 1 GiB");
    ir.data_block_size = (uint32_t)(data_block_bytes / SECTOR_SIZE);
    ir.nr_data_blocks = data_bytes / data_block_bytes;
    r = builder_init(&b, tm->src, NULL, api_words(err));
    b.keep_trailer = true; /* zeros: a new pool has no catalogue */
    if (r >= 0)
        r = builder_visitor.superblock(&b, &ir);
    if (r >= 0)
        r = builder_visitor.end(&b);
    builder_fini(&b);
    return r;
}

int
thinmeta_restore(struct thinmeta *tm, thinmeta_read_fn *fn, void *arg,
                 struct thinmeta_error *err)
{
    struct builder b;
    int r = builder_init(&b, tm->src, NULL, api_words(err));

    if (r >= 0)
        r = xml_read(fn, arg, &builder_visitor, &b, api_words(err));
    builder_fini(&b);
    return r;
}

uint64_t
thinmeta_size(uint64_t data_block_bytes, uint64_t pool_bytes, uint64_t max_devices)
{
    uint64_t sectors = data_block_bytes / SECTOR_SIZE;

    if (!sectors)
        return 0;
    return SECTOR_SIZE *
           metadata_size_sectors(sectors, pool_bytes / SECTOR_SIZE, max_devices);
}
