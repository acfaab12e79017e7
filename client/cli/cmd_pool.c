/* thincli pool ... */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/cli.h"
#include "client/cli/info.h"
#include "client/cli/output.h"
#include "core/base/cleanup.h"
#include "core/base/name.h"

/* Generated structs have `char *` for what they only borrow. */
static char *
lend(const char *text)
{
    return (char *)(uintptr_t)(text ? text : "");
}

/* Sends a change to the pool args[0] and, with --json, shows it. */
static int
change(struct cli *cli, const Thin__Request *request)
{
    int r = cli_call(cli, request, NULL, NULL);

    return r ? r : info_show_pool_json(cli, cli->args[0]);
}

static int
device_option(struct cli *cli, const char *option, char **ret_path, uint64_t *ret_size)
{
    AUTO_FREE char *path = NULL;
    const char *text = cli_option(cli, option);
    int r;

    if (!text)
        return cli_usage(cli, "pool %s: --%s is missing", cli->verb->name, option);
    r = cli_split_path_size(text, &path, ret_size);
    if (r == -THIN_E_INVALID)
        return cli_usage(cli, "--%s %s: no path", option, text);
    if (r < 0)
        return thin_fail_code(&cli->err, r, "--%s", option);
    return cli_server_path(cli, path, ret_path);
}

static int
duration_option(struct cli *cli, const char *option, uint64_t *ret_ms)
{
    const char *text = cli_option(cli, option);

    if (!text)
        return 0;
    if (duration_parse_ms(text, ret_ms, &cli->err) < 0)
        return CLI_USAGE;
    return *ret_ms ? 0 : cli_usage(cli, "--%s %s: must be above 0", option, text);
}

static int
block_size_option(struct cli *cli, uint32_t *ret)
{
    uint64_t size = 0;
    int r = cli_size(cli, cli_option(cli, "block-size"), &size);

    if (r == 0 && size > UINT32_MAX)
        r = cli_usage(cli, "--block-size %s: too large", cli_option(cli, "block-size"));
    *ret = (uint32_t)size;
    return r;
}

static int
check_on_full(struct cli *cli, const char *text)
{
    if (!text || strcmp(text, "queue") == 0 || strcmp(text, "error") == 0)
        return 0;
    return cli_usage(cli, "--on-full %s: queue or error is possible", text);
}

static const struct cli_option create_options[] = {
    {"data", "PATH[:SIZE]", "data device, or file (made if it is missing)", false},
    {"metadata", "PATH[:SIZE]", "the same for metadata", false},
    {"block-size", "SIZE", "unit of allocation, default 64k", false},
    {"on-full", "queue|error", "what writes do that find no space", false},
    {"commit-interval", "TIME", "default 1s", false},
    {"no-zeroing", NULL, "do not zero the rest of new blocks", false},
    {"auto-extend", "PERCENT:STEP:LIMIT", "grow the data file by itself", false},
    {"force", NULL, "also over a known signature", false},
    {"force-takeover", NULL, "with --force: also over another machine's pool", false},
    {0},
};

static int
pool_create(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolCreate body = THIN__POOL_CREATE__INIT;
    AUTO_FREE char *data = NULL;
    AUTO_FREE char *metadata = NULL;
    int r = cli_check_name(cli, cli->args[0]);

    r = r ? r : device_option(cli, "data", &data, &body.data_size);
    r = r ? r : device_option(cli, "metadata", &metadata, &body.metadata_size);
    r = r ? r : block_size_option(cli, &body.block_size);
    r = r ? r : check_on_full(cli, cli_option(cli, "on-full"));
    r = r ? r : duration_option(cli, "commit-interval", &body.commit_interval_ms);
    if (r)
        return r;
    body.name = lend(cli->args[0]);
    body.data = data;
    body.metadata = metadata;
    body.on_full = lend(cli_option(cli, "on-full"));
    body.no_zeroing = cli_has(cli, "no-zeroing");
    body.auto_extend = lend(cli_option(cli, "auto-extend"));
    body.force = cli_has(cli, "force");
    body.force_takeover = cli_has(cli, "force-takeover");
    request.body_case = THIN__REQUEST__BODY_POOL_CREATE;
    request.pool_create = &body;
    return change(cli, &request);
}

/* ---- import ---------------------------------------------------------------------------- */

