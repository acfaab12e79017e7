/* The vocabulary of a dump, for both parsers. */
#include <inttypes.h>
#include <string.h>

#include "core/offline/xml_read.h"

static bool
is(const char *name, size_t len, const char *wanted)
{
    return len == strlen(wanted) && memcmp(name, wanted, len) == 0;
}

/* What an element needs, and where it goes. */
struct wanted {
    const char *name;
    uint64_t *to;
    uint64_t max;
    bool optional;
};

static bool
parse_number(const struct xml_attr *a, uint64_t max, uint64_t *ret)
{
    uint64_t v = 0;

    if (a->value_len == 0 || a->value_len > 20)
        return false;
    for (size_t i = 0; i < a->value_len; i++) {
        unsigned digit = (unsigned)(unsigned char)a->value[i] - '0';

        if (digit > 9 || __builtin_mul_overflow(v, 10u, &v) ||
            __builtin_add_overflow(v, digit, &v))
            return false;
    }
    *ret = v;
    return v <= max;
}

/* Attributes in any order; unknown ones are passed over, as the official tools do. */
static int
take_numbers(struct xml_state *st, const char *element, const struct xml_attr *attrs,
             size_t nr, const struct wanted *wanted, size_t nr_wanted)
{
    unsigned seen = 0;

    for (size_t i = 0; i < nr; i++)
        for (size_t w = 0; w < nr_wanted; w++) {
            if (!is(attrs[i].name, attrs[i].name_len, wanted[w].name))
                continue;
            if (!parse_number(&attrs[i], wanted[w].max, wanted[w].to))
                return thin_fail(st->err, -THIN_E_INVALID,
                                 "line %" PRIu64
                                 ": %s: %s is not a number up to %" PRIu64,
                                 st->line, element, wanted[w].name, wanted[w].max);
            seen |= 1u << w;
            break;
        }
    for (size_t w = 0; w < nr_wanted; w++)
        if (!wanted[w].optional && !(seen >> w & 1u))
            return thin_fail(st->err, -THIN_E_INVALID, "line %" PRIu64 ": %s without %s",
                             st->line, element, wanted[w].name);
    return 0;
}

static int
open_superblock(struct xml_state *st, const struct xml_attr *attrs, size_t nr)
{
    /* XML of the first tools says no version. */
    uint64_t time = 0, trans = 0, flags = 0, version = 1, block_size = 0, nr_data = 0;
    const struct wanted wanted[] = {
        {"time", &time, UINT32_MAX, false},
        {"transaction", &trans, UINT64_MAX, false},
        {"flags", &flags, UINT32_MAX, true},
        {"version", &version, UINT32_MAX, true},
        {"data_block_size", &block_size, UINT32_MAX, false},
        {"nr_data_blocks", &nr_data, UINT64_MAX, false},
    };
    struct ir_superblock sb = {0};
    int r = take_numbers(st, "superblock", attrs, nr, wanted,
                         sizeof(wanted) / sizeof(wanted[0]));

    if (r < 0)
        return r;
    for (size_t i = 0; i < nr; i++)
        if (is(attrs[i].name, attrs[i].name_len, "uuid") &&
            attrs[i].value_len < sizeof(sb.uuid))
            memcpy(sb.uuid, attrs[i].value, attrs[i].value_len);
    sb.time = (uint32_t)time;
    sb.trans_id = trans;
    sb.flags = (uint32_t)flags;
    sb.version = (uint32_t)version;
    sb.data_block_size = (uint32_t)block_size;
    sb.nr_data_blocks = nr_data;
    st->where = XML_IN_SUPERBLOCK;
    return st->visitor->superblock(st->arg, &sb);
}

static int
open_device(struct xml_state *st, const struct xml_attr *attrs, size_t nr)
{
    struct ir_device dev = {0};
    uint64_t creation = 0, snap = 0;
    const struct wanted wanted[] = {
        {"dev_id", &dev.dev_id, UINT64_MAX, false},
        {"mapped_blocks", &dev.mapped_blocks, UINT64_MAX, false},
        {"transaction", &dev.trans_id, UINT64_MAX, false},
        {"creation_time", &creation, UINT32_MAX, false},
        {"snap_time", &snap, UINT32_MAX, false},
    };
    int r =
        take_numbers(st, "device", attrs, nr, wanted, sizeof(wanted) / sizeof(wanted[0]));

    if (r < 0)
        return r;
    dev.creation_time = (uint32_t)creation;
    dev.snap_time = (uint32_t)snap;
    st->where = XML_IN_DEVICE;
    return st->visitor->device_begin(st->arg, &dev);
}

static int
open_mapping(struct xml_state *st, const struct xml_attr *attrs, size_t nr, bool range)
{
    struct ir_run run = {.len = 1};
    uint64_t time = 0;
    const struct wanted single_wanted[] = {
        {"origin_block", &run.virt, UINT64_MAX, false},
        {"data_block", &run.data, UINT64_MAX, false},
        {"time", &time, UINT32_MAX, false},
    };
    const struct wanted range_wanted[] = {
        {"origin_begin", &run.virt, UINT64_MAX, false},
        {"data_begin", &run.data, UINT64_MAX, false},
        {"length", &run.len, XML_RUN_MAX, false},
        {"time", &time, UINT32_MAX, false},
    };
    int r = range ? take_numbers(st, "range_mapping", attrs, nr, range_wanted, 4)
                  : take_numbers(st, "single_mapping", attrs, nr, single_wanted, 3);

    if (r < 0)
        return r;
    run.time = (uint32_t)time;
    return st->visitor->run(st->arg, &run);
}

static int
misplaced(struct xml_state *st, const char *name, size_t len)
{
    return thin_fail(st->err, -THIN_E_INVALID,
                     "line %" PRIu64 ": <%.*s> has no place here", st->line,
                     (int)(len < 64 ? len : 64), name);
}

int
xml_open_tag(struct xml_state *st, const char *name, size_t len,
             const struct xml_attr *attrs, size_t nr)
{
    bool range = is(name, len, "range_mapping");

    if (st->in_mapping)
        return misplaced(st, name, len);
    if (range || is(name, len, "single_mapping")) {
        if (st->where != XML_IN_DEVICE)
            return misplaced(st, name, len);
        st->in_mapping = range ? "range_mapping" : "single_mapping";
        return open_mapping(st, attrs, nr, range);
    }
    if (is(name, len, "device") && st->where == XML_IN_SUPERBLOCK)
        return open_device(st, attrs, nr);
    if (is(name, len, "superblock") && st->where == XML_START)
        return open_superblock(st, attrs, nr);
    return misplaced(st, name, len);
}

int
xml_close_tag(struct xml_state *st, const char *name, size_t len)
{
    if (st->in_mapping && is(name, len, st->in_mapping)) {
        st->in_mapping = NULL;
        return 0;
    }
    if (!st->in_mapping && is(name, len, "device") && st->where == XML_IN_DEVICE) {
        st->where = XML_IN_SUPERBLOCK;
        return st->visitor->device_end(st->arg);
    }
    if (!st->in_mapping && is(name, len, "superblock") &&
        st->where == XML_IN_SUPERBLOCK) {
        st->where = XML_DONE;
        return 0;
    }
    return thin_fail(st->err, -THIN_E_INVALID, "line %" PRIu64 ": </%.*s> closes nothing",
                     st->line, (int)(len < 64 ? len : 64), name);
}
