#include "client/cli/info.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli/json.h"
#include "proto/limits.h"

void
info_list_fini(struct info_list *list)
{
    for (unsigned i = 0; i < list->nr_replies; i++)
        protobuf_c_message_free_unpacked(list->replies[i], NULL);
    free(list->replies);
    free(list->items);
    *list = (struct info_list){0};
}

/* Room for one more of `entry_bytes` bytes in an array. */
static int
grow(void *array, unsigned *room, unsigned used, size_t entry_bytes)
{
    void **place = array;
    unsigned wanted = *room ? 2 * *room : 16;
    void *bigger;

    if (used < *room)
        return 0;
    bigger = reallocarray(*place, wanted, entry_bytes);
    if (!bigger)
        return -ENOMEM;
    *place = bigger;
    *room = wanted;
    return 0;
}

static int
add_item(struct info_list *list, const void *item)
{
    int r = grow(&list->items, &list->items_room, list->nr_items, sizeof(*list->items));

    if (r == 0)
        list->items[list->nr_items++] = item;
    return r;
}

/* Keeps a copy of the reply's list; *ret_copy is the list's. */
static int
keep(struct info_list *list, const ProtobufCMessage *message, ProtobufCMessage **ret_copy)
{
    int r = grow(&list->replies, &list->room, list->nr_replies, sizeof(void *));

    if (r == 0)
        r = cli_copy_message(message, ret_copy);
    if (r == 0)
        list->replies[list->nr_replies++] = *ret_copy;
    return r;
}

int
info_keep_reply(void *arg, const Thin__Reply *reply, const void *payload,
                size_t payload_bytes)
{
    ProtobufCMessage *copy;

    (void)payload;
    (void)payload_bytes;
    return keep(arg, &reply->base, &copy);
}

const Thin__Reply *
info_reply(const struct info_list *list, unsigned i)
{
    return (const Thin__Reply *)(const void *)list->replies[i];
}

/* ---- asking ---------------------------------------------------------------------------- */

static int
on_pools(void *arg, const Thin__Reply *reply, const void *payload, size_t payload_bytes)
{
    struct info_list *list = arg;
    ProtobufCMessage *copy;
    const Thin__PoolListReply *pools;
    int r;

    (void)payload;
    (void)payload_bytes;
    if (reply->body_case != THIN__REPLY__BODY_POOL_LIST)
        return 0;
    r = keep(list, &reply->pool_list->base, &copy);
    pools = r == 0 ? (const Thin__PoolListReply *)(const void *)copy : NULL;
    for (size_t i = 0; r == 0 && i < pools->n_pools; i++)
        r = add_item(list, pools->pools[i]);
    return r;
}

int
info_get_pools(struct cli *cli, const char *name, struct info_list *list)
{
    Thin__Request request = THIN__REQUEST__INIT;
    Thin__PoolList ask = THIN__POOL_LIST__INIT;
    int r;

    ask.name = (char *)(uintptr_t)name;
    request.body_case = THIN__REQUEST__BODY_POOL_LIST;
    request.pool_list = &ask;
    r = cli_call(cli, &request, on_pools, list);
    if (r == 0 && *name && list->nr_items == 0)
        r = thin_fail(&cli->err, -THIN_E_NOT_FOUND, "no such pool: %s", name);
    return r;
}

static int
on_volumes(void *arg, const Thin__Reply *reply, const void *payload, size_t payload_bytes)
{
    struct info_list *list = arg;
    ProtobufCMessage *copy;
    const Thin__VolumeListReply *volumes;
    int r;

    (void)payload;
    (void)payload_bytes;
    if (reply->body_case != THIN__REPLY__BODY_VOLUME_LIST)
        return 0;
    r = keep(list, &reply->volume_list->base, &copy);
    volumes = r == 0 ? (const Thin__VolumeListReply *)(const void *)copy : NULL;
    for (size_t i = 0; r == 0 && i < volumes->n_volumes; i++)
        r = add_item(list, volumes->volumes[i]);
    return r;
}