static const struct cli_option import_options[] = {
    {"data", "PATH", "data device or file", false},
    {"metadata", "PATH", "metadata device or file", false},
    {"names", "FILE", "lines of: ID NAME", false},
    {"size", "ID=SIZE", "virtual size of a device", true},
    {"catalogue", "ID", "take the names from this device", false},
    {"force-takeover", NULL, "also if another machine has the pool, or died with it",
     false},
    {0},
};

#define IMPORT_VOLUMES_MAX 65536u
#define SNAPSHOTS_FEW      1048576u /* of 16777215 */
#define DEV_ID_MAX         ((1u << 24) - 1)

/* What is known about devices before the import. */
struct import_volumes {
    Thin__ImportVolume **list;
    unsigned nr, room;
};

static void
free_volumes(struct import_volumes *volumes)
{
    for (unsigned i = 0; i < volumes->nr; i++) {
        if (volumes->list[i]->name != protobuf_c_empty_string)
            free(volumes->list[i]->name);
        free(volumes->list[i]);
    }
    free(volumes->list);
}

static int
parse_id(const char *text, uint32_t *ret_id)
{
    char *end;
    unsigned long id;

    if (*text < '0' || *text > '9')
        return -THIN_E_INVALID;
    errno = 0;
    id = strtoul(text, &end, 10);
    if (errno || *end || id > DEV_ID_MAX)
        return -THIN_E_INVALID;
    *ret_id = (uint32_t)id;
    return 0;
}

/* The entry of a device, made if it is not there. NULL: no memory, or too many. */
static Thin__ImportVolume *
volume_of(struct import_volumes *volumes, uint32_t id)
{
    Thin__ImportVolume *v;

    for (unsigned i = 0; i < volumes->nr; i++)
        if (volumes->list[i]->dev_id == id)
            return volumes->list[i];
    if (volumes->nr == volumes->room) {
        unsigned room = volumes->room ? 2 * volumes->room : 16;
        void *list = room > IMPORT_VOLUMES_MAX
                         ? NULL
                         : reallocarray(volumes->list, room, sizeof(void *));

        if (!list)
            return NULL;
        volumes->list = list;
        volumes->room = room;
    }
    v = malloc(sizeof(*v));
    if (!v)
        return NULL;
    thin__import_volume__init(v);
    v->dev_id = id;
    volumes->list[volumes->nr++] = v;
    return v;
}

/* One "ID NAME" line. 0 or a negative code with words. */
static int
read_name_line(struct cli *cli, char *line, struct import_volumes *volumes)
{
    char *save = NULL;
    char *id_text = strtok_r(line, " \t\r\n", &save);
    char *name = id_text ? strtok_r(NULL, " \t\r\n", &save) : NULL;
    Thin__ImportVolume *v;
    uint32_t id;
    int r;

    if (!id_text || *id_text == '#')
        return 0;
    if (!name || strtok_r(NULL, " \t\r\n", &save) || parse_id(id_text, &id) < 0)
        return thin_fail(&cli->err, -THIN_E_INVALID, "a line of ID NAME is expected");
    r = name_check(name, strlen(name), &cli->err);
    if (r < 0)
        return r;
    v = volume_of(volumes, id);
    if (!v)
        return thin_fail_code(&cli->err, -ENOMEM, "device %" PRIu32, id);
    if (*v->name)
        return thin_fail(&cli->err, -THIN_E_INVALID, "device %" PRIu32 " is named twice",
                         id);
    name = strdup(name);
    if (!name)
        return thin_fail_code(&cli->err, -ENOMEM, "device %" PRIu32, id);
    v->name = name;
    return 0;
}

static int
read_names(struct cli *cli, const char *path, struct import_volumes *volumes)
{
    AUTO_FILE FILE *f = NULL;
    AUTO_FREE char *line = NULL;
    size_t room = 0;
    unsigned nr = 0;
    int r = 0;

    if (!path)
        return 0;
    f = fopen(path, "re");
    if (!f)
        return thin_fail_code(&cli->err, -errno, "open %s", path);
    while (r == 0 && getline(&line, &room, f) >= 0) {
        nr++;
        r = read_name_line(cli, line, volumes);
    }
    if (r == 0 && ferror(f))
        return thin_fail_code(&cli->err, -EIO, "read %s", path);
    return r < 0 ? thin_wrap(&cli->err, r, "%s:%u", path, nr) : 0;
}

