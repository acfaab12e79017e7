#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/config.h"

static char dir[] = "/tmp/thin-config-XXXXXX";
static char path[64];
static struct server_config config;
static struct thin_error err;

static void
setup(void)
{
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/thinsrv.conf", dir);
    thin_error_init(&err);
}

static void
teardown(void)
{
    unlink(path);
    rmdir(dir);
    memcpy(dir + strlen(dir) - 6, "XXXXXX", 6);
}

static int
read_text(const char *text)
{
    FILE *file = fopen(path, "we");

    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    ck_assert_int_eq(fclose(file), 0);
    thin_error_init(&err);
    return config_read(path, &config, &err);
}

/* A sound file with these lines at its end. */
static int
read_with(const char *lines)
{
    char text[4096];

    snprintf(text, sizeof(text), "[server]\nstate_dir = /s\n%s", lines);
    return read_text(text);
}

START_TEST(one_line_is_enough)
{
    ck_assert_int_eq(read_with(""), 0);
    ck_assert_str_eq(config.state_dir, "/s");
    ck_assert_uint_eq(config.workers, 1);
    ck_assert_int_eq(config.log_level, THIN_LOG_NOTICE);
    ck_assert_ptr_null(config.user);
    ck_assert_uint_eq(config.nr_device_dirs, 0);
    ck_assert_uint_eq(config.nr_origin_uris, 0);
    ck_assert_uint_eq(config.spin_us, 0);
    ck_assert_uint_eq(config.payload_memory, 256u << 20);
    ck_assert_uint_eq(config.backup_interval_ms, 3600000);
    ck_assert_uint_eq(config.backup_keep, 24);
    ck_assert_ptr_null(config.listen_unix);
    ck_assert_ptr_null(config.listen_tls);
    ck_assert_uint_eq(config.nr_nbd_listen, 0);
    ck_assert_int_eq(config.nbd_tls, CONFIG_NBD_TLS_DEFAULT);
    ck_assert_ptr_null(config.nbd_default_export);
    ck_assert(!config.io_direct);
    ck_assert_uint_eq(config.block_size, 65536);
    ck_assert_uint_eq(config.pool.commit_interval_ms, 1000);
    ck_assert_int_eq(config.pool.on_full, POOL_QUEUE);
    ck_assert_uint_eq(config.pool.no_space_timeout_ms, 60000);
    ck_assert(config.pool.zeroing);
    ck_assert_int_eq(config.pool.discards, POOL_DISCARD_PASSDOWN);
    ck_assert(config.pool.extend_metadata);
    ck_assert_uint_eq(config.pool.extend_data.percent, 90);
    config_resolve_auto_extend(&config.pool.extend_data, 1000ull << 20);
    ck_assert_uint_eq(config.pool.extend_data.step_bytes, 100ull << 20);
    ck_assert_uint_eq(config.pool.extend_data.limit_bytes, 2000ull << 20);
    ck_assert_uint_eq(config.pool.overcommit_percent, 0);
    config_fini(&config);
}
END_TEST