static int
get_page(struct cli *cli, Thin__VolumeList *ask, struct info_list *list,
         unsigned *ret_nr_new)
{
    Thin__Request request = THIN__REQUEST__INIT;
    unsigned before = list->nr_items;
    int r;

    request.body_case = THIN__REQUEST__BODY_VOLUME_LIST;
    request.volume_list = ask;
    r = cli_call(cli, &request, on_volumes, list);
    *ret_nr_new = list->nr_items - before;
    return r;
}

int
info_get_volumes(struct cli *cli, const char *pool, const char *name,
                 struct info_list *list)
{
    Thin__VolumeList ask = THIN__VOLUME_LIST__INIT;
    unsigned nr_new = 0;
    int r;

    ask.pool = (char *)(uintptr_t)pool;
    ask.name = (char *)(uintptr_t)name;
    ask.max = PROTO_LIST_MAX;
    ask.with_exclusive = true;
    for (;;) {
        const Thin__VolumeInfo *last;

        r = get_page(cli, &ask, list, &nr_new);
        if (r || *name || nr_new == 0)
            break;
        last = list->items[list->nr_items - 1];
        if (strcmp(last->name, ask.after) == 0)
            return thin_fail(&cli->err, -THIN_E_PROTOCOL,
                             "the server's list does not end: it repeats %s", last->name);
        ask.after = last->name;
    }
    if (r == 0 && *name && list->nr_items == 0)
        r = thin_fail(&cli->err, -THIN_E_NOT_FOUND, "no such volume: %s", name);
    return r;
}

/* ---- JSON ------------------------------------------------------------------------------ */

static void
json_steps(struct json *json, const Thin__PoolInfo *p)
{
    json_open_array(json, "steps");
    for (size_t i = 0; i < p->n_steps; i++) {
        const Thin__StepInfo *s = p->steps[i];

        json_open_object(json, NULL);
        json_string(json, "name", s->name);
        json_u64(json, "count", s->count);
        json_u64(json, "longest_ns", s->longest_ns);
        json_u64(json, "locks", s->locks);
        json_open_array(json, "times");
        for (size_t k = 0; k < s->n_counts && k < p->n_step_bounds_ns; k++) {
            json_open_object(json, NULL);
            if (p->step_bounds_ns[k] == UINT64_MAX)
                json_null(json, "up_to_ns");
            else
                json_u64(json, "up_to_ns", p->step_bounds_ns[k]);
            json_u64(json, "count", s->counts[k]);
            json_close(json);
        }
        json_close(json);
        json_close(json);
    }
    json_close(json);
}

static void
json_pool(struct json *json, const Thin__PoolInfo *p)
{
    json_open_object(json, NULL);
    json_string(json, "name", p->name);
    json_string(json, "state", p->state);
    json_string(json, "mode", p->mode);
    json_u64(json, "data_size", p->data_size);
    json_u64(json, "data_used", p->data_used);
    json_u64(json, "metadata_size", p->metadata_size);
    json_u64(json, "metadata_used", p->metadata_used);
    json_u64(json, "transaction_id", p->transaction_id);
    json_bool(json, "needs_check", p->needs_check);
    json_string(json, "why", p->why);
    json_string(json, "what_to_do", p->what_to_do);
    json_u64(json, "block_size", p->block_size);
    json_u64(json, "metadata_reserve", p->metadata_reserve);
    json_string_or_null(json, "data_path", p->data_path);
    json_string_or_null(json, "metadata_path", p->metadata_path);
    json_u64(json, "nr_volumes", p->nr_volumes);
    json_u64(json, "virtual_size", p->virtual_size);
    json_u64(json, "data_reserved", p->data_reserved);
    json_u64(json, "data_free", p->data_free);
    json_u64(json, "overcommit_percent",
             p->data_size ? p->virtual_size * 100 / p->data_size : 0);
    if (p->overcommit_percent)
        json_u64(json, "overcommit_limit_percent", p->overcommit_percent);
    else
        json_null(json, "overcommit_limit_percent");
    if (p->data_lasts_s >= 0)
        json_u64(json, "data_lasts_s", (uint64_t)p->data_lasts_s);
    else
        json_null(json, "data_lasts_s");
    json_u64(json, "incarnation", p->incarnation);
    json_u64(json, "snapshots_left", p->snapshots_left);
    json_u64(json, "held_root", p->held_root);
    json_string(json, "on_full", p->on_full);
    json_u64(json, "no_space_timeout_ms", p->no_space_timeout_ms);
    json_u64(json, "commit_interval_ms", p->commit_interval_ms);
    json_u64(json, "commit_max_dirty", p->commit_max_dirty);
    json_string_or_null(json, "auto_extend", p->auto_extend);
    json_bool(json, "extend_metadata", p->extend_metadata);
    json_string_or_null(json, "discards", p->discards);
    json_bool(json, "zeroing", p->zeroing);
    json_u64(json, "commits", p->commits);
    json_u64(json, "metadata_cache", p->metadata_cache);
    json_u64(json, "cache_hits", p->cache_hits);
    json_u64(json, "cache_misses", p->cache_misses);
    json_u64(json, "longest_step_ns", p->longest_step_ns);
    json_string_or_null(json, "longest_step", p->longest_step);
    json_u64(json, "locks_high_water", p->locks_high_water);
    if (p->n_steps)
        json_steps(json, p);
    json_close(json);
}

