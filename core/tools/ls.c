/* thinmeta ls, thin_ls: the devices of a pool. */
#include <errno.h>
#include <inttypes.h>
#include <libsmartcols/libsmartcols.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/offline/owner.h"
#include "core/offline/shares.h"
#include "core/tools/tool.h"

#define FIELD_TEXT_MAX 32

/*    id                 needs shares  */
#define LS_FIELDS(X)           \
    X(DEV, false)              \
    X(MAPPED_BLOCKS, false)    \
    X(EXCLUSIVE_BLOCKS, true)  \
    X(SHARED_BLOCKS, true)     \
    X(HIGHEST_BLOCK, true)     \
    X(MAPPED_SECTORS, false)   \
    X(EXCLUSIVE_SECTORS, true) \
    X(SHARED_SECTORS, true)    \
    X(MAPPED_BYTES, false)     \
    X(EXCLUSIVE_BYTES, true)   \
    X(SHARED_BYTES, true)      \
    X(MAPPED, false)           \
    X(EXCLUSIVE, true)         \
    X(SHARED, true)            \
    X(TRANSACTION, false)      \
    X(CREATE_TIME, false)      \
    X(SNAP_TIME, false)

enum field {
#define LS_ENUM(name, shares) FIELD_##name,
    LS_FIELDS(LS_ENUM)
#undef LS_ENUM
        NR_FIELDS
};

static const struct {
    const char *name;
    bool shares;
} field_table[] = {
#define LS_NAME(name, shares) {#name, shares},
    LS_FIELDS(LS_NAME)
#undef LS_NAME
};

struct ls_args {
    struct live_options live;
    enum field fields[NR_FIELDS];
    size_t nr_fields;
    bool no_headers, json;
};

struct ls_row {
    const struct live_device *dev;
    const struct device_shares *shares;
    uint64_t block_bytes;
    bool catalogue;
};

static uint64_t
field_value(const struct ls_row *row, enum field f)
{
    uint64_t mapped = row->dev->details.mapped_blocks;
    uint64_t exclusive = row->shares ? row->shares->exclusive : 0;
    uint64_t sectors = row->block_bytes / SECTOR_SIZE;

    switch (f) {
    case FIELD_DEV:
        return row->dev->dev_id;
    case FIELD_MAPPED_BLOCKS:
        return mapped;
    case FIELD_EXCLUSIVE_BLOCKS:
        return exclusive;
    case FIELD_SHARED_BLOCKS:
        return mapped - exclusive;
    case FIELD_HIGHEST_BLOCK:
        return row->shares ? row->shares->highest : 0;
    case FIELD_MAPPED_SECTORS:
        return mapped * sectors;
    case FIELD_EXCLUSIVE_SECTORS:
        return exclusive * sectors;
    case FIELD_SHARED_SECTORS:
        return (mapped - exclusive) * sectors;
    case FIELD_MAPPED_BYTES:
    case FIELD_MAPPED:
        return mapped * row->block_bytes;
    case FIELD_EXCLUSIVE_BYTES:
    case FIELD_EXCLUSIVE:
        return exclusive * row->block_bytes;
    case FIELD_SHARED_BYTES:
    case FIELD_SHARED:
        return (mapped - exclusive) * row->block_bytes;
    case FIELD_TRANSACTION:
        return row->dev->details.transaction_id;
    case FIELD_CREATE_TIME:
        return row->dev->details.creation_time;
    default:
        return row->dev->details.snapshotted_time;
    }
}

/* 8192KiB, 8MiB: the official tool's unit, and its rounding, which is by size. */
static void
with_unit(uint64_t v, char *ret)
{
    static const char *const units[] = {"", "KiB", "MiB", "GiB", "TiB", "PiB"};
    uint64_t unit = 1;
    unsigned u = 0;

    while (v / unit > 8192 && u + 1 < sizeof(units) / sizeof(units[0])) {
        unit *= 1024;
        u++;
    }
    v = v / unit < 1024 ? (v + unit / 2) / unit : v / unit;
    snprintf(ret, FIELD_TEXT_MAX, "%" PRIu64 "%s", v, units[u]);
}

