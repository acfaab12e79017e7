/*
 * What is the NBD device's own: how it is opened, and servers that lack something or
 * fail. test_nbd_lost.c has what becomes of lost connections, test_contract.c what holds
 * for every device.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>

#include "core/base/bytes.h"
#include "tests/unit/device/nbd_fixture.h"

static int
run_op(enum device_op op, uint64_t offset, uint64_t len, unsigned flags)
{
    struct device_io io = {.op = op, .offset = offset, .len = len, .flags = flags};

    return device_wait(dev, &io);
}

static unsigned
count_in_log(const char *what)
{
    char command[256], line[32];
    FILE *f;
    unsigned n;

    snprintf(command, sizeof(command), "grep -c -e '%s' %s/log", what, server.dir);
    f = popen(command, "r");
    ck_assert_ptr_nonnull(f);
    ck_assert_ptr_nonnull(fgets(line, sizeof(line), f));
    pclose(f);
    n = (unsigned)strtoul(line, NULL, 10);
    return n;
}

/* ---- opening ----------------------------------------------------------------------------- */

START_TEST(nobody_there_is_told_in_words)
{
    setup();
    ck_assert_int_eq(try_open(), -ENOENT);
    ck_assert_ptr_nonnull(strstr(words.text, server.uri));
    params.uri = "nbd://127.0.0.1:1/";
    ck_assert_int_lt(try_open(), 0);
    params.uri = "http://127.0.0.1/";
    ck_assert_int_lt(try_open(), 0);
    params.uri = "nbd+unix:///";
    ck_assert_int_lt(try_open(), 0);
    params.uri = "";
    ck_assert_int_eq(try_open(), -THIN_E_INVALID);
    params.uri = server.uri;
    params.connections = DEVICE_NBD_CONNECTIONS_MAX + 1;
    ck_assert_int_eq(try_open(), -THIN_E_INVALID);
    teardown();
}
END_TEST

START_TEST(a_server_that_does_not_greet_is_given_up)
{
    int fd;

    setup();
    fd = listen_at(server.socket);
    params.connect_timeout_ms = 200;
    ck_assert_int_eq(try_open(), -THIN_E_TIMED_OUT);
    close(fd);
    teardown();
}
END_TEST

START_TEST(what_the_server_offers_is_told)
{
    setup();
    serve("memory 1M");
    ck_assert_uint_eq(dev->size, MIB);
    ck_assert_str_eq(dev->ops->kind, "nbd");
    ck_assert(dev->limits.discards);
    ck_assert(dev->limits.zeroes_fast);
    ck_assert(dev->limits.zeroes_fresh);
    ck_assert(!dev->limits.grows);
    ck_assert_int_eq(run_op(DEVICE_ALLOCATE, 0, 512, 0), -THIN_E_UNSUPPORTED);
    teardown();
}
END_TEST

START_TEST(a_read_only_export_is_not_opened_to_be_written)
{
    setup();
    nbdkit_start(&server, "-r memory 1M");
    ck_assert_int_eq(try_open(), -THIN_E_READ_ONLY);
    params.read_only = true;
    must_open();
    ck_assert(dev->read_only);
    ck_assert_int_eq(device_write_wait(dev, 0, a, 512, 0), -THIN_E_READ_ONLY);
    ck_assert_int_eq(device_read_wait(dev, 0, b, 512), 0);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    teardown();
}
END_TEST

START_TEST(a_server_that_cannot_flush_is_not_opened_to_be_written)
{
    setup();
    nbdkit_start(&server, "eval get_size='echo 1048576' can_flush='exit 3' "
                          "pread='dd if=/dev/zero bs=$3 count=1 status=none' "
                          "pwrite='cat >/dev/null'");
    ck_assert_int_eq(try_open(), -THIN_E_UNSUPPORTED);
    params.read_only = true;
    must_open();
    ck_assert_int_eq(device_read_wait(dev, 0, b, 4096), 0);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    teardown();
}
END_TEST

START_TEST(an_empty_export_is_refused)
{
    setup();
    nbdkit_start(&server, "memory 511");
    ck_assert_int_eq(try_open(), -THIN_E_INVALID);
    teardown();
}
END_TEST

