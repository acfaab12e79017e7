/* thincli volume ... */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/cli.h"
#include "client/cli/info.h"
#include "client/cli/json.h"
#include "client/cli/lines.h"
#include "client/cli/output.h"
#include "core/base/cleanup.h"
#include "core/base/name.h"

#define VOLUME_NAME_MAX (2 * THIN_NAME_MAX + 2) /* POOL/VOLUME with its NUL */

/* Generated structs have `char *` for what they only borrow. */
static char *
lend(const char *text)
{
    return (char *)(uintptr_t)(text ? text : "");
}

/* Sends a change and, with --json, shows `name` behind it. */
static int
change(struct cli *cli, const Thin__Request *request, const char *name)
{
    int r = cli_call(cli, request, NULL, NULL);

    return r ? r : info_show_volumes_json(cli, &name, 1);
}

/* A new volume's name in the pool of `volume`: as VOLUME or POOL/VOLUME. */
static int
name_beside(struct cli *cli, const char *volume, const char *text,
            const char **ret_volume_name, char ret_full[VOLUME_NAME_MAX])
{
    size_t pool_len = (size_t)(strchr(volume, '/') - volume) + 1;
    int r;

    if (strchr(text, '/')) {
        if (strncmp(text, volume, pool_len) != 0)
            return cli_usage(cli, "%s is not in the pool of %s", text, volume);
        text += pool_len;
    }
    r = cli_check_name(cli, text);
    if (r)
        return r;
    snprintf(ret_full, VOLUME_NAME_MAX, "%.*s%s", (int)pool_len, volume, text);
    *ret_volume_name = text;
    return 0;
}

/* ---- create ---------------------------------------------------------------------------- */

static const struct cli_option create_options[] = {
    {"origin", "PATH-or-URI", "what unwritten blocks are read from", false},
    {"reserve", "SIZE", "space that it will always have", false},
    {"quota", "SIZE", "space that it may use at most", false},
    {0},
};

static int
volume_create(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeCreate body = THIN__VOLUME_CREATE__INIT;
    AUTO_FREE char *origin = NULL;
    int r = cli_check_volume(cli, cli->args[0]);

    r = r ? r : cli_size(cli, cli->args[1], &body.size);
    r = r ? r : cli_size(cli, cli_option(cli, "reserve"), &body.reserve);
    r = r ? r : cli_size(cli, cli_option(cli, "quota"), &body.quota);
    if (!r && cli_has(cli, "origin"))
        r = cli_server_path(cli, cli_option(cli, "origin"), &origin);
    if (r)
        return r;
    body.name = lend(cli->args[0]);
    body.origin = lend(origin);
    request.body_case = THIN__REQUEST__BODY_VOLUME_CREATE;
    request.volume_create = &body;
    return change(cli, &request, cli->args[0]);
}

/* ---- looking --------------------------------------------------------------------------- */

static void
fill_row(struct output *output, const Thin__VolumeInfo *v)
{
    char word[OUTPUT_WORD];

    output_cell(output, v->name);
    if (v->size_unknown)
        output_cell(output, "?");
    else
        output_cell_size(output, v->size);
    output_cell_size(output, v->mapped);
    output_cell(output, v->has_exclusive ? output_size(word, v->exclusive) : "-");
    output_cell(output, v->damaged ? "damaged" : v->read_only ? "ro" : "rw");
    output_cell(output, *v->parent ? v->parent : "-");
    output_cell(output, output_time(word, v->created));
    output_cell(output, v->attached ? v->holder : "-");
}

/* The lines of a tree: a parent's stands before its children's. */
struct tree {
    struct output *output;
    const struct info_list *list;
    const Thin__VolumeInfo **by_name; /* sorted */
    struct libscols_line **lines;     /* of by_name[i], NULL: not there yet */
    bool *entered;
};

static int
compare_names(const void *a, const void *b)
{
    const Thin__VolumeInfo *const *x = a, *const *y = b;

    return strcmp((*x)->name, (*y)->name);
}

static unsigned
find_by_name(const struct tree *tree, const char *name)
{
    Thin__VolumeInfo wanted = THIN__VOLUME_INFO__INIT;
    const Thin__VolumeInfo *key = &wanted;
    const Thin__VolumeInfo **found;

    wanted.name = lend(name);
    found =
        bsearch(&key, tree->by_name, tree->list->nr_items, sizeof(void *), compare_names);
    return found ? (unsigned)(found - tree->by_name) : UINT32_MAX;
}

/*
 * Makes the line of volume `at`, and before it those of its parents that are missing;
 * a parent that is not in the list (deleted) makes a root, as does a ring, which only a
 * confused server could tell.
 */