static int
read_size(struct cli *cli, const char *text, struct import_volumes *volumes)
{
    AUTO_FREE char *id_text = NULL;
    const char *size_text;
    Thin__ImportVolume *v;
    uint32_t id;
    int r = cli_split_key_value(text, &id_text, &size_text);

    if (r == -ENOMEM)
        return thin_fail_code(&cli->err, r, "--size");
    if (r < 0 || parse_id(id_text, &id) < 0)
        return cli_usage(cli, "--size %s: ID=SIZE is expected", text);
    v = volume_of(volumes, id);
    if (!v)
        return thin_fail_code(&cli->err, -ENOMEM, "--size");
    return cli_size(cli, size_text, &v->size);
}

static int
import_with(struct cli *cli, struct import_volumes *volumes)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolImport body = THIN__POOL_IMPORT__INIT;
    AUTO_FREE char *data = NULL;
    AUTO_FREE char *metadata = NULL;
    const char *catalogue = cli_option(cli, "catalogue");
    int r = cli_check_name(cli, cli->args[0]);

    if (!r && (!cli_has(cli, "data") || !cli_has(cli, "metadata")))
        r = cli_usage(cli, "pool import: --data and --metadata are needed");
    if (!r && catalogue && parse_id(catalogue, &body.catalogue_id) < 0)
        r = cli_usage(cli, "--catalogue %s: the ID of a device is expected", catalogue);
    for (unsigned i = 0; r == 0 && i < cli->nr_values; i++)
        if (strcmp(cli->values[i].option->name, "size") == 0)
            r = read_size(cli, cli->values[i].value, volumes);
    r = r ? r : read_names(cli, cli_option(cli, "names"), volumes);
    r = r ? r : cli_server_path(cli, cli_option(cli, "data"), &data);
    r = r ? r : cli_server_path(cli, cli_option(cli, "metadata"), &metadata);
    if (r)
        return r;
    body.name = lend(cli->args[0]);
    body.data = data;
    body.metadata = metadata;
    body.n_volumes = volumes->nr;
    body.volumes = volumes->list;
    body.force_takeover = cli_has(cli, "force-takeover");
    request.body_case = THIN__REQUEST__BODY_POOL_IMPORT;
    request.pool_import = &body;
    return change(cli, &request);
}

static int
pool_import(struct cli *cli)
{
    struct import_volumes volumes = {0};
    int r = import_with(cli, &volumes);

    free_volumes(&volumes);
    return r;
}

/* ---- looking --------------------------------------------------------------------------- */

static int
print_pools(struct cli *cli, const struct info_list *list)
{
    static const struct output_column columns[] = {
        {"NAME", OUTPUT_LEFT},     {"STATE", OUTPUT_LEFT},  {"MODE", OUTPUT_LEFT},
        {"DATA", OUTPUT_RIGHT},    {"USED", OUTPUT_RIGHT},  {"USED%", OUTPUT_RIGHT},
        {"META", OUTPUT_RIGHT},    {"META%", OUTPUT_RIGHT}, {"VOLUMES", OUTPUT_RIGHT},
        {"VIRTUAL", OUTPUT_RIGHT}, {"WHY", OUTPUT_LEFT},    {0},
    };
    struct output output;
    int r = output_begin(&output, columns);

    if (r < 0)
        return thin_fail_code(&cli->err, r, "make a table");
    for (unsigned i = 0; i < list->nr_items; i++) {
        const Thin__PoolInfo *p = list->items[i];
        char word[OUTPUT_WORD];

        output_row(&output, NULL);
        output_cell(&output, p->name);
        output_cell(&output, p->state);
        output_cell(&output, p->mode);
        output_cell_size(&output, p->data_size);
        output_cell_size(&output, p->data_used);
        output_cell(&output, output_percent(word, p->data_used, p->data_size));
        output_cell_size(&output, p->metadata_size);
        output_cell(&output, output_percent(word, p->metadata_used, p->metadata_size));
        output_cell_u64(&output, p->nr_volumes);
        output_cell_size(&output, p->virtual_size);
        output_cell(&output, p->why);
    }
    return output_end(&output, &cli->err);
}

static int
pool_list(struct cli *cli)
{
    struct info_list list = {0};
    int r = info_get_pools(cli, "", &list);

    if (r == 0 && cli->json)
        info_json_pools(&list);
    else if (r == 0)
        r = print_pools(cli, &list);
    info_list_fini(&list);
    return r;
}