static void
field_text(const struct ls_row *row, enum field f, char *ret)
{
    uint64_t v = field_value(row, f);

    if (f == FIELD_MAPPED || f == FIELD_EXCLUSIVE || f == FIELD_SHARED)
        with_unit(v, ret);
    else if (f == FIELD_HIGHEST_BLOCK && !(row->shares && row->shares->any))
        snprintf(ret, FIELD_TEXT_MAX, "-");
    else
        snprintf(ret, FIELD_TEXT_MAX, "%" PRIu64, v);
}

/* ---- the official tool's table, blank for blank --------------------------------------- */

static void
print_official(const struct ls_args *args, const struct ls_row *rows, size_t nr)
{
    size_t width[NR_FIELDS];
    char text[FIELD_TEXT_MAX];

    if (!args->nr_fields)
        return;
    for (size_t f = 0; f < args->nr_fields; f++) {
        width[f] = args->no_headers ? 0 : strlen(field_table[args->fields[f]].name);
        for (size_t i = 0; i < nr; i++) {
            field_text(&rows[i], args->fields[f], text);
            width[f] = max_u64(width[f], strlen(text));
        }
    }
    if (!args->no_headers) {
        for (size_t f = 0; f < args->nr_fields; f++)
            printf("%*s ", (int)width[f], field_table[args->fields[f]].name);
        printf("\n");
    }
    for (size_t i = 0; i < nr; i++) {
        for (size_t f = 0; f < args->nr_fields; f++) {
            field_text(&rows[i], args->fields[f], text);
            printf("%*s ", (int)width[f], text);
        }
        printf("\n");
    }
}

/* ---- ours ------------------------------------------------------------------------------- */

static int
fill_table(struct libscols_table *table, const struct ls_args *args,
           const struct ls_row *rows, size_t nr)
{
    char text[FIELD_TEXT_MAX];

    scols_table_enable_noheadings(table, args->no_headers);
    for (size_t f = 0; f < args->nr_fields; f++)
        if (!scols_table_new_column(table, field_table[args->fields[f]].name, 0,
                                    SCOLS_FL_RIGHT))
            return -ENOMEM;
    for (size_t i = 0; i < nr; i++) {
        struct libscols_line *line = scols_table_new_line(table, NULL);

        if (!line)
            return -ENOMEM;
        for (size_t f = 0; f < args->nr_fields; f++) {
            field_text(&rows[i], args->fields[f], text);
            if (scols_line_set_data(line, f, text))
                return -ENOMEM;
        }
    }
    return scols_print_table(table) ? -EIO : 0;
}

static int
print_table(const struct ls_args *args, const struct ls_row *rows, size_t nr)
{
    struct libscols_table *table;
    int r;

    if (nr == 0) {
        /* libsmartcols shows no heading without lines. */
        print_official(args, rows, nr);
        return 0;
    }
    table = scols_new_table();
    if (!table)
        return -ENOMEM;
    r = fill_table(table, args, rows, nr);
    scols_unref_table(table);
    return r;
}

static void
print_json(const struct ls_row *rows, size_t nr)
{
    printf("{\"devices\": [");
    for (size_t i = 0; i < nr; i++) {
        const struct ls_row *row = &rows[i];

        printf("%s\n  {\"dev_id\": %" PRIu64 ", \"mapped\": %" PRIu64
               ", \"exclusive\": %" PRIu64 ", \"shared\": %" PRIu64 ", ",
               i ? "," : "", row->dev->dev_id, field_value(row, FIELD_MAPPED_BYTES),
               field_value(row, FIELD_EXCLUSIVE_BYTES),
               field_value(row, FIELD_SHARED_BYTES));
        if (row->shares && row->shares->any)
            printf("\"highest_block\": %" PRIu64 ", ", row->shares->highest);
        else
            printf("\"highest_block\": null, ");
        printf("\"mapped_blocks\": %" PRIu64 ", \"exclusive_blocks\": %" PRIu64
               ", \"transaction_id\": %" PRIu64 ", \"creation_time\": %" PRIu64
               ", \"snapshotted_time\": %" PRIu64 ", \"catalogue\": %s}",
               field_value(row, FIELD_MAPPED_BLOCKS),
               field_value(row, FIELD_EXCLUSIVE_BLOCKS),
               field_value(row, FIELD_TRANSACTION), field_value(row, FIELD_CREATE_TIME),
               field_value(row, FIELD_SNAP_TIME), row->catalogue ? "true" : "false");
    }
    printf("]}\n");
}

/* ---- the verb ------------------------------------------------------------------------------ */