START_TEST(every_key_is_read)
{
    ck_assert_int_eq(read_text("# a comment\n"
                               "[server]\n"
                               "state_dir = /var/lib/thinsrv\n"
                               "log_level = debug\n"
                               "workers = 0\n"
                               "spin_us = 1000\n"
                               "payload_memory = 64M\n"
                               "backup_interval = 10m\n"
                               "backup_keep = 5\n"
                               "user = thinsrv\n"
                               "device_dirs = /srv/a, /srv/b\n"
                               "device_dirs = /srv/c\n"
                               "origin_uris = nbd://images/ nbd://more/\n"
                               "[listen]\n"
                               "unix = /run/t.sock\n"
                               "tls = [::1]:10819\n"
                               "[tls]\n"
                               "cert = c.pem\nkey = k.pem\nca = ca.pem\ncrl = crl.pem\n"
                               "[nbd]\n"
                               "listen = unix:/run/a place/nbd.sock\n"
                               "listen = tcp:0.0.0.0:10809\n"
                               "tls = allowed\n"
                               "default_export = tank/vol0\n"
                               "[metrics]\n"
                               "listen = 127.0.0.1:9000\n"
                               "[pool-defaults]\n"
                               "io = direct\n"
                               "block_size = 192k\n"
                               "metadata_cache = 8M\n"
                               "commit_interval = 250ms\n"
                               "commit_max_dirty = 100\n"
                               "on_full = error\n"
                               "no_space_timeout = 0s\n"
                               "zeroing = no\n"
                               "discards = unmap\n"
                               "auto_extend = 80:10G:1T\n"
                               "overcommit = 300%\n"
                               "extend_metadata = off\n"),
                     0);
    ck_assert_str_eq(config.state_dir, "/var/lib/thinsrv");
    ck_assert_int_eq(config.log_level, THIN_LOG_DEBUG);
    ck_assert_uint_eq(config.workers, 0);
    ck_assert_uint_eq(config.spin_us, 1000);
    ck_assert_uint_eq(config.payload_memory, 64u << 20);
    ck_assert_str_eq(config.user, "thinsrv");
    ck_assert_uint_eq(config.backup_interval_ms, 600000);
    ck_assert_uint_eq(config.backup_keep, 5);
    ck_assert_uint_eq(config.nr_device_dirs, 3);
    ck_assert_str_eq(config.device_dirs[0], "/srv/a");
    ck_assert_str_eq(config.device_dirs[1], "/srv/b");
    ck_assert_str_eq(config.device_dirs[2], "/srv/c");
    ck_assert_uint_eq(config.nr_origin_uris, 2);
    ck_assert_str_eq(config.origin_uris[1], "nbd://more/");
    ck_assert_str_eq(config.listen_unix, "/run/t.sock");
    ck_assert_str_eq(config.listen_tls, "[::1]:10819");
    ck_assert_str_eq(config.cert, "c.pem");
    ck_assert_str_eq(config.key, "k.pem");
    ck_assert_str_eq(config.ca, "ca.pem");
    ck_assert_str_eq(config.crl, "crl.pem");
    ck_assert_uint_eq(config.nr_nbd_listen, 2);
    ck_assert_str_eq(config.nbd_listen[0], "unix:/run/a place/nbd.sock");
    ck_assert_str_eq(config.nbd_listen[1], "tcp:0.0.0.0:10809");
    ck_assert_int_eq(config.nbd_tls, CONFIG_NBD_TLS_ALLOWED);
    ck_assert_str_eq(config.nbd_default_export, "tank/vol0");
    ck_assert_str_eq(config.metrics_listen, "127.0.0.1:9000");
    ck_assert(config.io_direct);
    ck_assert_uint_eq(config.block_size, 196608);
    ck_assert_uint_eq(config.pool.metadata_cache_blocks, 2048);
    ck_assert_uint_eq(config.pool.commit_interval_ms, 250);
    ck_assert_uint_eq(config.pool.commit_max_dirty, 100);
    ck_assert_int_eq(config.pool.on_full, POOL_ERROR);
    ck_assert_uint_eq(config.pool.no_space_timeout_ms, 0);
    ck_assert(!config.pool.zeroing);
    ck_assert_int_eq(config.pool.discards, POOL_DISCARD_UNMAP);
    ck_assert_uint_eq(config.pool.extend_data.percent, 80);
    ck_assert_uint_eq(config.pool.overcommit_percent, 300);
    ck_assert_uint_eq(config.pool.extend_data.step_bytes, 10ull << 30);
    ck_assert_uint_eq(config.pool.extend_data.limit_bytes, 1ull << 40);
    ck_assert(!config.pool.extend_metadata);
    config_fini(&config);
}
END_TEST

START_TEST(a_value_said_twice_is_the_last_one)
{
    ck_assert_int_eq(read_with("user = a\nuser = b\n"), 0);
    ck_assert_str_eq(config.user, "b");
    config_fini(&config);
}
END_TEST

/* What is wrong, in which line of the file, and a word that the message must have.
   "[server]" and "state_dir" are lines 1 and 2. */