/* PERCENT:STEP:LIMIT for people. */
static void
field_auto_extend(const char *text)
{
    char line[128], step[OUTPUT_WORD], limit[OUTPUT_WORD];
    unsigned percent;
    uint64_t step_bytes, limit_bytes;

    if (sscanf(text, "%u:%" SCNu64 ":%" SCNu64, &percent, &step_bytes, &limit_bytes) != 3)
        snprintf(line, sizeof(line), "%s", text);
    else
        snprintf(line, sizeof(line), "at %u%% used, by %s, up to %s", percent,
                 output_size(step, step_bytes), output_size(limit, limit_bytes));
    output_field("auto extend", line);
}

static void
field_size(const char *name, uint64_t bytes)
{
    char word[OUTPUT_WORD], line[3 * OUTPUT_WORD];

    snprintf(line, sizeof(line), "%s (%" PRIu64 " bytes)", output_size(word, bytes),
             bytes);
    output_field(name, line);
}

static void
field_used(const char *name, uint64_t used, uint64_t size)
{
    char word[2][OUTPUT_WORD], line[4 * OUTPUT_WORD];

    snprintf(line, sizeof(line), "%s, %s (%" PRIu64 " bytes)", output_size(word[0], used),
             output_percent(word[1], used, size), used);
    output_field(name, line);
}

static void
field_u64(const char *name, uint64_t number)
{
    char word[OUTPUT_WORD];

    snprintf(word, sizeof(word), "%" PRIu64, number);
    output_field(name, word);
}

/* How much is promised for what is there. */
static void
field_overcommit(const Thin__PoolInfo *p)
{
    char line[2 * OUTPUT_WORD];
    uint64_t percent = p->data_size ? p->virtual_size * 100 / p->data_size : 0;

    if (p->overcommit_percent)
        snprintf(line, sizeof(line), "%" PRIu64 " %%, %" PRIu32 " %% allowed", percent,
                 p->overcommit_percent);
    else
        snprintf(line, sizeof(line), "%" PRIu64 " %%", percent);
    output_field("over-commit", line);
}

static void
field_on_full(const Thin__PoolInfo *p)
{
    char line[2 * OUTPUT_WORD];

    if (strcmp(p->on_full, "queue") != 0)
        snprintf(line, sizeof(line), "%.16s", p->on_full);
    else if (p->no_space_timeout_ms == 0)
        snprintf(line, sizeof(line), "queue, without a timeout");
    else
        snprintf(line, sizeof(line), "queue, for %" PRIu64 " ms", p->no_space_timeout_ms);
    output_field("on full", line);
}

static void
print_pool(const Thin__PoolInfo *p)
{
    char word[OUTPUT_WORD];

    output_field("name", p->name);
    output_field("state", p->state);
    output_field("mode", p->mode);
    if (*p->why)
        output_field("why", p->why);
    if (*p->what_to_do)
        output_field("what to do", p->what_to_do);
    output_field("data", p->data_path);
    field_size("  size", p->data_size);
    field_used("  used", p->data_used, p->data_size);
    field_size("  free", p->data_free);
    field_size("  reserved", p->data_reserved);
    if (p->data_lasts_s >= 0) {
        snprintf(word, sizeof(word), "%" PRId64 " s at the present rate",
                 p->data_lasts_s);
        output_field("  lasts", word);
    }
    output_field("metadata", p->metadata_path);
    field_size("  size", p->metadata_size);
    field_used("  used", p->metadata_used, p->metadata_size);
    field_size("  for deletes", p->metadata_reserve);
    output_field("block size", output_size(word, p->block_size));
    field_u64("volumes", p->nr_volumes);
    field_size("virtual size", p->virtual_size);
    field_overcommit(p);
    field_u64("transaction id", p->transaction_id);
    if (p->held_root)
        field_u64("held root", p->held_root);
    output_field("needs check", p->needs_check ? "yes" : "no");
    field_on_full(p);
    field_auto_extend(p->auto_extend);
    snprintf(word, sizeof(word), "%" PRIu64 " ms", p->commit_interval_ms);
    output_field("commit interval", word);
    snprintf(word, sizeof(word), "%" PRIu32 " metadata blocks", p->commit_max_dirty);
    output_field("commit at", word);
    output_field("zeroing", p->zeroing ? "yes" : "no");
    output_field("discards", p->discards);
    field_u64("snapshots left", p->snapshots_left);
    if (strcmp(p->state, "open") == 0 && p->snapshots_left < SNAPSHOTS_FEW)
        output_field("  warning",
                     "no snapshot can be taken after them: copy the volumes to a "
                     "new pool in time");
    field_u64("commits", p->commits);
    output_field("cache hits",
                 output_percent(word, p->cache_hits, p->cache_hits + p->cache_misses));
}

