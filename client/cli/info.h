/*
 * What the server tells about pools and volumes: asked for, page by page, kept, printed.
 */
#ifndef THIN_CLIENT_CLI_INFO_H
#define THIN_CLIENT_CLI_INFO_H

#include "client/cli/cli.h"

/* Replies of a list, kept as they came. Zero it before, list_fini behind. */
struct info_list {
    ProtobufCMessage **replies;
    unsigned nr_replies, room;
    const void **items; /* Thin__PoolInfo or Thin__VolumeInfo, in the server's order */
    unsigned nr_items, items_room;
};
void info_list_fini(struct info_list *list);

/* A callback for cli_call: keeps the reply as it is; arg is the list. */
int info_keep_reply(void *list, const Thin__Reply *reply, const void *payload,
                    size_t payload_bytes);
/* A reply that was kept so. */
const Thin__Reply *info_reply(const struct info_list *list, unsigned i);

/* `name` empty: all. A name that is not there: -THIN_E_NOT_FOUND. */
int info_get_pools(struct cli *cli, const char *name, struct info_list *list);
/* `pool` and `name` may be empty; with a name only that one. */
int info_get_volumes(struct cli *cli, const char *pool, const char *name,
                     struct info_list *list);

/* One JSON document {"pools": [...]} or {"volumes": [...]}. */
void info_json_pools(const struct info_list *list);
void info_json_volumes(const struct info_list *list);

/* With --json: the state of what was just changed, asked for and printed. */
int info_show_pool_json(struct cli *cli, const char *name);
int info_show_volumes_json(struct cli *cli, const char *const *names, unsigned nr_names);

#endif
