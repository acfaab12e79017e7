#include <check.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/auth.h"

static char dir[] = "/tmp/thin-auth-XXXXXX";
static char path[64];
static struct auth *auth;
static struct auth_peer vm1, backup, alice, nobody;
static struct thin_error err;

static void
setup(void)
{
    ck_assert_ptr_nonnull(mkdtemp(dir));
    snprintf(path, sizeof(path), "%s/access.rules", dir);
    thin_error_init(&err);
    auth_peer_cert(&vm1, "cert:vm1");
    auth_peer_cert(&backup, "cert:backup");
    auth_peer_cert(&nobody, "");
    memset(&alice, 0, sizeof(alice));
    alice.local = true;
    snprintf(alice.identity, sizeof(alice.identity), "user:alice");
    snprintf(alice.groups[0], sizeof(alice.groups[0]), "users");
    snprintf(alice.groups[1], sizeof(alice.groups[1]), "disk");
    alice.nr_groups = 2;
    auth = NULL;
}

static void
teardown(void)
{
    char new_path[80];

    auth_destroy(auth);
    snprintf(new_path, sizeof(new_path), "%s.new", path);
    rmdir(new_path);
    unlink(path);
    rmdir(dir);
    memcpy(dir + strlen(dir) - 6, "XXXXXX", 6);
}

static void
write_rules(const char *text)
{
    FILE *file = fopen(path, "we");

    ck_assert_ptr_nonnull(file);
    fputs(text, file);
    ck_assert_int_eq(fclose(file), 0);
}

static void
rules(const char *text)
{
    write_rules(text);
    auth_destroy(auth);
    auth = NULL;
    ck_assert_msg(auth_create(dir, &auth, &err) == 0, "%s", err.text);
}

START_TEST(without_rules_nobody_may_anything)
{
    ck_assert_int_eq(auth_create(dir, &auth, &err), 0); /* not even a file */
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank"), AUTH_NONE);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank/vol"), AUTH_NONE);
    ck_assert_int_eq(auth_right_on(auth, &alice, "tank/vol"), AUTH_NONE);
    ck_assert(!auth_may_know_pool(auth, &vm1, "tank"));
    ck_assert(!auth_is_server_admin(auth, &vm1));
}
END_TEST

START_TEST(rights_contain_those_behind_them)
{
    static const char *const names[] = {"none", "read", "write", "manage", "admin"};

    for (int has = AUTH_READ; has <= AUTH_ADMIN; has++) {
        char rule[64];

        snprintf(rule, sizeof(rule), "cert:vm1 %s tank/vol\n", names[has]);
        rules(rule);
        for (int wanted = AUTH_READ; wanted <= AUTH_ADMIN; wanted++)
            ck_assert_int_eq(
                auth_check(auth, &vm1, "tank/vol", (enum auth_right)wanted, &err),
                wanted <= has ? 0 : -THIN_E_DENIED);
    }
}
END_TEST

START_TEST(the_highest_of_several_rules_counts_in_any_order)
{
    rules("* read tank/*\ncert:vm1 manage tank/v*\ncert:vm1 write tank/vol\n");
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank/vol"), AUTH_MANAGE);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank/x"), AUTH_READ);
    ck_assert_int_eq(auth_right_on(auth, &backup, "tank/vol"), AUTH_READ);
}
END_TEST

START_TEST(no_right_at_all_looks_like_no_object)
{
    rules("cert:vm1 read tank/vol\n");
    ck_assert_int_eq(auth_check(auth, &backup, "tank/vol", AUTH_READ, &err),
                     -THIN_E_NOT_FOUND);
    ck_assert_str_eq(err.text, "no such volume: tank/vol");
    ck_assert_int_eq(auth_check(auth, &backup, "tank", AUTH_READ, &err),
                     -THIN_E_NOT_FOUND);
    ck_assert_str_eq(err.text, "no such pool: tank");
    /* Who may something is told what he lacks. */
    ck_assert_int_eq(auth_check(auth, &vm1, "tank/vol", AUTH_WRITE, &err),
                     -THIN_E_DENIED);
    ck_assert_ptr_nonnull(strstr(err.text, "write"));
    ck_assert_ptr_nonnull(strstr(err.text, "read"));
}
END_TEST