static int
pool_show(struct cli *cli)
{
    struct info_list list = {0};
    int r = cli_check_name(cli, cli->args[0]);

    r = r ? r : info_get_pools(cli, cli->args[0], &list);
    if (r == 0 && cli->json)
        info_json_pools(&list);
    else if (r == 0)
        print_pool(list.items[0]);
    info_list_fini(&list);
    return r;
}

/* ---- changing -------------------------------------------------------------------------- */

static const struct cli_option grow_options[] = {
    {"data", "SIZE", "new size of the data device", false},
    {"metadata", "SIZE", "new size of the metadata device", false},
    {0},
};

static int
pool_grow(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolGrow body = THIN__POOL_GROW__INIT;
    int r = cli_check_name(cli, cli->args[0]);

    r = r ? r : cli_size(cli, cli_option(cli, "data"), &body.data_size);
    r = r ? r : cli_size(cli, cli_option(cli, "metadata"), &body.metadata_size);
    if (!r && !body.data_size && !body.metadata_size)
        r = cli_usage(cli, "pool grow: --data or --metadata is needed");
    if (r)
        return r;
    body.name = lend(cli->args[0]);
    request.body_case = THIN__REQUEST__BODY_POOL_GROW;
    request.pool_grow = &body;
    return change(cli, &request);
}

static int
pool_set(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolSet body = THIN__POOL_SET__INIT;
    struct cli_key_values values;
    int r = cli_check_name(cli, cli->args[0]);

    r = r ? r : cli_key_values(cli, 1, &values);
    if (r)
        return r;
    body.name = lend(cli->args[0]);
    body.n_values = values.nr;
    body.values = values.list;
    request.body_case = THIN__REQUEST__BODY_POOL_SET;
    request.pool_set = &body;
    r = change(cli, &request);
    cli_key_values_fini(&values);
    return r;
}

static const struct cli_option open_options[] = {
    {"force-takeover", NULL, "also if another machine has the pool, or died with it",
     false},
    {0},
};

static int
pool_open(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolOpen body = THIN__POOL_OPEN__INIT;
    int r = cli_check_name(cli, cli->args[0]);

    body.name = lend(cli->args[0]);
    body.force_takeover = cli_has(cli, "force-takeover");
    request.body_case = THIN__REQUEST__BODY_POOL_OPEN;
    request.pool_open = &body;
    return r ? r : change(cli, &request);
}

static const struct cli_option close_options[] = {
    {"force", NULL, "also if volumes are attached", false},
    {0},
};

static int
pool_close(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolClose body = THIN__POOL_CLOSE__INIT;
    int r = cli_check_name(cli, cli->args[0]);

    body.name = lend(cli->args[0]);
    body.force = cli_has(cli, "force");
    request.body_case = THIN__REQUEST__BODY_POOL_CLOSE;
    request.pool_close = &body;
    return r ? r : change(cli, &request);
}

static const struct cli_option handover_options[] = {
    {"force", NULL, "also if volumes are attached", false},
    {0},
};

static int
pool_handover(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolHandover body = THIN__POOL_HANDOVER__INIT;
    int r = cli_check_name(cli, cli->args[0]);

    body.name = lend(cli->args[0]);
    body.force = cli_has(cli, "force");
    request.body_case = THIN__REQUEST__BODY_POOL_HANDOVER;
    request.pool_handover = &body;
    return r ? r : cli_call_text(cli, &request, "handover");
}

static int
pool_forget(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolForget body = THIN__POOL_FORGET__INIT;
    int r = cli_check_name(cli, cli->args[0]);

    body.name = lend(cli->args[0]);
    request.body_case = THIN__REQUEST__BODY_POOL_FORGET;
    request.pool_forget = &body;
    return r ? r : change(cli, &request);
}

static const struct cli_option destroy_options[] = {
    {"yes", NULL, "the pool and all its volumes are to be lost", false},
    {0},
};

