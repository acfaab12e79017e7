#include "server/config.h"

#include <errno.h>
#include <ini.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "core/base/checked.h"
#include "core/base/cleanup.h"
#include "core/base/name.h"
#include "core/ondisk/superblock.h"
#include "proto/limits.h"
#include "proto/socket.h"

#define PAYLOAD_MEMORY_DEFAULT (256ull << 20)
#define SPIN_US_MAX            1000u
#define EXTEND_PERCENT_MAX     100000u
#define OVERCOMMIT_PERCENT_MAX 1000000u
#define BACKUP_MS_DEFAULT      3600000u /* an hour */
#define BACKUP_MS_MIN          1000u
#define BACKUP_KEEP_DEFAULT    24u
#define BACKUP_KEEP_MOST       1000u

struct reading {
    FILE *file;
    const char *path;
    int line;
    struct server_config *config;
    struct thin_error *err;
    int result; /* the first failure */
};

static int
bad(struct reading *rd, const char *what)
{
    if (rd->result == 0)
        rd->result =
            thin_fail(rd->err, -THIN_E_CONFIG, "%s:%d: %s", rd->path, rd->line, what);
    return 0; /* inih: stop */
}

static int
bad_err(struct reading *rd, const struct thin_error *why)
{
    return bad(rd, why->text);
}

/* fgets for inih: counts lines, refuses what it would cut. */
static char *
read_line(char *str, int num, void *stream)
{
    struct reading *rd = stream;
    char line[4096];
    size_t len;

    if (rd->result || !fgets(line, sizeof(line), rd->file))
        return NULL;
    rd->line++;
    len = strlen(line);
    if (len > CONFIG_LINE_MAX || len + 1 > (size_t)num) {
        bad(rd, "line is longer than 190 bytes");
        return NULL;
    }
    memcpy(str, line, len + 1);
    return str;
}

static int
set_string(struct reading *rd, char **field, const char *value)
{
    char *copy = strdup(value);

    if (!copy) {
        rd->result = thin_fail_code(rd->err, -ENOMEM, "read %s", rd->path);
        return 0;
    }
    free(*field);
    *field = copy;
    return 1;
}

/* Words separated by blanks or commas, added to a list. */
static int
add_words(struct reading *rd, char **list, unsigned *count, unsigned max,
          const char *value)
{
    char words[CONFIG_LINE_MAX + 16];
    char *save = NULL;

    snprintf(words, sizeof(words), "%s", value);
    for (char *w = strtok_r(words, " ,\t", &save); w; w = strtok_r(NULL, " ,\t", &save)) {
        if (*count == max)
            return bad(rd, "too many entries in the list");
        list[*count] = NULL;
        if (!set_string(rd, &list[*count], w))
            return 0;
        (*count)++;
    }
    return 1;
}

static int
parse_unsigned(const char *value, uint64_t max, uint64_t *ret)
{
    char *end;
    unsigned long long v;

    errno = 0;
    v = strtoull(value, &end, 10);
    if (*value < '0' || *value > '9' || *end || errno || v > max)
        return -THIN_E_INVALID;
    *ret = v;
    return 0;
}

static int
parse_bool(const char *value, bool *ret)
{
    if (strcmp(value, "yes") == 0 || strcmp(value, "on") == 0 ||
        strcmp(value, "true") == 0)
        *ret = true;
    else if (strcmp(value, "no") == 0 || strcmp(value, "off") == 0 ||
             strcmp(value, "false") == 0)
        *ret = false;
    else
        return -THIN_E_INVALID;
    return 0;
}

/* "10G", or "10%". */
static int
parse_share(const char *text, uint64_t *ret_bytes, uint32_t *ret_percent,
            struct thin_error *err)
{
    char digits[16];
    uint64_t v;

    if (!strchr(text, '%'))
        return size_parse(text, ret_bytes, err);
    if (sscanf(text, "%15[0-9]", digits) != 1 ||
        strcmp(text + strlen(digits), "%") != 0 ||
        parse_unsigned(digits, EXTEND_PERCENT_MAX, &v) < 0 || v == 0)
        return thin_fail(err, -THIN_E_INVALID, "\"%s\" is no percentage", text);
    *ret_percent = (uint32_t)v;
    return 0;
}