static const struct {
    const char *lines;
    int line;
    const char *word;
} mistakes[] = {
    {"nonsense\n", 3, "neither [section] nor KEY = VALUE"},
    {"\n\nstate_dri = /x\n", 5, "unknown key state_dri in [server]"},
    {"[servre]\nstate_dir = /x\n", 4, "unknown section [servre]"},
    {"user =\n", 3, "user has no value"},
    {"workers = 65\n", 3, "workers"},
    {"workers = -1\n", 3, "workers"},
    {"backup_interval = 0s\n", 3, "backup_interval"},
    {"backup_interval = often\n", 3, "duration"},
    {"backup_keep = 0\n", 3, "backup_keep"},
    {"backup_keep = 1001\n", 3, "backup_keep"},
    {"workers = four\n", 3, "workers"},
    {"workers = 4x\n", 3, "workers"},
    {"workers = 99999999999999999999\n", 3, "workers"},
    {"spin_us = 1001\n", 3, "spin_us"},
    {"payload_memory = 32M\n", 3, "64M"},
    {"payload_memory = lots\n", 3, "\"lots\""},
    {"log_level = loud\n", 3, "log_level"},
    {"device_dirs = 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n", 3, "too many"},
    {"origin_uris = 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17\n", 3, "too many"},
    {"[listen]\ntcp = x\n", 4, "unknown key tcp in [listen]"},
    {"[tls]\ncertificate = x\n", 4, "unknown key certificate in [tls]"},
    {"[nbd]\nlisten = /run/nbd.sock\n", 4, "/run/nbd.sock"},
    {"[nbd]\nlisten = tcp:host:99999\n", 4, "99999"},
    {"[nbd]\nlisten = unix:/a\nlisten = nonsense\n", 5, "nonsense"},
    {"[nbd]\ntls = maybe\n", 4, "tls is off, allowed or required"},
    {"[nbd]\nexport = x\n", 4, "unknown key export in [nbd]"},
    {"[metrics]\nport = 1\n", 4, "unknown key port in [metrics]"},
    {"[pool-defaults]\nio = async\n", 4, "io is buffered or direct"},
    {"[pool-defaults]\nblock_size = 32k\n", 4, "block_size"},
    {"[pool-defaults]\nblock_size = 65k\n", 4, "block_size"},
    {"[pool-defaults]\nblock_size = 2G\n", 4, "block_size"},
    {"[pool-defaults]\nblock_size = 64\n", 4, "\"64\""},
    {"[pool-defaults]\nmetadata_cache = 512k\n", 4, "metadata_cache"},
    {"[pool-defaults]\nmetadata_cache = 65G\n", 4, "metadata_cache"},
    {"[pool-defaults]\ncommit_interval = 5ms\n", 4, "between 10ms and 1h"},
    {"[pool-defaults]\ncommit_interval = 2h\n", 4, "between 10ms and 1h"},
    {"[pool-defaults]\ncommit_interval = soon\n", 4, "commit_interval"},
    {"[pool-defaults]\ncommit_max_dirty = 15\n", 4, "commit_max_dirty"},
    {"[pool-defaults]\nno_space_timeout = 1x\n", 4, "no_space_timeout"},
    {"[pool-defaults]\non_full = panic\n", 4, "on_full is queue or error, not panic"},
    {"[pool-defaults]\ndiscards = yes\n", 4, "discards is off, unmap or passdown"},
    {"[pool-defaults]\nzeroing = 1\n", 4, "zeroing is yes or no, not 1"},
    {"[pool-defaults]\nextend_metadata = x\n", 4, "extend_metadata is yes or no"},
    {"[pool-defaults]\nauto_extend = 80\n", 4, "PERCENT:STEP:LIMIT"},
    {"[pool-defaults]\nauto_extend = 0:1G:1T\n", 4, "PERCENT:STEP:LIMIT"},
    {"[pool-defaults]\nauto_extend = 101:1G:1T\n", 4, "PERCENT:STEP:LIMIT"},
    {"[pool-defaults]\nauto_extend = 80:x:1T\n", 4, "auto_extend"},
    {"[pool-defaults]\nauto_extend = 80:0%:1T\n", 4, "percentage"},
    {"[pool-defaults]\nauto_extend = 80:1G:5%5\n", 4, "percentage"},
    {"[pool-defaults]\novercommit = 300\n", 4, "percentage"},
    {"[pool-defaults]\novercommit = 0%\n", 4, "percentage"},
    {"[pool-defaults]\nauto_extend = 80:1G:1000\n", 4, "\"1000\""},
    {"[pool-defaults]\nname = x\n", 4, "unknown key name in [pool-defaults]"},
};

START_TEST(each_mistake_is_named_with_file_and_line)
{
    for (size_t i = 0; i < sizeof(mistakes) / sizeof(mistakes[0]); i++) {
        char where[96];

        ck_assert_msg(read_with(mistakes[i].lines) == -THIN_E_CONFIG, "%s",
                      mistakes[i].lines);
        snprintf(where, sizeof(where), "%s:%d: ", path, mistakes[i].line);
        ck_assert_msg(strncmp(err.text, where, strlen(where)) == 0, "%s gave %s",
                      mistakes[i].lines, err.text);
        ck_assert_msg(strstr(err.text, mistakes[i].word) != NULL, "%s gave %s",
                      mistakes[i].lines, err.text);
    }
}
END_TEST

START_TEST(the_first_of_two_mistakes_is_told)
{
    ck_assert_int_eq(read_with("workers = x\nspin_us = y\n"), -THIN_E_CONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "workers"));
}
END_TEST