static void
add_line(struct tree *tree, unsigned at, unsigned *path)
{
    unsigned depth = 0;

    while (at != UINT32_MAX && !tree->lines[at] && !tree->entered[at]) {
        tree->entered[at] = true;
        path[depth++] = at;
        at = *tree->by_name[at]->parent ? find_by_name(tree, tree->by_name[at]->parent)
                                        : UINT32_MAX;
    }
    while (depth > 0) {
        struct libscols_line *parent = at == UINT32_MAX ? NULL : tree->lines[at];

        at = path[--depth];
        tree->lines[at] = output_row(tree->output, parent);
        fill_row(tree->output, tree->by_name[at]);
    }
}

static int
fill_tree(struct output *output, const struct info_list *list)
{
    size_t n = list->nr_items + 1;
    AUTO_FREE const Thin__VolumeInfo **by_name = calloc(n, sizeof(void *));
    AUTO_FREE struct libscols_line **lines = calloc(n, sizeof(void *));
    AUTO_FREE bool *entered = calloc(n, sizeof(*entered));
    AUTO_FREE unsigned *path = calloc(n, sizeof(*path));
    struct tree tree = {output, list, by_name, lines, entered};

    if (!by_name || !lines || !entered || !path)
        return -ENOMEM;
    for (unsigned i = 0; i < list->nr_items; i++)
        by_name[i] = list->items[i];
    qsort(by_name, list->nr_items, sizeof(void *), compare_names);
    for (unsigned i = 0; i < list->nr_items; i++)
        add_line(&tree, i, path);
    return 0;
}

static int
print_volumes(struct cli *cli, const struct info_list *list, bool as_tree)
{
    const struct output_column columns[] = {
        {"NAME", as_tree ? OUTPUT_TREE : OUTPUT_LEFT},
        {"SIZE", OUTPUT_RIGHT},
        {"MAPPED", OUTPUT_RIGHT},
        {"EXCLUSIVE", OUTPUT_RIGHT},
        {"MODE", OUTPUT_LEFT},
        {"PARENT", OUTPUT_LEFT},
        {"CREATED", OUTPUT_LEFT},
        {"HOLDER", OUTPUT_LEFT},
        {0},
    };
    struct output output;
    int r = output_begin(&output, columns);

    if (r < 0)
        return thin_fail_code(&cli->err, r, "make a table");
    if (as_tree && fill_tree(&output, list) < 0)
        output.failed = true;
    for (unsigned i = 0; !as_tree && i < list->nr_items; i++) {
        output_row(&output, NULL);
        fill_row(&output, list->items[i]);
    }
    return output_end(&output, &cli->err);
}

static const struct cli_option list_options[] = {
    {"tree", NULL, "snapshots below what they were taken of", false},
    {0},
};