int
config_parse_auto_extend(const char *text, struct pool_auto_extend *ret,
                         struct thin_error *err)
{
    struct pool_auto_extend e = {0};
    char percent[16], step[32], limit[32];
    uint64_t v;

    if (strcmp(text, "off") == 0) {
        *ret = e;
        return 0;
    }
    if (sscanf(text, "%15[0-9]:%31[^:]:%31[^:]", percent, step, limit) != 3 ||
        parse_unsigned(percent, 100, &v) < 0 || v == 0)
        return thin_fail(
            err, -THIN_E_INVALID,
            "auto_extend is written PERCENT:STEP:LIMIT, as 80:10G:1T or 90:10%%:200%%, or "
            "off");
    e.percent = (uint32_t)v;
    if (parse_share(step, &e.step_bytes, &e.step_percent, err) < 0 ||
        parse_share(limit, &e.limit_bytes, &e.limit_percent, err) < 0)
        return thin_wrap(err, -THIN_E_INVALID, "auto_extend");
    *ret = e;
    return 0;
}

void
config_resolve_auto_extend(struct pool_auto_extend *extend, uint64_t data_bytes)
{
    if (extend->step_percent)
        extend->step_bytes = round_up_u64(
            max_u64(data_bytes / 100 * extend->step_percent, 1), SECTOR_SIZE);
    if (extend->limit_percent)
        extend->limit_bytes =
            round_up_u64(data_bytes / 100 * extend->limit_percent, SECTOR_SIZE);
    extend->step_percent = extend->limit_percent = 0;
}

int
config_parse_pool_key(struct pool_config *config, const char *key, const char *value,
                      bool *ret_known, struct thin_error *err)
{
    uint64_t v;
    bool b;

    *ret_known = true;
    if (strcmp(key, "commit_interval") == 0) {
        int r = duration_parse_ms(value, &v, err);

        if (r < 0)
            return thin_wrap(err, r, "commit_interval");
        if (v < 10 || v > 3600000)
            return thin_fail(err, -THIN_E_INVALID,
                             "commit_interval must be between 10ms and 1h");
        config->commit_interval_ms = v;
        return 0;
    }
    if (strcmp(key, "no_space_timeout") == 0) {
        int r = duration_parse_ms(value, &v, err);

        if (r < 0)
            return thin_wrap(err, r, "no_space_timeout");
        config->no_space_timeout_ms = v;
        return 0;
    }
    if (strcmp(key, "commit_max_dirty") == 0) {
        if (parse_unsigned(value, 1u << 20, &v) < 0 || v < 16)
            return thin_fail(
                err, -THIN_E_INVALID,
                "commit_max_dirty is a number of metadata blocks, 16 or more");
        config->commit_max_dirty = (uint32_t)v;
        return 0;
    }
    if (strcmp(key, "on_full") == 0) {
        if (strcmp(value, "queue") != 0 && strcmp(value, "error") != 0)
            return thin_fail(err, -THIN_E_INVALID, "on_full is queue or error, not %s",
                             value);
        config->on_full = strcmp(value, "queue") == 0 ? POOL_QUEUE : POOL_ERROR;
        return 0;
    }
    if (strcmp(key, "discards") == 0) {
        static const char *const words[] = {"off", "unmap", "passdown"};

        for (int i = 0; i < 3; i++)
            if (strcmp(value, words[i]) == 0) {
                config->discards = (enum pool_discards)i;
                return 0;
            }
        return thin_fail(err, -THIN_E_INVALID,
                         "discards is off, unmap or passdown, not %s", value);
    }
    if (strcmp(key, "zeroing") == 0 || strcmp(key, "extend_metadata") == 0) {
        if (parse_bool(value, &b) < 0)
            return thin_fail(err, -THIN_E_INVALID, "%s is yes or no, not %s", key, value);
        if (strcmp(key, "zeroing") == 0)
            config->zeroing = b;
        else
            config->extend_metadata = b;
        return 0;
    }
    if (strcmp(key, "overcommit") == 0) {
        char digits[16];

        if (strcmp(value, "off") == 0) {
            config->overcommit_percent = 0;
            return 0;
        }
        if (sscanf(value, "%15[0-9]", digits) != 1 ||
            strcmp(value + strlen(digits), "%") != 0 ||
            parse_unsigned(digits, OVERCOMMIT_PERCENT_MAX, &v) < 0 || v == 0)
            return thin_fail(err, -THIN_E_INVALID,
                             "overcommit is a percentage of the data device's size, as "
                             "300%%, or off");
        config->overcommit_percent = (uint32_t)v;
        return 0;
    }
    if (strcmp(key, "auto_extend") == 0)
        return config_parse_auto_extend(value, &config->extend_data, err);
    *ret_known = false;
    return 0;
}