START_TEST(all_volumes_of_a_pool_are_not_the_pool)
{
    rules("cert:vm1 admin tank/*\n");
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank/vol"), AUTH_ADMIN);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank"), AUTH_NONE);
    ck_assert_int_eq(auth_check(auth, &vm1, "tank", AUTH_READ, &err), -THIN_E_NOT_FOUND);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank2/vol"), AUTH_NONE);
    /* But that the pool is there is no secret to him. */
    ck_assert(auth_may_know_pool(auth, &vm1, "tank"));
    ck_assert(!auth_may_know_pool(auth, &vm1, "tank2"));
    ck_assert(!auth_may_know_pool(auth, &backup, "tank"));
}
END_TEST

START_TEST(a_pool_is_not_its_volumes)
{
    rules("cert:vm1 admin tank\n");
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank"), AUTH_ADMIN);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank/vol"), AUTH_NONE);
    ck_assert(!auth_may_know_pool(auth, &vm1, "tank")); /* of volumes it says nothing */
    ck_assert(!auth_is_server_admin(auth, &vm1));
}
END_TEST

START_TEST(globs_stay_on_their_side_of_the_slash)
{
    rules("cert:vm1 write t?nk/vm-*\n");
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank/vm-1"), AUTH_WRITE);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tonk/vm-"), AUTH_WRITE);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank/vm"), AUTH_NONE);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "taank/vm-1"), AUTH_NONE);
    ck_assert(auth_may_know_pool(auth, &vm1, "tank"));
    rules("cert:vm1 write *\n");
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank"), AUTH_WRITE);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank/vol"), AUTH_NONE);
    ck_assert(!auth_is_server_admin(auth, &vm1)); /* that needs admin on * */
    rules("cert:vm1 admin *\n");
    ck_assert(auth_is_server_admin(auth, &vm1));
    ck_assert(!auth_is_server_admin(auth, &backup));
}
END_TEST

START_TEST(subjects_are_compared_whole_and_by_kind)
{
    rules("cert:vm1 read a/a\nuser:alice read b/b\ngroup:disk read c/c\n* read d/d\n");
    ck_assert_int_eq(auth_right_on(auth, &vm1, "a/a"), AUTH_READ);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "b/b"), AUTH_NONE);
    ck_assert_int_eq(auth_right_on(auth, &alice, "b/b"), AUTH_READ);
    ck_assert_int_eq(auth_right_on(auth, &alice, "c/c"), AUTH_READ);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "c/c"), AUTH_NONE);
    ck_assert_int_eq(auth_right_on(auth, &alice, "d/d"), AUTH_READ);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "d/d"), AUTH_READ);
    /* Nobody is not even `*`: that is every *authenticated* client. */
    ck_assert_int_eq(auth_right_on(auth, &nobody, "d/d"), AUTH_NONE);

    /* A certificate cannot speak as a user, a group or a star. */
    auth_peer_cert(&vm1, "cert:user:alice");
    ck_assert_int_eq(auth_right_on(auth, &vm1, "b/b"), AUTH_NONE);
    auth_peer_cert(&vm1, "cert:vm11");
    ck_assert_int_eq(auth_right_on(auth, &vm1, "a/a"), AUTH_NONE);
    auth_peer_cert(&vm1, "cert:vm");
    ck_assert_int_eq(auth_right_on(auth, &vm1, "a/a"), AUTH_NONE);
}
END_TEST

START_TEST(root_and_the_services_group_are_admins_on_the_unix_socket)
{
    struct auth_peer peer;

    ck_assert_int_eq(auth_create(dir, &auth, &err), 0);
    auth_peer_local(&peer, 0, 12345);
    ck_assert(peer.local && peer.local_admin);
    ck_assert_str_eq(peer.identity, "user:root");
    ck_assert(auth_is_server_admin(auth, &peer));
    ck_assert_int_eq(auth_right_on(auth, &peer, "any/thing"), AUTH_ADMIN);
    auth_peer_local(&peer, 54321, getegid());
    ck_assert(peer.local_admin);
    auth_peer_local(&peer, 54321, getegid() + 4242);
    ck_assert(peer.local && !peer.local_admin);
    ck_assert_str_eq(peer.identity, "user:54321"); /* a user without a name */
    ck_assert_int_eq(auth_right_on(auth, &peer, "any/thing"), AUTH_NONE);
}
END_TEST