static int
volume_list(struct cli *cli)
{
    struct info_list list = {0};
    const char *pool = cli->nr_args > 0 ? cli->args[0] : "";
    int r = *pool ? cli_check_name(cli, pool) : 0;

    r = r ? r : info_get_volumes(cli, pool, "", &list);
    if (r == 0 && cli->json)
        info_json_volumes(&list);
    else if (r == 0)
        r = print_volumes(cli, &list, cli_has(cli, "tree"));
    info_list_fini(&list);
    return r;
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
print_volume(const Thin__VolumeInfo *v)
{
    char word[OUTPUT_WORD];

    output_field("name", v->name);
    snprintf(word, sizeof(word), "%" PRIu32, v->dev_id);
    output_field("device id", word);
    if (v->size_unknown)
        output_field("size", "unknown: set it with volume resize");
    else
        field_size("size", v->size);
    field_size("mapped", v->mapped);
    if (v->has_exclusive)
        field_size("exclusive", v->exclusive);
    output_field("parent", v->parent);
    output_field("origin", v->origin);
    if (v->origin_changed)
        output_field("origin changed",
                     "yes: it is not what it was when the volume was made; "
                     "the volume can only be opened read-only");
    output_field("created", output_time(word, v->created));
    output_field("read-only", v->read_only ? "yes" : "no");
    output_field("protected", v->is_protected ? "yes" : "no");
    if (v->damaged)
        output_field("damaged", "yes: see thincli pool check");
    if (v->reserve)
        field_size("reserve", v->reserve);
    if (v->quota)
        field_size("quota", v->quota);
    output_field("attached", v->attached ? "yes" : "no");
    output_field("holder", v->holder);
}

static int
volume_show(struct cli *cli)
{
    struct info_list list = {0};
    int r = cli_check_volume(cli, cli->args[0]);

    r = r ? r : info_get_volumes(cli, "", cli->args[0], &list);
    if (r == 0 && cli->json)
        info_json_volumes(&list);
    else if (r == 0)
        print_volume(list.items[0]);
    info_list_fini(&list);
    return r;
}

/* ---- snapshots ------------------------------------------------------------------------- */

static const struct cli_option snapshot_options[] = {
    {"group", "NAME", "of several volumes at one instant, each named VOL.NAME", false},
    {0},
};

static int
snapshot_one(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeSnapshot body = THIN__VOLUME_SNAPSHOT__INIT;
    Thin__SnapshotPair pair = THIN__SNAPSHOT_PAIR__INIT;
    Thin__SnapshotPair *pairs[] = {&pair};
    char full[VOLUME_NAME_MAX];
    const char *name = NULL;
    int r;

    if (cli->nr_args != 2)
        return cli_usage(cli, "volume snapshot: POOL/VOL and NEW are expected");
    r = cli_check_volume(cli, cli->args[0]);
    r = r ? r : name_beside(cli, cli->args[0], cli->args[1], &name, full);
    if (r)
        return r;
    pair.origin = lend(cli->args[0]);
    pair.name = lend(name);
    body.n_snapshots = 1;
    body.snapshots = pairs;
    request.body_case = THIN__REQUEST__BODY_VOLUME_SNAPSHOT;
    request.volume_snapshot = &body;
    return change(cli, &request, full);
}

struct group_entry {
    Thin__SnapshotPair pair;
    char full[VOLUME_NAME_MAX];
};

static int
group_entry(struct cli *cli, const char *origin, const char *group,
            struct group_entry *ret)
{
    char wanted[VOLUME_NAME_MAX];
    const char *name = NULL;
    int r = cli_check_volume(cli, origin);

    if (r)
        return r;
    snprintf(wanted, sizeof(wanted), "%s.%s", strchr(origin, '/') + 1, group);
    r = name_beside(cli, origin, wanted, &name, ret->full);
    if (r)
        return r;
    thin__snapshot_pair__init(&ret->pair);
    ret->pair.origin = lend(origin);
    ret->pair.name = strchr(ret->full, '/') + 1;
    return 0;
}

static int
snapshot_group(struct cli *cli, const char *group)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeSnapshot body = THIN__VOLUME_SNAPSHOT__INIT;
    AUTO_FREE struct group_entry *entries = calloc(cli->nr_args, sizeof(*entries));
    AUTO_FREE Thin__SnapshotPair **pairs = calloc(cli->nr_args, sizeof(void *));
    AUTO_FREE const char **names = calloc(cli->nr_args, sizeof(*names));
    int r = cli_check_name(cli, group);

    if (!entries || !pairs || !names)
        return thin_fail_code(&cli->err, -ENOMEM, "snapshot of a group");
    for (unsigned i = 0; r == 0 && i < cli->nr_args; i++) {
        r = group_entry(cli, cli->args[i], group, &entries[i]);
        pairs[i] = &entries[i].pair;
        names[i] = entries[i].full;
    }
    if (r)
        return r;
    body.n_snapshots = cli->nr_args;
    body.snapshots = pairs;
    request.body_case = THIN__REQUEST__BODY_VOLUME_SNAPSHOT;
    request.volume_snapshot = &body;
    r = cli_call(cli, &request, NULL, NULL);
    return r ? r : info_show_volumes_json(cli, names, cli->nr_args);
}

static int
volume_snapshot(struct cli *cli)
{
    const char *group = cli_option(cli, "group");

    return group ? snapshot_group(cli, group) : snapshot_one(cli);
}

static int
volume_rollback(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeRollback body = THIN__VOLUME_ROLLBACK__INIT;
    char full[VOLUME_NAME_MAX];
    const char *name = NULL;
    int r = cli_check_volume(cli, cli->args[0]);

    r = r ? r : name_beside(cli, cli->args[0], cli->args[1], &name, full);
    if (r)
        return r;
    body.name = lend(cli->args[0]);
    body.snapshot = lend(name);
    request.body_case = THIN__REQUEST__BODY_VOLUME_ROLLBACK;
    request.volume_rollback = &body;
    return change(cli, &request, cli->args[0]);
}

/* ---- delete ---------------------------------------------------------------------------- */

static const struct cli_option delete_options[] = {
    {"dry-run", NULL, "only tell how much space would come free", false},
    {0},
};

static int
on_deleted(void *arg, const Thin__Reply *reply, const void *payload, size_t payload_bytes)
{
    uint64_t *freed = arg;

    (void)payload;
    (void)payload_bytes;
    if (reply->body_case == THIN__REPLY__BODY_VOLUME_DELETE)
        *freed = reply->volume_delete->freed;
    return 0;
}