static void
json_volume(struct json *json, const Thin__VolumeInfo *v)
{
    json_open_object(json, NULL);
    json_string(json, "name", v->name);
    json_u64(json, "dev_id", v->dev_id);
    json_u64(json, "size", v->size);
    json_u64(json, "mapped", v->mapped);
    if (v->has_exclusive)
        json_u64(json, "exclusive", v->exclusive);
    else
        json_null(json, "exclusive");
    json_string_or_null(json, "parent", v->parent);
    json_u64(json, "created", v->created);
    json_bool(json, "read_only", v->read_only);
    json_bool(json, "attached", v->attached);
    json_string_or_null(json, "holder", v->holder);
    json_bool(json, "size_unknown", v->size_unknown);
    json_bool(json, "protected", v->is_protected);
    json_bool(json, "damaged", v->damaged);
    json_u64(json, "reserve", v->reserve);
    json_u64(json, "quota", v->quota);
    json_string_or_null(json, "origin", v->origin);
    json_bool(json, "origin_changed", v->origin_changed);
    json_close(json);
}

static void
begin_document(struct json *json, const char *key)
{
    json_init(json, stdout, false);
    json_open_object(json, NULL);
    json_open_array(json, key);
}

static void
end_document(struct json *json)
{
    json_close(json);
    json_close(json);
    json_finish(json);
}

void
info_json_pools(const struct info_list *list)
{
    struct json json;

    begin_document(&json, "pools");
    for (unsigned i = 0; i < list->nr_items; i++)
        json_pool(&json, list->items[i]);
    end_document(&json);
}

void
info_json_volumes(const struct info_list *list)
{
    struct json json;

    begin_document(&json, "volumes");
    for (unsigned i = 0; i < list->nr_items; i++)
        json_volume(&json, list->items[i]);
    end_document(&json);
}

/*
 * What was asked for has been done: that its state cannot be told (somebody may have
 * removed it since) is no failure of it, and the list stays empty.
 */
int
info_show_pool_json(struct cli *cli, const char *name)
{
    struct info_list list = {0};
    int r;

    if (!cli->json)
        return 0;
    r = *name ? info_get_pools(cli, name, &list) : 0;
    if (r == 0 || r == -THIN_E_NOT_FOUND) {
        info_json_pools(&list);
        r = 0;
    }
    info_list_fini(&list);
    return r;
}

int
info_show_volumes_json(struct cli *cli, const char *const *names, unsigned nr_names)
{
    struct info_list list = {0};
    int r = 0;

    if (!cli->json)
        return 0;
    for (unsigned i = 0; r == 0 && i < nr_names; i++) {
        r = info_get_volumes(cli, "", names[i], &list);
        if (r == -THIN_E_NOT_FOUND)
            r = 0;
    }
    if (r == 0)
        info_json_volumes(&list);
    info_list_fini(&list);
    return r;
}