START_TEST(mistakes_in_the_file_are_named_with_file_and_line)
{
    static const struct {
        const char *line;
        const char *word;
    } mistakes[] = {
        {"cert:vm1 read", "WHO RIGHT GLOB"},
        {"cert:vm1 read tank vol", "WHO RIGHT GLOB"},
        {"cert:vm1 own tank", "unknown right own"},
        {"cert:vm1 none tank", "unknown right none"},
        {"vm1 read tank", "bad subject vm1"},
        {"cert: read tank", "bad subject cert:"},
        {"group: read tank", "bad subject group:"},
        {"user: read tank", "bad subject user:"},
        {"** read tank", "bad subject **"},
        {"cert:vm1 read /vol", "bad object /vol"},
        {"cert:vm1 read tank/", "bad object tank/"},
        {"cert:vm1 read a/b/c", "bad object a/b/c"},
        {"cert:vm1 read ta[nk]", "bad byte"},
        {"cert:vm1 read t\xc3\xa4nk", "bad byte"},
    };

    for (size_t i = 0; i < sizeof(mistakes) / sizeof(mistakes[0]); i++) {
        char text[256], where[96];

        snprintf(text, sizeof(text), "# comment\n\n* read tank\n%s\n", mistakes[i].line);
        write_rules(text);
        ck_assert_msg(auth_create(dir, &auth, &err) == -THIN_E_CONFIG, "%s",
                      mistakes[i].line);
        snprintf(where, sizeof(where), "%s:4: ", path);
        ck_assert_msg(strncmp(err.text, where, strlen(where)) == 0, "%s", err.text);
        ck_assert_msg(strstr(err.text, mistakes[i].word) != NULL, "%s", err.text);
    }
}
END_TEST

START_TEST(too_long_words_are_refused_and_not_cut)
{
    char text[1200];

    snprintf(text, sizeof(text), "cert:%0250d read tank\n", 1); /* 255 bytes fit */
    rules(text);
    snprintf(text, sizeof(text), "cert:%0251d read tank\n", 1);
    write_rules(text);
    ck_assert_int_eq(auth_reload(auth, &err), -THIN_E_CONFIG);
    snprintf(text, sizeof(text), "* read %0255d\n", 1);
    rules(text);
    snprintf(text, sizeof(text), "* read %0256d\n", 1);
    write_rules(text);
    ck_assert_int_eq(auth_reload(auth, &err), -THIN_E_CONFIG);
    snprintf(text, sizeof(text), "* read tank%01100d\n", 1);
    write_rules(text);
    ck_assert_int_eq(auth_reload(auth, &err), -THIN_E_CONFIG);
}
END_TEST

START_TEST(a_reload_that_fails_leaves_the_old_rules)
{
    rules("cert:vm1 read tank\n");
    write_rules("cert:vm1 write tank\n");
    ck_assert_int_eq(auth_reload(auth, &err), 0);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank"), AUTH_WRITE);
    write_rules("cert:vm1 admin tank\nnonsense\n");
    ck_assert_int_eq(auth_reload(auth, &err), -THIN_E_CONFIG);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank"), AUTH_WRITE);
}
END_TEST

static struct auth_rule
rule_of(const char *who, enum auth_right right, const char *glob)
{
    struct auth_rule rule = {.right = right};

    snprintf(rule.who, sizeof(rule.who), "%s", who);
    snprintf(rule.glob, sizeof(rule.glob), "%s", glob);
    return rule;
}

static void
grant(const char *who, enum auth_right right, const char *glob)
{
    struct auth_rule rule = rule_of(who, right, glob);
    struct auth_change *change = NULL;

    ck_assert_int_eq(auth_begin_grant(auth, &rule, &change, &err), 0);
    ck_assert_ptr_nonnull(change);
    ck_assert_int_eq(auth_write(change, &err), 0);
    auth_end(auth, change, true);
}