static int
pool_destroy(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolDestroy body = THIN__POOL_DESTROY__INIT;
    int r = cli_check_name(cli, cli->args[0]);

    if (!r && !cli_has(cli, "yes"))
        r = cli_usage(
            cli, "pool destroy: all volumes of %s would be lost; say --yes to mean it",
            cli->args[0]);
    body.name = lend(cli->args[0]);
    request.body_case = THIN__REQUEST__BODY_POOL_DESTROY;
    request.pool_destroy = &body;
    return r ? r : change(cli, &request);
}

static int
pool_check(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolCheck body = THIN__POOL_CHECK__INIT;
    int r = cli_check_name(cli, cli->args[0]);

    body.name = lend(cli->args[0]);
    body.format = lend(cli->json ? "json" : "text");
    request.body_case = THIN__REQUEST__BODY_POOL_CHECK;
    request.pool_check = &body;
    return r ? r : cli_call(cli, &request, cli_print_text, NULL);
}

static const struct cli_option dump_options[] = {
    {"format", "xml|json|human", "default xml, with --json json", false},
    {0},
};

static int
pool_dump(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolDump body = THIN__POOL_DUMP__INIT;
    const char *format = cli_option(cli, "format");
    int r = cli_check_name(cli, cli->args[0]);

    if (!format)
        format = cli->json ? "json" : "xml";
    if (!r && strcmp(format, "xml") != 0 && strcmp(format, "json") != 0 &&
        strcmp(format, "human") != 0)
        r = cli_usage(cli, "--format %s: xml, json or human is possible", format);
    if (!r && cli->json && strcmp(format, "json") != 0)
        r = cli_usage(cli, "--json and --format %s do not go together", format);
    if (r)
        return r;
    body.name = lend(cli->args[0]);
    body.format = lend(format);
    request.body_case = THIN__REQUEST__BODY_POOL_DUMP;
    request.pool_dump = &body;
    return cli_call(cli, &request, cli_print_text, NULL);
}

static int
pool_reserve_snap(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolReserveSnap body = THIN__POOL_RESERVE_SNAP__INIT;
    int r = cli_check_name(cli, cli->args[0]);

    body.name = lend(cli->args[0]);
    request.body_case = THIN__REQUEST__BODY_POOL_RESERVE_SNAP;
    request.pool_reserve_snap = &body;
    return r ? r : change(cli, &request);
}

static int
pool_release_snap(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolReleaseSnap body = THIN__POOL_RELEASE_SNAP__INIT;
    int r = cli_check_name(cli, cli->args[0]);

    body.name = lend(cli->args[0]);
    request.body_case = THIN__REQUEST__BODY_POOL_RELEASE_SNAP;
    request.pool_release_snap = &body;
    return r ? r : change(cli, &request);
}

const struct cli_verb pool_verbs[] = {
    {"create", "NAME --data PATH[:SIZE] --metadata PATH[:SIZE]",
     "make a pool and open it", create_options, 1, 1, pool_create},
    {"import", "NAME --data PATH --metadata PATH",
     "serve a pool that the kernel, LVM or thinsrv made", import_options, 1, 1,
     pool_import},
    {"handover", "NAME", "close it so that the kernel may have it", handover_options, 1,
     1, pool_handover},
    {"list", "", "all pools", NULL, 0, 0, pool_list},
    {"show", "NAME", "everything about one pool", NULL, 1, 1, pool_show},
    {"grow", "NAME", "enlarge data or metadata", grow_options, 1, 1, pool_grow},
    {"set", "NAME KEY=VALUE...", "change settings", NULL, 2, CLI_MANY, pool_set},
    {"open", "NAME", "open a closed pool", open_options, 1, 1, pool_open},
    {"close", "NAME", "commit and close it", close_options, 1, 1, pool_close},
    {"forget", "NAME", "take a closed pool off the server's list; its data stays", NULL,
     1, 1, pool_forget},
    {"destroy", "NAME --yes", "make its devices unusable as a pool", destroy_options, 1,
     1, pool_destroy},
    {"check", "NAME", "check the metadata while it is served", NULL, 1, 1, pool_check},
    {"dump", "NAME", "print the metadata while it is served", dump_options, 1, 1,
     pool_dump},
    {"reserve-snap", "NAME", "hold a metadata snapshot for readers", NULL, 1, 1,
     pool_reserve_snap},
    {"release-snap", "NAME", "let it go", NULL, 1, 1, pool_release_snap},
    {0},
};