static int
delete_one(struct cli *cli, const char *name, uint64_t *ret_freed)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeDelete body = THIN__VOLUME_DELETE__INIT;

    body.name = lend(name);
    body.dry_run = cli_has(cli, "dry-run");
    request.body_case = THIN__REQUEST__BODY_VOLUME_DELETE;
    request.volume_delete = &body;
    return cli_call(cli, &request, on_deleted, ret_freed);
}

static void
print_deleted(struct cli *cli, const uint64_t *freed)
{
    struct json json;

    if (cli->json) {
        json_init(&json, stdout, false);
        json_open_object(&json, NULL);
        json_open_array(&json, "deleted");
        for (unsigned i = 0; i < cli->nr_args; i++) {
            json_open_object(&json, NULL);
            json_string(&json, "name", cli->args[i]);
            json_u64(&json, "freed", freed[i]);
            json_close(&json);
        }
        json_close(&json);
        json_bool(&json, "dry_run", cli_has(cli, "dry-run"));
        json_close(&json);
        json_finish(&json);
        return;
    }
    for (unsigned i = 0; cli_has(cli, "dry-run") && i < cli->nr_args; i++) {
        char word[OUTPUT_WORD];

        printf("%s: %s (%" PRIu64 " bytes) would come free\n", cli->args[i],
               output_size(word, freed[i]), freed[i]);
    }
}

/* One after another; the first that cannot be deleted ends it. */
static int
volume_delete(struct cli *cli)
{
    AUTO_FREE uint64_t *freed = calloc(cli->nr_args, sizeof(*freed));
    int r = 0;

    if (!freed)
        return thin_fail_code(&cli->err, -ENOMEM, "delete volumes");
    for (unsigned i = 0; r == 0 && i < cli->nr_args; i++)
        r = cli_check_volume(cli, cli->args[i]);
    for (unsigned i = 0; r == 0 && i < cli->nr_args; i++) {
        r = delete_one(cli, cli->args[i], &freed[i]);
        if (r < 0 && i > 0 && !cli_has(cli, "dry-run"))
            return thin_wrap(&cli->err, r, "deleted %u of %u, then %s", i, cli->nr_args,
                             cli->args[i]);
    }
    if (r == 0)
        print_deleted(cli, freed);
    return r;
}

/* ---- other changes --------------------------------------------------------------------- */

static const struct cli_option resize_options[] = {
    {"allow-shrink", NULL, "what is behind the new end is lost", false},
    {0},
};

static int
volume_resize(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeResize body = THIN__VOLUME_RESIZE__INIT;
    int r = cli_check_volume(cli, cli->args[0]);

    r = r ? r : cli_size(cli, cli->args[1], &body.size);
    if (r)
        return r;
    body.name = lend(cli->args[0]);
    body.allow_shrink = cli_has(cli, "allow-shrink");
    request.body_case = THIN__REQUEST__BODY_VOLUME_RESIZE;
    request.volume_resize = &body;
    return change(cli, &request, cli->args[0]);
}

static int
volume_rename(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeRename body = THIN__VOLUME_RENAME__INIT;
    char full[VOLUME_NAME_MAX];
    const char *name = NULL;
    int r = cli_check_volume(cli, cli->args[0]);

    r = r ? r : name_beside(cli, cli->args[0], cli->args[1], &name, full);
    if (r)
        return r;
    body.name = lend(cli->args[0]);
    body.new_name = lend(name);
    request.body_case = THIN__REQUEST__BODY_VOLUME_RENAME;
    request.volume_rename = &body;
    return change(cli, &request, full);
}

static int
volume_set(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeSet body = THIN__VOLUME_SET__INIT;
    struct cli_key_values values;
    int r = cli_check_volume(cli, cli->args[0]);

    r = r ? r : cli_key_values(cli, 1, &values);
    if (r)
        return r;
    body.name = lend(cli->args[0]);
    body.n_values = values.nr;
    body.values = values.list;
    request.body_case = THIN__REQUEST__BODY_VOLUME_SET;
    request.volume_set = &body;
    r = change(cli, &request, cli->args[0]);
    cli_key_values_fini(&values);
    return r;
}

static int
set_protected(struct cli *cli, const char *value)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeSet body = THIN__VOLUME_SET__INIT;
    Thin__KeyValue kv = THIN__KEY_VALUE__INIT;
    Thin__KeyValue *values[] = {&kv};
    int r = cli_check_volume(cli, cli->args[0]);

    kv.key = lend("protected");
    kv.value = lend(value);
    body.name = lend(cli->args[0]);
    body.n_values = 1;
    body.values = values;
    request.body_case = THIN__REQUEST__BODY_VOLUME_SET;
    request.volume_set = &body;
    return r ? r : change(cli, &request, cli->args[0]);
}