static int
handle_server(struct reading *rd, const char *name, const char *value)
{
    struct server_config *c = rd->config;
    uint64_t v;

    if (strcmp(name, "state_dir") == 0)
        return set_string(rd, &c->state_dir, value);
    if (strcmp(name, "user") == 0)
        return set_string(rd, &c->user, value);
    if (strcmp(name, "workers") == 0) {
        if (parse_unsigned(value, CONFIG_WORKERS_MAX, &v) < 0)
            return bad(rd, "workers is a number from 0 (as many as processors) to 64");
        c->workers = (unsigned)v;
        return 1;
    }
    if (strcmp(name, "spin_us") == 0) {
        if (parse_unsigned(value, SPIN_US_MAX, &v) < 0)
            return bad(rd, "spin_us is a number of microseconds from 0 to 1000");
        c->spin_us = (unsigned)v;
        return 1;
    }
    if (strcmp(name, "payload_memory") == 0) {
        struct thin_error why;

        if (size_parse(value, &c->payload_memory, &why) < 0)
            return bad_err(rd, &why);
        return c->payload_memory >= 2ull * PROTO_PAYLOAD_MAX
                   ? 1
                   : bad(rd, "payload_memory must be at least 64M");
    }
    if (strcmp(name, "backup_interval") == 0) {
        struct thin_error why;

        c->backup_interval_ms = 0;
        if (strcmp(value, "off") == 0)
            return 1;
        if (duration_parse_ms(value, &c->backup_interval_ms, &why) < 0)
            return bad_err(rd, &why);
        return c->backup_interval_ms >= BACKUP_MS_MIN
                   ? 1
                   : bad(rd, "backup_interval is off, or 1s and more");
    }
    if (strcmp(name, "backup_keep") == 0) {
        if (parse_unsigned(value, BACKUP_KEEP_MOST, &v) < 0 || v == 0)
            return bad(rd, "backup_keep is a number from 1 to 1000");
        c->backup_keep = (unsigned)v;
        return 1;
    }
    if (strcmp(name, "log_level") == 0)
        return thin_log_parse_level(value, &c->log_level) == 0
                   ? 1
                   : bad(rd, "log_level is error, warning, notice or debug");
    if (strcmp(name, "device_dirs") == 0)
        return add_words(rd, c->device_dirs, &c->nr_device_dirs, CONFIG_DIRS_MAX, value);
    if (strcmp(name, "origin_uris") == 0)
        return add_words(rd, c->origin_uris, &c->nr_origin_uris, CONFIG_DIRS_MAX, value);
    return -1;
}

static int
handle_nbd(struct reading *rd, const char *name, const char *value)
{
    struct server_config *c = rd->config;

    if (strcmp(name, "listen") == 0) {
        struct thin_error why;
        struct socket_address address;

        /* One a line: a path may hold blanks. */
        if (c->nr_nbd_listen == CONFIG_LISTENERS_MAX)
            return bad(rd, "too many entries in the list");
        c->nbd_listen[c->nr_nbd_listen] = NULL;
        if (!set_string(rd, &c->nbd_listen[c->nr_nbd_listen], value))
            return 0;
        c->nr_nbd_listen++;
        return socket_address_parse(value, NBD_PORT, &address, &why) < 0
                   ? bad_err(rd, &why)
                   : 1;
    }
    if (strcmp(name, "default_export") == 0)
        return set_string(rd, &c->nbd_default_export, value);
    if (strcmp(name, "tls") == 0) {
        if (strcmp(value, "off") == 0)
            c->nbd_tls = CONFIG_NBD_TLS_OFF;
        else if (strcmp(value, "allowed") == 0)
            c->nbd_tls = CONFIG_NBD_TLS_ALLOWED;
        else if (strcmp(value, "required") == 0)
            c->nbd_tls = CONFIG_NBD_TLS_REQUIRED;
        else
            return bad(rd, "tls is off, allowed or required");
        return 1;
    }
    return -1;
}