START_TEST(lines_that_would_be_cut_are_refused)
{
    char lines[400];

    /* "user = " and the newline leave 182 bytes of the 190. */
    snprintf(lines, sizeof(lines), "user = %0182d\n", 1);
    ck_assert_int_eq(read_with(lines), 0);
    ck_assert_uint_eq(strlen(config.user), 182);
    config_fini(&config);
    snprintf(lines, sizeof(lines), "user = %0183d\n", 1);
    ck_assert_int_eq(read_with(lines), -THIN_E_CONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, ":3: line is longer than 190 bytes"));
    snprintf(lines, sizeof(lines), "\n# %0300d\n", 1);
    ck_assert_int_eq(read_with(lines), -THIN_E_CONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, ":4: "));
}
END_TEST

START_TEST(what_only_the_whole_file_tells_is_checked_too)
{
    ck_assert_int_eq(read_text("[server]\nworkers = 1\n"), -THIN_E_CONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "state_dir is missing"));
    ck_assert_int_eq(read_text(""), -THIN_E_CONFIG);
    ck_assert_int_eq(read_with("[listen]\ntls = *:1\n"), -THIN_E_CONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "cert, key and ca are needed"));
    ck_assert_int_eq(read_with("[listen]\ntls = *:1\n[tls]\ncert = c\nkey = k\n"),
                     -THIN_E_CONFIG);
    ck_assert_int_eq(read_with("[listen]\ntls = *:0x\n[tls]\ncert=c\nkey=k\nca=a\n"),
                     -THIN_E_CONFIG);
    ck_assert_ptr_nonnull(strstr(err.text, "[listen] tls"));
    /* NBD on TCP means TLS unless that is said to be off; on a unix socket it does not. */
    ck_assert_int_eq(read_with("[nbd]\nlisten = tcp:*\n"), -THIN_E_CONFIG);
    ck_assert_int_eq(read_with("[nbd]\nlisten = tcp:*\ntls = off\n"), 0);
    config_fini(&config);
    ck_assert_int_eq(read_with("[nbd]\nlisten = unix:/x\n"), 0);
    config_fini(&config);
    ck_assert_int_eq(read_with("[nbd]\nlisten = unix:/x\ntls = required\n"),
                     -THIN_E_CONFIG);
}
END_TEST

START_TEST(a_file_that_cannot_be_read_is_an_errno)
{
    ck_assert_int_eq(config_read("/nonexistent/thinsrv.conf", &config, &err), -ENOENT);
    ck_assert_ptr_nonnull(strstr(err.text, "/nonexistent/thinsrv.conf"));
    ck_assert_int_eq(config_read(dir, &config, &err), -EISDIR);
}
END_TEST

START_TEST(pool_keys_are_the_same_for_pool_set)
{
    struct pool_config pool;
    bool known = false;

    pool_config_default(&pool);
    ck_assert_int_eq(config_parse_pool_key(&pool, "on_full", "error", &known, &err), 0);
    ck_assert(known);
    ck_assert_int_eq(pool.on_full, POOL_ERROR);
    ck_assert_int_eq(
        config_parse_pool_key(&pool, "auto_extend", "90:1G:2G", &known, &err), 0);
    ck_assert_uint_eq(pool.extend_data.percent, 90);
    ck_assert_int_eq(config_parse_pool_key(&pool, "auto_extend", "x", &known, &err),
                     -THIN_E_INVALID);
    ck_assert_uint_eq(pool.extend_data.percent, 90); /* untouched */
    ck_assert_int_eq(config_parse_pool_key(&pool, "auto_extend", "off", &known, &err), 0);
    ck_assert_uint_eq(pool.extend_data.percent, 0);
    ck_assert_int_eq(config_parse_pool_key(&pool, "colour", "red", &known, &err), 0);
    ck_assert(!known);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("config");
    TCase *tc = tcase_create("config");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, one_line_is_enough);
    tcase_add_test(tc, every_key_is_read);
    tcase_add_test(tc, a_value_said_twice_is_the_last_one);
    tcase_add_test(tc, each_mistake_is_named_with_file_and_line);
    tcase_add_test(tc, the_first_of_two_mistakes_is_told);
    tcase_add_test(tc, lines_that_would_be_cut_are_refused);
    tcase_add_test(tc, what_only_the_whole_file_tells_is_checked_too);
    tcase_add_test(tc, a_file_that_cannot_be_read_is_an_errno);
    tcase_add_test(tc, pool_keys_are_the_same_for_pool_set);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