START_TEST(large_units_are_bridged_for_reading_only)
{
    static const struct {
        uint64_t offset, len;
    } parts[] = {{0, 512}, {512, 512}, {4096, 8192}, {3584, 1024}, {512, 600 * 1024}};
    struct device_extent extents[4];
    struct device_io io = {.op = DEVICE_EXTENTS,
                           .offset = 512,
                           .len = 1024,
                           .extents = extents,
                           .max_extents = 4};

    setup();
    nbdkit_start(
        &server,
        "--filter=blocksize-policy --filter=cow pattern 1M blocksize-minimum=4096 "
        "blocksize-preferred=4096 blocksize-error-policy=error");
    ck_assert_int_eq(try_open(), -THIN_E_UNSUPPORTED);
    params.read_only = true;
    must_open();
    ck_assert_int_eq(device_read_wait(dev, 0, a, MIB), 0);
    for (uint64_t i = 0; i < MIB; i += 8)
        ck_assert_uint_eq(load_be64(a + i), i);
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        ck_assert_int_eq(device_read_wait(dev, parts[i].offset, b, parts[i].len), 0);
        ck_assert_mem_eq(b, a + parts[i].offset, parts[i].len);
    }
    ck_assert_int_eq(device_wait(dev, &io), 0);
    ck_assert_uint_eq(io.ret_nr_extents, 1);
    ck_assert_uint_le(extents[0].len, 1024);
    teardown();
}
END_TEST

/* ---- what servers lack --------------------------------------------------------------------- */

START_TEST(fua_is_a_write_and_a_flush_where_unknown)
{
    setup();
    serve("--filter=log --filter=fua memory 1M logfile=$DIR/log");
    ck_assert_int_eq(device_write_wait(dev, 0, a, MIB, DEVICE_FUA), 0);
    ck_assert_uint_eq(count_in_log("connection=[0-9]* Flush"), 1);
    ck_assert_int_eq(device_zero_wait(dev, 0, 4096, DEVICE_FUA), 0);
    ck_assert_uint_eq(count_in_log("connection=[0-9]* Flush"), 2);
    ck_assert_int_eq(device_read_wait(dev, 4096, b, MIB - 4096), 0);
    ck_assert_mem_eq(b, a + 4096, MIB - 4096);
    teardown();
}
END_TEST

START_TEST(fua_is_sent_where_known)
{
    setup();
    serve("--filter=log memory 1M logfile=$DIR/log");
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, DEVICE_FUA), 0);
    ck_assert_uint_eq(count_in_log("Write.*fua=1"), 1);
    ck_assert_uint_eq(count_in_log("connection=[0-9]* Flush"), 0);
    teardown();
}
END_TEST

START_TEST(zeros_are_written_where_zeroes_are_unknown)
{
    setup();
    serve("--filter=nozero memory 1M");
    ck_assert(!dev->limits.zeroes_fast);
    ck_assert_int_eq(device_write_wait(dev, 0, a, MIB, 0), 0);
    ck_assert_int_eq(run_op(DEVICE_WRITE_ZEROES, 0, 4096, DEVICE_ONLY_FAST), -EOPNOTSUPP);
    ck_assert_int_eq(device_zero_wait(dev, 512, MIB - 1024, DEVICE_NO_UNMAP), 0);
    memset(a + 512, 0, MIB - 1024);
    ck_assert_int_eq(device_read_wait(dev, 0, b, MIB), 0);
    ck_assert_mem_eq(a, b, MIB);
    teardown();
}
END_TEST

START_TEST(slow_zeroes_are_refused_if_they_must_be_fast)
{
    setup();
    serve("--filter=nozero memory 1M fastzeromode=slow");
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, 0), 0);
    ck_assert_int_eq(run_op(DEVICE_WRITE_ZEROES, 0, 4096, DEVICE_ONLY_FAST), -EOPNOTSUPP);
    ck_assert_int_eq(device_read_wait(dev, 0, b, 4096), 0);
    ck_assert_mem_eq(a, b, 4096);
    teardown();
}
END_TEST

START_TEST(without_block_status_all_is_data)
{
    struct device_extent extents[2];
    struct device_io io = {
        .op = DEVICE_EXTENTS, .len = MIB, .extents = extents, .max_extents = 2};

    setup();
    serve("--filter=noextents memory 1M");
    ck_assert_int_eq(device_wait(dev, &io), 0);
    ck_assert_uint_eq(io.ret_nr_extents, 1);
    ck_assert_int_eq(extents[0].kind, DEVICE_EXTENT_DATA);
    ck_assert_uint_eq(extents[0].len, MIB);
    nbdkit_kill(&server);
    device_close_wait(take(dev));
    serve("--no-sr memory 1M");
    ck_assert(!dev->limits.zeroes_fresh);
    ck_assert_int_eq(device_wait(dev, &io), 0);
    ck_assert_int_eq(extents[0].kind, DEVICE_EXTENT_DATA);
    ck_assert_int_eq(device_write_wait(dev, 0, a, MIB, 0), 0);
    ck_assert_int_eq(device_read_wait(dev, 0, b, MIB), 0);
    ck_assert_mem_eq(a, b, MIB);
    teardown();
}
END_TEST