START_TEST(what_is_granted_is_written_and_read_again)
{
    const struct auth_rule *list;
    struct auth_rule rule;
    struct auth_change *change = NULL;
    struct auth *again;

    ck_assert_int_eq(auth_create(dir, &auth, &err), 0);
    grant("cert:vm1", AUTH_WRITE, "tank/vm-*");
    grant("group:disk", AUTH_MANAGE, "tank");
    grant("*", AUTH_READ, "public/?");
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank/vm-7"), AUTH_WRITE);

    ck_assert_int_eq(auth_create(dir, &again, &err), 0);
    ck_assert_uint_eq(auth_rules(again, &list), 3);
    ck_assert_str_eq(list[0].who, "cert:vm1");
    ck_assert_int_eq(list[0].right, AUTH_WRITE);
    ck_assert_str_eq(list[0].glob, "tank/vm-*");
    ck_assert_str_eq(list[1].who, "group:disk");
    ck_assert_str_eq(list[2].glob, "public/?");
    auth_destroy(again);

    rule = rule_of("group:disk", AUTH_MANAGE, "tank");
    ck_assert_int_eq(auth_begin_revoke(auth, &rule, &change, &err), 0);
    ck_assert_int_eq(auth_write(change, &err), 0);
    auth_end(auth, change, true);
    ck_assert_int_eq(auth_right_on(auth, &alice, "tank"), AUTH_NONE);
    ck_assert_int_eq(auth_reload(auth, &err), 0);
    ck_assert_uint_eq(auth_rules(auth, &list), 2);
    ck_assert_str_eq(list[1].who, "*");
}
END_TEST

START_TEST(a_change_takes_effect_only_when_it_was_written)
{
    struct auth_rule rule = rule_of("cert:vm1", AUTH_READ, "tank");
    struct auth_change *change = NULL, *second = NULL;
    struct auth_rule other = rule_of("cert:vm2", AUTH_READ, "tank");
    char new_path[80];

    ck_assert_int_eq(auth_create(dir, &auth, &err), 0);
    ck_assert_int_eq(auth_begin_grant(auth, &rule, &change, &err), 0);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank"), AUTH_NONE);
    /* One at a time. */
    ck_assert_int_eq(auth_begin_grant(auth, &other, &second, &err), -THIN_E_BUSY);
    /* The new file cannot be made: a folder has its name. */
    snprintf(new_path, sizeof(new_path), "%s.new", path);
    ck_assert_int_eq(mkdir(new_path, 0700), 0);
    ck_assert_int_lt(auth_write(change, &err), 0);
    auth_end(auth, change, false);
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank"), AUTH_NONE);
    ck_assert_int_eq(rmdir(new_path), 0);
    grant("cert:vm1", AUTH_READ, "tank");
    ck_assert_int_eq(auth_right_on(auth, &vm1, "tank"), AUTH_READ);
}
END_TEST

START_TEST(granting_twice_is_nothing_and_revoking_nothing_an_error)
{
    struct auth_rule rule = rule_of("cert:vm1", AUTH_READ, "tank");
    struct auth_change *change = (struct auth_change *)&rule;

    ck_assert_int_eq(auth_create(dir, &auth, &err), 0);
    grant("cert:vm1", AUTH_READ, "tank");
    ck_assert_int_eq(auth_begin_grant(auth, &rule, &change, &err), 0);
    ck_assert_ptr_null(change);
    rule.right = AUTH_WRITE; /* another rule */
    ck_assert_int_eq(auth_begin_revoke(auth, &rule, &change, &err), -THIN_E_NOT_FOUND);
    ck_assert_ptr_nonnull(strstr(err.text, "cert:vm1 write tank"));
}
END_TEST