static int
handle_pool_defaults(struct reading *rd, const char *name, const char *value)
{
    struct server_config *c = rd->config;
    struct thin_error why;
    bool known;

    if (strcmp(name, "io") == 0) {
        if (strcmp(value, "buffered") != 0 && strcmp(value, "direct") != 0)
            return bad(rd, "io is buffered or direct");
        c->io_direct = strcmp(value, "direct") == 0;
        return 1;
    }
    if (strcmp(name, "block_size") == 0) {
        uint64_t v;

        if (size_parse(value, &v, &why) < 0)
            return bad_err(rd, &why);
        if (v < DATA_BLOCK_SECTORS_MIN * 512ull || v > DATA_BLOCK_SECTORS_MAX * 512ull ||
            v % (DATA_BLOCK_SECTORS_MIN * 512ull))
            return bad(rd, "block_size is a multiple of 64k up to 1G");
        c->block_size = (uint32_t)v;
        return 1;
    }
    if (strcmp(name, "metadata_cache") == 0) {
        uint64_t v;

        if (size_parse(value, &v, &why) < 0)
            return bad_err(rd, &why);
        if (v < (1u << 20) || v > (64ull << 30))
            return bad(rd, "metadata_cache is from 1M to 64G");
        c->pool.metadata_cache_blocks = (uint32_t)(v / METADATA_BLOCK_SIZE);
        return 1;
    }
    if (config_parse_pool_key(&c->pool, name, value, &known, &why) < 0)
        return bad_err(rd, &why);
    return known ? 1 : -1;
}

static int
handle(void *user, const char *section, const char *name, const char *value)
{
    struct reading *rd = user;
    struct server_config *c = rd->config;
    char words[256];
    int r = -1;

    if (rd->result)
        return 0;
    if (!*value) {
        snprintf(words, sizeof(words), "%s has no value", name);
        return bad(rd, words);
    }
    if (strcmp(section, "server") == 0) {
        r = handle_server(rd, name, value);
    } else if (strcmp(section, "listen") == 0) {
        if (strcmp(name, "unix") == 0)
            r = set_string(rd, &c->listen_unix, value);
        else if (strcmp(name, "tls") == 0)
            r = set_string(rd, &c->listen_tls, value);
    } else if (strcmp(section, "tls") == 0) {
        char **field = strcmp(name, "cert") == 0  ? &c->cert
                       : strcmp(name, "key") == 0 ? &c->key
                       : strcmp(name, "ca") == 0  ? &c->ca
                       : strcmp(name, "crl") == 0 ? &c->crl
                                                  : NULL;

        if (field)
            r = set_string(rd, field, value);
    } else if (strcmp(section, "nbd") == 0) {
        r = handle_nbd(rd, name, value);
    } else if (strcmp(section, "metrics") == 0) {
        if (strcmp(name, "listen") == 0)
            r = set_string(rd, &c->metrics_listen, value);
    } else if (strcmp(section, "pool-defaults") == 0) {
        r = handle_pool_defaults(rd, name, value);
    } else {
        snprintf(words, sizeof(words), "unknown section [%s]", section);
        return bad(rd, words);
    }
    if (r < 0) {
        snprintf(words, sizeof(words), "unknown key %s in [%s]", name, section);
        return bad(rd, words);
    }
    return r;
}

static bool
nbd_wants_tls(const struct server_config *c)
{
    if (c->nbd_tls == CONFIG_NBD_TLS_ALLOWED || c->nbd_tls == CONFIG_NBD_TLS_REQUIRED)
        return true;
    for (unsigned i = 0; c->nbd_tls == CONFIG_NBD_TLS_DEFAULT && i < c->nr_nbd_listen;
         i++)
        if (strncmp(c->nbd_listen[i], "unix:", 5) != 0)
            return true;
    return false;
}