/* Extents that begin and end inside sectors: only whole sectors of zeros are zeros. */
START_TEST(extents_are_rounded_to_what_is_surely_zero)
{
    struct device_extent extents[8];
    struct device_io io = {
        .op = DEVICE_EXTENTS, .len = 8192, .extents = extents, .max_extents = 8};

    setup();
    serve("eval get_size='echo 8192' can_extents='exit 0' can_write='exit 0' "
          "can_flush='exit 0' flush='exit 0' pwrite='cat >/dev/null' "
          "pread='dd if=/dev/zero bs=$3 count=1 status=none' "
          "extents='echo 0 1000 hole,zero; echo 1000 200; echo 1200 2000 zero; "
          "echo 3200 4992 hole'");
    ck_assert_int_eq(device_wait(dev, &io), 0);
    ck_assert_uint_eq(io.ret_nr_extents, 4);
    ck_assert_int_eq(extents[0].kind, DEVICE_EXTENT_HOLE);
    ck_assert_uint_eq(extents[0].len, 512);
    ck_assert_int_eq(extents[1].kind, DEVICE_EXTENT_DATA);
    ck_assert_uint_eq(extents[1].len, 1024); /* 512 to 1536 */
    ck_assert_int_eq(extents[2].kind, DEVICE_EXTENT_ZERO);
    ck_assert_uint_eq(extents[2].len, 1536); /* to 3072 */
    /* A hole that is not said to be zeros may read as anything. */
    ck_assert_int_eq(extents[3].kind, DEVICE_EXTENT_DATA);
    ck_assert_uint_eq(extents[3].len, 8192 - 3072);
    io.offset = 1536;
    io.len = 1024;
    io.max_extents = 1;
    ck_assert_int_eq(device_wait(dev, &io), 0);
    ck_assert_int_eq(extents[0].kind, DEVICE_EXTENT_ZERO);
    ck_assert_uint_eq(extents[0].len, 1024);
    teardown();
}
END_TEST

START_TEST(requests_are_cut_to_what_the_server_takes)
{
    setup();
    serve("--filter=blocksize-policy memory 1M blocksize-minimum=512 "
          "blocksize-preferred=4096 blocksize-maximum=65536 "
          "blocksize-error-policy=error");
    ck_assert_int_eq(device_write_wait(dev, 0, a, MIB, DEVICE_FUA), 0);
    ck_assert_int_eq(device_read_wait(dev, 512, b, MIB - 512), 0);
    ck_assert_mem_eq(a + 512, b, MIB - 512);
    ck_assert_int_eq(device_zero_wait(dev, 0, MIB, 0), 0);
    ck_assert_int_eq(device_read_wait(dev, 0, b, MIB), 0);
    for (size_t i = 0; i < MIB; i++)
        ck_assert_int_eq(b[i], 0);
    teardown();
}
END_TEST

/* More than all commands and bounce buffers at once, in memory of all shapes. */
START_TEST(a_flood_waits_in_line)
{
    enum { N = 300, LEN = 3072 };
    static struct request q[N];
    static struct iovec iov[N][3];

    setup();
    serve("memory 1M");
    for (unsigned i = 0; i < N; i++) {
        start(&q[i], DEVICE_FLUSH, 0, NULL, 0);
        while (q[i].nr_done == 0 && i % 50 == 49)
            ck_assert_int_eq(loop_run_once(loop), 0);
    }
    for (unsigned i = 0; i < N; i++)
        wait_for(&q[i]);
    for (unsigned i = 0; i < N; i++) {
        iov[i][0] = (struct iovec){a + i * LEN, 100};
        iov[i][1] = (struct iovec){a + i * LEN + 100, 1436};
        iov[i][2] = (struct iovec){a + i * LEN + 1536, 1536};
        q[i] = (struct request){.io = {.op = DEVICE_WRITE,
                                       .offset = i * LEN,
                                       .len = LEN,
                                       .iov = iov[i],
                                       .nr_iov = 3,
                                       .flags = i % 2 ? DEVICE_FUA : 0,
                                       .done = request_done}};
        device_submit(dev, &q[i].io);
    }
    for (unsigned i = 0; i < N; i++)
        ck_assert_int_eq(wait_for(&q[i]), 0);
    ck_assert_int_eq(device_read_wait(dev, 0, b, N * LEN), 0);
    ck_assert_mem_eq(a, b, N * LEN);
    teardown();
}
END_TEST