static bool
needs_shares(const struct ls_args *args)
{
    for (size_t f = 0; f < args->nr_fields; f++)
        if (field_table[args->fields[f]].shares)
            return true;
    return args->json;
}

static int
list(const struct tool *tool, const struct ls_args *args, struct live_pool *pool,
     struct thin_error *err)
{
    size_t nr = pool->nr_devices;
    AUTO_FREE struct device_shares *shares = calloc(nr + 1, sizeof(*shares));
    AUTO_FREE struct ls_row *rows = calloc(nr + 1, sizeof(*rows));
    bool with_shares = needs_shares(args);
    uint32_t catalogue = CATALOGUE_NONE;
    bool has_catalogue = owner_catalogue_device(&pool->sb, &catalogue);
    int r = 0;

    if (!shares || !rows)
        return thin_fail_code(err, -ENOMEM, "list devices");
    if (with_shares)
        r = shares_count(pool, shares, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < nr; i++)
        rows[i] = (struct ls_row){&pool->devices[i], with_shares ? &shares[i] : NULL,
                                  (uint64_t)pool->sb.data_block_size * SECTOR_SIZE,
                                  has_catalogue && pool->devices[i].dev_id == catalogue};
    tool_progress_end();
    if (args->json)
        print_json(rows, nr);
    else if (tool->as_official)
        print_official(args, rows, nr);
    else
        r = print_table(args, rows, nr);
    if (r >= 0 && has_catalogue && !args->json && !args->no_headers && !tool->as_official)
        printf("device %" PRIu32 " is no volume: thinsrv keeps its catalogue there\n",
               catalogue);
    return r < 0 ? thin_fail_code(err, r, "print") : 0;
}

/* The official tool reads up to each comma: behind the last one nothing may follow. */
static bool
parse_fields(const struct tool *tool, struct ls_args *args, char *text)
{
    char *rest = text, *name;

    args->nr_fields = 0;
    while ((name = strsep(&rest, ","))) {
        size_t f = 0;

        if (tool->as_official && !rest && *name == '\0')
            break;

        while (f < NR_FIELDS && strcmp(name, field_table[f].name) != 0)
            f++;
        if (f == NR_FIELDS || args->nr_fields == NR_FIELDS)
            return false;
        args->fields[args->nr_fields++] = (enum field)f;
    }
    return true;
}

int
tool_ls(const struct tool *tool, int argc, char **argv)
{
    enum { NO_HEADERS = 256, JSON };
    static const struct option longopts[] = {
        {"format", required_argument, NULL, 'o'},
        {"metadata-snap", optional_argument, NULL, 'm'},
        {"no-headers", no_argument, NULL, NO_HEADERS},
        {"json", no_argument, NULL, JSON},
        TOOL_LONG_COMMON,
    };
    struct ls_args args = {
        .fields = {FIELD_DEV, FIELD_MAPPED, FIELD_CREATE_TIME, FIELD_SNAP_TIME},
        .nr_fields = 4};
    struct meta_source *src = NULL;
    struct live_pool pool;
    struct thin_error err;
    const char *path;
    int opt, exit_code, r;

    while ((opt = getopt_long(argc, argv, "hVo:m::", longopts, NULL)) != -1) {
        if (tool_common_option(tool, opt, &exit_code))
            return exit_code;
        switch (opt) {
        case 'o':
            if (!parse_fields(tool, &args, optarg))
                return tool_misused(tool, "unknown field");
            break;
        case 'm':
            args.live.metadata_snap = true;
            /* The official tool knows no other block than the superblock's. */
            if (optarg && !tool->as_official &&
                !tool_number(optarg, &args.live.snap_block))
                return tool_misused(tool, "not a block number: '%s'", optarg);
            break;
        case NO_HEADERS:
            args.no_headers = true;
            break;
        default:
            args.json = true;
            break;
        }
    }
    exit_code = tool_argument(tool, argc, argv, "No input device provided.", &path);
    if (exit_code)
        return exit_code;
    thin_error_init(&err);
    r = tool_open(path, args.live.metadata_snap ? SOURCE_READ_SHARED : SOURCE_READ, &src,
                  &err);
    if (r >= 0)
        r = live_open(src, &args.live, &pool, &err);
    if (r >= 0) {
        r = list(tool, &args, &pool, &err);
        live_close(&pool);
    }
    tool_close(src);
    return r < 0 ? tool_fail(tool, r, &err) : 0;
}