START_TEST(a_rule_that_would_forge_a_line_is_refused)
{
    static const struct {
        const char *who;
        const char *glob;
    } forged[] = {{"cert:x\n* admin *", "tank"},
                  {"cert:a b", "tank"},
                  {"cert:x", "tank\n* admin *"},
                  {"cert:x", "tank x"},
                  {"cert:x", ""},
                  {"", "tank"},
                  {"cert:", "tank"},
                  {"# cert:x", "tank"}};
    const struct auth_rule *list;

    ck_assert_int_eq(auth_create(dir, &auth, &err), 0);
    for (size_t i = 0; i < sizeof(forged) / sizeof(forged[0]); i++) {
        struct auth_rule rule = rule_of(forged[i].who, AUTH_READ, forged[i].glob);
        struct auth_change *change = NULL;

        ck_assert_int_eq(auth_begin_grant(auth, &rule, &change, &err), -THIN_E_INVALID);
        ck_assert_ptr_null(change);
    }
    ck_assert_uint_eq(auth_rules(auth, &list), 0);
}
END_TEST

START_TEST(rules_have_a_limit)
{
    FILE *file = fopen(path, "we");
    struct auth_rule rule = rule_of("cert:one-more", AUTH_READ, "tank");
    struct auth_change *change = NULL;

    ck_assert_ptr_nonnull(file);
    for (unsigned i = 0; i < AUTH_RULES_MAX; i++)
        fprintf(file, "cert:vm%u read tank\n", i);
    ck_assert_int_eq(fclose(file), 0);
    ck_assert_int_eq(auth_create(dir, &auth, &err), 0);
    ck_assert_int_eq(auth_begin_grant(auth, &rule, &change, &err), -THIN_E_LIMIT);
    file = fopen(path, "ae");
    ck_assert_ptr_nonnull(file);
    fprintf(file, "cert:one-more read tank\n");
    ck_assert_int_eq(fclose(file), 0);
    ck_assert_int_eq(auth_reload(auth, &err), -THIN_E_CONFIG);
}
END_TEST

START_TEST(rights_have_words)
{
    enum auth_right right = AUTH_NONE;

    for (int r = AUTH_READ; r <= AUTH_ADMIN; r++) {
        ck_assert_int_eq(
            auth_right_parse(auth_right_name((enum auth_right)r), &right, &err), 0);
        ck_assert_int_eq(right, r);
    }
    ck_assert_int_eq(auth_right_parse("none", &right, &err), -THIN_E_INVALID);
    ck_assert_int_eq(auth_right_parse("Admin", &right, &err), -THIN_E_INVALID);
    ck_assert_int_eq(right, AUTH_ADMIN);
}
END_TEST

int
main(void)
{
    Suite *suite = suite_create("auth");
    TCase *tc = tcase_create("auth");
    SRunner *runner;
    int failed;

    tcase_add_checked_fixture(tc, setup, teardown);
    tcase_add_test(tc, without_rules_nobody_may_anything);
    tcase_add_test(tc, rights_contain_those_behind_them);
    tcase_add_test(tc, the_highest_of_several_rules_counts_in_any_order);
    tcase_add_test(tc, no_right_at_all_looks_like_no_object);
    tcase_add_test(tc, all_volumes_of_a_pool_are_not_the_pool);
    tcase_add_test(tc, a_pool_is_not_its_volumes);
    tcase_add_test(tc, globs_stay_on_their_side_of_the_slash);
    tcase_add_test(tc, subjects_are_compared_whole_and_by_kind);
    tcase_add_test(tc, root_and_the_services_group_are_admins_on_the_unix_socket);
    tcase_add_test(tc, mistakes_in_the_file_are_named_with_file_and_line);
    tcase_add_test(tc, too_long_words_are_refused_and_not_cut);
    tcase_add_test(tc, a_reload_that_fails_leaves_the_old_rules);
    tcase_add_test(tc, what_is_granted_is_written_and_read_again);
    tcase_add_test(tc, a_change_takes_effect_only_when_it_was_written);
    tcase_add_test(tc, granting_twice_is_nothing_and_revoking_nothing_an_error);
    tcase_add_test(tc, a_rule_that_would_forge_a_line_is_refused);
    tcase_add_test(tc, rules_have_a_limit);
    tcase_add_test(tc, rights_have_words);
    suite_add_tcase(suite, tc);
    runner = srunner_create(suite);
    srunner_run_all(runner, CK_NORMAL);
    failed = srunner_ntests_failed(runner);
    srunner_free(runner);
    return failed ? EXIT_FAILURE : EXIT_SUCCESS;
}