START_TEST(several_connections_share_the_work)
{
    enum { N = 32 };
    static struct request q[N];

    setup();
    params.connections = 4;
    serve("--filter=log memory 1M logfile=$DIR/log");
    run_for_ms(100);
    for (unsigned i = 0; i < N; i++)
        start(&q[i], DEVICE_WRITE, i * 4096, a + i * 4096, 4096);
    for (unsigned i = 0; i < N; i++)
        ck_assert_int_eq(wait_for(&q[i]), 0);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    for (unsigned i = 1; i <= 4; i++) {
        char what[64];

        snprintf(what, sizeof(what), "connection=%u Write", i);
        ck_assert_uint_gt(count_in_log(what), 0);
    }
    ck_assert_int_eq(device_read_wait(dev, 0, b, N * 4096), 0);
    ck_assert_mem_eq(a, b, N * 4096);
    teardown();
}
END_TEST

START_TEST(one_connection_where_more_are_not_safe)
{
    setup();
    params.connections = 4;
    serve("--filter=log --filter=multi-conn memory 1M multi-conn-mode=disable "
          "logfile=$DIR/log");
    run_for_ms(100);
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, 0), 0);
    ck_assert_uint_eq(count_in_log("Connect"), 1);
    teardown();
}
END_TEST

/* ---- errors ----------------------------------------------------------------------------------- */

START_TEST(an_error_is_the_requests_own)
{
    setup();
    serve("--filter=error memory 1M error=ENOSPC error-file=$DIR/fail "
          "error-pwrite-rate=100% error-pread-rate=0");
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, 0), 0);
    {
        char path[160];

        snprintf(path, sizeof(path), "%s/fail", server.dir);
        close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
        ck_assert_int_eq(device_write_wait(dev, 0, b, MIB, 0), -ENOSPC);
        unlink(path);
    }
    ck_assert_int_eq(device_write_wait(dev, 4096, a, 4096, 0), 0);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    ck_assert(!dev->lost);
    teardown();
}
END_TEST

START_TEST(a_failed_flush_is_never_repaired_by_the_next)
{
    setup();
    serve("eval get_size='echo 1048576' can_write='exit 0' can_flush='exit 0' "
          "pread='dd if=/dev/zero bs=$3 count=1 status=none' pwrite='cat >/dev/null' "
          "flush='test -e $tmpdir/failed && exit 0; touch $tmpdir/failed; "
          "echo EIO >&2; exit 1'");
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, 0), 0);
    ck_assert_int_eq(device_flush_wait(dev), -EIO);
    ck_assert_int_eq(device_flush_wait(dev), -EIO);
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, DEVICE_FUA), -EIO);
    ck_assert_int_eq(device_write_wait(dev, 0, a, 4096, 0), 0);
    device_close_wait(take(dev));
    must_open();
    ck_assert_int_eq(device_flush_wait(dev), 0);
    teardown();
}
END_TEST

/* ---- TLS ------------------------------------------------------------------------------------------ */

START_TEST(a_shared_key_opens_the_door)
{
    static char uri[400];
    char command[400];

    setup();
    snprintf(command, sizeof(command),
             "echo alice:00112233445566778899aabbccddeeff >%s/keys; "
             "echo alice:ff112233445566778899aabbccddeeff >%s/wrong",
             server.dir, server.dir);
    ck_assert_int_eq(system(command), 0);
    nbdkit_start(&server, "--tls=require --tls-psk=$DIR/keys memory 1M");
    ck_assert_int_lt(try_open(), 0); /* without TLS */
    snprintf(uri, sizeof(uri), "nbds+unix://alice@/?socket=%s&tls-psk-file=%s/wrong",
             server.socket, server.dir);
    params.uri = uri;
    ck_assert_int_lt(try_open(), 0);
    snprintf(uri, sizeof(uri), "nbds+unix://alice@/?socket=%s&tls-psk-file=%s/keys",
             server.socket, server.dir);
    must_open();
    ck_assert_int_eq(device_write_wait(dev, 0, a, MIB, DEVICE_FUA), 0);
    ck_assert_int_eq(device_read_wait(dev, 0, b, MIB), 0);
    ck_assert_mem_eq(a, b, MIB);
    teardown();
}
END_TEST