/* What only the whole file can tell. */
static int
check_whole(struct server_config *c, const char *path, struct thin_error *err)
{
    struct socket_address address;
    bool tls = c->listen_tls || nbd_wants_tls(c);
    int r;

    if (!c->state_dir)
        return thin_fail(err, -THIN_E_CONFIG, "%s: [server] state_dir is missing", path);
    if (tls && (!c->cert || !c->key || !c->ca))
        return thin_fail(
            err, -THIN_E_CONFIG,
            "%s: [tls] cert, key and ca are needed, since a listener uses TLS; "
            "make them with thincli pki",
            path);
    if (c->listen_unix) {
        AUTO_FREE char *text = NULL;

        if (asprintf(&text, "unix:%s", c->listen_unix) < 0)
            return thin_fail_code(err, -ENOMEM, "read the configuration");
        r = socket_address_parse(text, 0, &address, err);
        if (r < 0)
            return thin_wrap(err, -THIN_E_CONFIG, "%s: [listen] unix", path);
    }
    if (c->listen_tls) {
        r = socket_address_parse_host(c->listen_tls, PROTO_PORT, &address, err);
        if (r < 0)
            return thin_wrap(err, -THIN_E_CONFIG, "%s: [listen] tls", path);
    }
    return 0;
}

/* A data file grows when it is nearly full, by a tenth and up to twice its first size. */
static const struct pool_auto_extend extend_default = {
    .percent = 90, .step_percent = 10, .limit_percent = 200};

static bool
is_folder(FILE *file)
{
    struct stat st;

    return fstat(fileno(file), &st) == 0 && S_ISDIR(st.st_mode);
}

int
config_read(const char *path, struct server_config *ret_config, struct thin_error *err)
{
    struct server_config c = {.log_level = THIN_LOG_NOTICE,
                              .workers = 1,
                              .block_size = DATA_BLOCK_SECTORS_MIN * 512,
                              .payload_memory = PAYLOAD_MEMORY_DEFAULT,
                              .backup_interval_ms = BACKUP_MS_DEFAULT,
                              .backup_keep = BACKUP_KEEP_DEFAULT};
    AUTO_FILE FILE *file = fopen(path, "re");
    struct reading rd = {.file = file, .path = path, .config = &c, .err = err};
    int r;

    if (!file)
        return thin_fail_code(err, -errno, "read the configuration %s", path);
    pool_config_default(&c.pool);
    c.pool.extend_data = extend_default;
    r = ini_parse_stream(read_line, &rd, handle, &rd);
    if (rd.result == 0 && ferror(file))
        rd.result = thin_fail_code(err, is_folder(file) ? -EISDIR : -EIO,
                                   "read the configuration %s", path);
    if (rd.result == 0 && r > 0)
        rd.result = thin_fail(err, -THIN_E_CONFIG,
                              "%s:%d: neither [section] nor KEY = VALUE", path, r);
    if (rd.result == 0 && r < 0)
        rd.result = thin_fail_code(err, -ENOMEM, "read the configuration %s", path);
    if (rd.result == 0)
        rd.result = check_whole(&c, path, err);
    if (rd.result < 0) {
        config_fini(&c);
        return rd.result;
    }
    *ret_config = c;
    return 0;
}

void
config_fini(struct server_config *c)
{
    free(c->state_dir);
    free(c->user);
    for (unsigned i = 0; i < c->nr_device_dirs; i++)
        free(c->device_dirs[i]);
    for (unsigned i = 0; i < c->nr_origin_uris; i++)
        free(c->origin_uris[i]);
    free(c->listen_unix);
    free(c->listen_tls);
    free(c->cert);
    free(c->key);
    free(c->ca);
    free(c->crl);
    for (unsigned i = 0; i < c->nr_nbd_listen; i++)
        free(c->nbd_listen[i]);
    free(c->nbd_default_export);
    free(c->metrics_listen);
    memset(c, 0, sizeof(*c));
}