static int
volume_protect(struct cli *cli)
{
    return set_protected(cli, "yes");
}

static int
volume_unprotect(struct cli *cli)
{
    return set_protected(cli, "no");
}

static int
volume_trim(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeTrim body = THIN__VOLUME_TRIM__INIT;
    char word[OUTPUT_WORD];
    uint64_t freed = 0;
    struct json json;
    int r = cli_check_volume(cli, cli->args[0]);

    body.name = lend(cli->args[0]);
    request.body_case = THIN__REQUEST__BODY_VOLUME_TRIM;
    request.volume_trim = &body;
    r = r ? r : cli_call(cli, &request, on_deleted, &freed);
    if (r)
        return r;
    if (cli->json) {
        json_init(&json, stdout, false);
        json_open_object(&json, NULL);
        json_string(&json, "name", cli->args[0]);
        json_u64(&json, "freed", freed);
        json_close(&json);
        json_finish(&json);
        return 0;
    }
    printf("%s: %s (%" PRIu64 " bytes) of zeros are no longer mapped\n", cli->args[0],
           output_size(word, freed), freed);
    return 0;
}

/* ---- texts of the server --------------------------------------------------------------- */

static int
volume_map(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeMap body = THIN__VOLUME_MAP__INIT;
    int r = cli_check_volume(cli, cli->args[0]);

    body.name = lend(cli->args[0]);
    request.body_case = THIN__REQUEST__BODY_VOLUME_MAP;
    request.volume_map = &body;
    return r ? r : lines_call(cli, &request, "map", lines_map);
}

static int
volume_delta(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeDelta body = THIN__VOLUME_DELTA__INIT;
    int r = cli_check_volume(cli, cli->args[0]);

    r = r ? r : cli_check_volume(cli, cli->args[1]);
    body.left = lend(cli->args[0]);
    body.right = lend(cli->args[1]);
    request.body_case = THIN__REQUEST__BODY_VOLUME_DELTA;
    request.volume_delta = &body;
    return r ? r : lines_call(cli, &request, "delta", lines_delta);
}

static int
volume_stats(struct cli *cli)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__VolumeStats body = THIN__VOLUME_STATS__INIT;
    int r = cli->nr_args > 0 ? cli_check_volume(cli, cli->args[0]) : 0;

    body.name = lend(cli->nr_args > 0 ? cli->args[0] : "");
    request.body_case = THIN__REQUEST__BODY_VOLUME_STATS;
    request.volume_stats = &body;
    return r ? r : lines_call(cli, &request, "stats", lines_stats);
}

const struct cli_verb volume_verbs[] = {
    {"create", "POOL/VOL SIZE", "make a volume", create_options, 2, 2, volume_create},
    {"list", "[POOL]", "volumes and snapshots", list_options, 0, 1, volume_list},
    {"show", "POOL/VOL", "everything about one", NULL, 1, 1, volume_show},
    {"snapshot", "POOL/VOL NEW | --group NAME POOL/VOL...", "take a snapshot",
     snapshot_options, 1, CLI_MANY, volume_snapshot},
    {"delete", "POOL/VOL...", "delete volumes or snapshots", delete_options, 1, CLI_MANY,
     volume_delete},
    {"resize", "POOL/VOL SIZE", "grow it", resize_options, 2, 2, volume_resize},
    {"rename", "POOL/VOL NEW", "give it another name", NULL, 2, 2, volume_rename},
    {"rollback", "POOL/VOL SNAP", "put it back to a snapshot's state", NULL, 2, 2,
     volume_rollback},
    {"map", "POOL/VOL", "which parts are mapped, shared, holes", NULL, 1, 1, volume_map},
    {"delta", "POOL/A POOL/B", "where two volumes differ", NULL, 2, 2, volume_delta},
    {"trim", "POOL/VOL", "give blocks of zeros back", NULL, 1, 1, volume_trim},
    {"set", "POOL/VOL KEY=VALUE...", "change settings", NULL, 2, CLI_MANY, volume_set},
    {"protect", "POOL/VOL", "refuse to delete it", NULL, 1, 1, volume_protect},
    {"unprotect", "POOL/VOL", "allow to delete it", NULL, 1, 1, volume_unprotect},
    {"stats", "[POOL/VOL]", "counters", NULL, 0, 1, volume_stats},
    {0},
};