/* An authority, a server named localhost and a client, of it; and another authority. */
static void
make_certificates(void)
{
    static const char script[] =
        "cd %s && mkdir pki other && "
        "k='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2' && "
        "openssl req -x509 $k -subj /CN=ca -keyout pki/ca-key.pem -out pki/ca-cert.pem && "
        "openssl req -x509 $k -subj /CN=ca2 -keyout other/k -out other/ca-cert.pem && "
        "printf subjectAltName=DNS:localhost,IP:127.0.0.1 >ext && "
        "for w in server client; do "
        "openssl req $k -subj /CN=localhost -keyout pki/$w-key.pem -out csr && "
        "openssl x509 -req -in csr -CA pki/ca-cert.pem -CAkey pki/ca-key.pem "
        "-CAcreateserial -days 2 -extfile ext -out pki/$w-cert.pem || exit 1; done";
    char command[1200], quiet[1400];

    snprintf(command, sizeof(command), script, server.dir);
    snprintf(quiet, sizeof(quiet), "( %s ) >%s/openssl.log 2>&1", command, server.dir);
    ck_assert_int_eq(system(quiet), 0);
}

START_TEST(certificates_are_checked)
{
    static char uri[400];
    char args[400];
    unsigned port = 20000 + (unsigned)getpid() % 20000;

    setup();
    make_certificates();
    /* Over TCP, so that the server's name is checked too. */
    snprintf(args, sizeof(args),
             "--tls=require --tls-certificates=%s/pki --tls-verify-peer memory 1M -i "
             "127.0.0.1 -p %u",
             server.dir, port);
    nbdkit_start(&server, args);
    snprintf(uri, sizeof(uri), "nbds://localhost:%u/?tls-certificates=%s/other", port,
             server.dir);
    params.uri = uri;
    ck_assert_int_lt(try_open(), 0); /* another authority */
    snprintf(uri, sizeof(uri), "nbd://localhost:%u/", port);
    ck_assert_int_lt(try_open(), 0); /* without TLS */
    snprintf(uri, sizeof(uri), "nbds://localhost:%u/?tls-certificates=%s/pki", port,
             server.dir);
    must_open();
    ck_assert_int_eq(device_write_wait(dev, 0, a, MIB, 0), 0);
    ck_assert_int_eq(device_flush_wait(dev), 0);
    ck_assert_int_eq(device_read_wait(dev, 0, b, MIB), 0);
    ck_assert_mem_eq(a, b, MIB);
    teardown();
}
END_TEST

START_TEST(an_odd_end_is_read_with_zeros_behind_it)
{
    setup();
    params.read_only = true;
    serve("pattern 100001");
    ck_assert_uint_eq(dev->size, 100352);
    ck_assert_int_eq(device_read_wait(dev, 0, a, 100352), 0);
    ck_assert_int_eq(device_read_wait(dev, 99840, b, 512), 0);
    ck_assert_mem_eq(a + 99840, b, 512);
    ck_assert_int_ne(b[159], 0); /* 99999: the low byte of 99992 + 7 */
    for (unsigned i = 161; i < 512; i++)
        ck_assert_int_eq(b[i], 0);
    teardown();
}
END_TEST

/* What was told of the export, and what is thought of it. */
struct judge {
    unsigned nr_asked, nr_names, nr_gone;
    int verdict;
    char first[64];
};

static int
answered(void *arg, const char *const *names, unsigned nr, struct thin_error *err)
{
    struct judge *j = arg;

    j->nr_asked++;
    j->nr_names = nr;
    if (nr > 0)
        snprintf(j->first, sizeof(j->first), "%s", names[0]);
    return j->verdict < 0 ? thin_fail(err, j->verdict, "not on this one") : 0;
}

static void
asker_gone(void *arg)
{
    ((struct judge *)arg)->nr_gone++;
}

START_TEST(the_server_is_asked_before_its_export_is_opened)
{
    struct judge j = {0};

    setup();
    params.ask = (struct device_nbd_ask){"base:", answered, asker_gone, &j};
    params.connections = 2;
    serve("memory 1M");
    ck_assert_uint_eq(j.nr_names, 1);
    ck_assert_str_eq(j.first, "base:allocation");
    ck_assert_int_eq(device_write_wait(dev, 0, a, MIB, 0), 0);
    ck_assert_int_eq(device_read_wait(dev, 0, b, MIB), 0);
    ck_assert_mem_eq(a, b, MIB);
    ck_assert_uint_eq(j.nr_gone, 0);
    device_close_wait(take(dev));
    ck_assert_uint_eq(j.nr_gone, 1);

    /* A question that nobody knows. */
    j = (struct judge){0};
    params.ask.query = "thin:something:1";
    must_open();
    ck_assert_uint_ge(j.nr_asked, 1);
    ck_assert_uint_eq(j.nr_names, 0);
    device_close_wait(take(dev));

    /* An answer that does not please. */
    j = (struct judge){.verdict = -THIN_E_DENIED};
    params.ask.query = "base:";
    ck_assert_int_eq(try_open(), -THIN_E_DENIED);
    ck_assert_ptr_nonnull(strstr(words.text, "not on this one"));
    ck_assert_uint_eq(j.nr_gone, 1);

    /* An export that is not there. */
    j = (struct judge){0};
    nbdkit_kill(&server);
    nbdkit_start(&server,
                 "sh - <<'EOF'\ncase $1 in open) echo 'ENOENT none' >&2; exit 1;; "
                 "get_size) echo 1M;; *) exit 2;; esac\nEOF\n");
    ck_assert_int_lt(try_open(), 0);
    ck_assert_uint_eq(j.nr_gone, 1);
    teardown();
}
END_TEST

/* After a loss it is asked again: what has come back may stand on something else. */
START_TEST(a_server_that_comes_back_is_asked_again)
{
    struct judge j = {0};

    setup();
    params.ask = (struct device_nbd_ask){"base:", answered, asker_gone, &j};
    serve("memory 1M");
    nbdkit_kill(&server);
    nbdkit_start(&server, "memory 1M");
    ck_assert_int_eq(device_read_wait(dev, 0, b, MIB), 0);
    ck_assert_uint_eq(j.nr_asked, 2);
    j.verdict = -THIN_E_DENIED;
    nbdkit_kill(&server);
    nbdkit_start(&server, "memory 1M");
    ck_assert_int_eq(device_read_wait(dev, 0, b, MIB), -THIN_E_LOST);
    ck_assert(dev->lost);
    teardown();
    ck_assert_uint_eq(j.nr_gone, 1);
}
END_TEST

int
main(void)
{
    Suite *s = suite_create("nbd_device");
    TCase *tc = tcase_create("nbd_device");
    SRunner *sr;
    int failed;

    tcase_set_timeout(tc, 60);
    tcase_add_test(tc, nobody_there_is_told_in_words);
    tcase_add_test(tc, a_server_that_does_not_greet_is_given_up);
    tcase_add_test(tc, what_the_server_offers_is_told);
    tcase_add_test(tc, a_read_only_export_is_not_opened_to_be_written);
    tcase_add_test(tc, a_server_that_cannot_flush_is_not_opened_to_be_written);
    tcase_add_test(tc, an_empty_export_is_refused);
    tcase_add_test(tc, large_units_are_bridged_for_reading_only);
    tcase_add_test(tc, fua_is_a_write_and_a_flush_where_unknown);
    tcase_add_test(tc, fua_is_sent_where_known);
    tcase_add_test(tc, zeros_are_written_where_zeroes_are_unknown);
    tcase_add_test(tc, slow_zeroes_are_refused_if_they_must_be_fast);
    tcase_add_test(tc, without_block_status_all_is_data);
    tcase_add_test(tc, extents_are_rounded_to_what_is_surely_zero);
    tcase_add_test(tc, requests_are_cut_to_what_the_server_takes);
    tcase_add_test(tc, a_flood_waits_in_line);
    tcase_add_test(tc, several_connections_share_the_work);
    tcase_add_test(tc, one_connection_where_more_are_not_safe);
    tcase_add_test(tc, an_error_is_the_requests_own);
    tcase_add_test(tc, a_failed_flush_is_never_repaired_by_the_next);
    tcase_add_test(tc, a_shared_key_opens_the_door);
    tcase_add_test(tc, certificates_are_checked);
    tcase_add_test(tc, an_odd_end_is_read_with_zeros_behind_it);
    tcase_add_test(tc, the_server_is_asked_before_its_export_is_opened);
    tcase_add_test(tc, a_server_that_comes_back_is_asked_again);
    suite_add_tcase(s, tc);
    sr = srunner_create(s);
    srunner_run_all(sr, CK_NORMAL);
    failed = srunner_ntests_failed(sr);
    srunner_free(sr);
    return failed ? 1 : 0;
}
