/*
 * The NBD server's side against any bytes: a RAM export behind it, answers at once or
 * later, little memory, any cuts. The first four bytes choose how it is driven, the rest
 * is what the peer sends. Nothing may crash, hang, leak, or send what cannot be parsed.
 */
#include "tests/unit/nbd/ram_export.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint8_t disk[RAM_SIZE];
static bool mapped[RAM_BLOCKS];

static struct ram *
create(const uint8_t *how)
{
    struct ram *ram = calloc(1, sizeof(*ram));
    struct nbd_config config = {
        .ops = &ram_ops,
        .arg = ram,
        .tls = (enum nbd_tls_policy)(how[0] % 3),
        .limits = {.max_requests = 1u + how[1] % 5, .max_payload = 1u << 20},
        .request_extra_bytes = sizeof(uint64_t),
    };

    THIN_ASSERT(ram != NULL);
    ram->disk = disk;
    ram->mapped = mapped;
    ram->shares_disk = true;
    ram->size = RAM_SIZE;
    ram->flags = how[0] & 64 ? NBD_EXPORT_READ_ONLY : RAM_ALL_FLAGS;
    ram->nr_exports = how[1] & 128 ? 5000 : 3;
    ram->min_block = how[1] & 64 ? 4096 : 0;
    ram->defer = how[0] & 128;
    ram->budget = how[0] & 32 ? 300000 : 0;
    THIN_ASSERT(nbd_conn_create(&config, &ram->conn, NULL) == 0);
    return ram;
}

/* Answers one of those that wait. */
static bool
answer_some(struct ram *ram, unsigned which)
{
    if (ram->open_waits)
        ram_answer_open(ram);
    else if (ram->nr_waiting > 0)
        ram_answer_one(ram, which % ram->nr_waiting);
    else
        return false;
    return true;
}

/* A whole number of replies, each of a known kind. */
static void
check_output(const struct bytes *out, bool greeting)
{
    size_t at = greeting ? 18 : 0, head, body;

    THIN_ASSERT(out->len >= at);
    while (at < out->len) {
        const uint8_t *p = out->p + at;

        THIN_ASSERT(out->len - at >= 10);
        if (load_be64(p) == NBD_OPTION_REPLY_MAGIC) {
            head = NBD_OPTION_REPLY_BYTES;
            body = load_be32(p + 16);
        } else if (load_be32(p) == NBD_STRUCTURED_REPLY_MAGIC) {
            head = NBD_CHUNK_BYTES;
            body = load_be32(p + 16);
        } else if (load_be32(p) == NBD_EXTENDED_REPLY_MAGIC) {
            head = NBD_EXTENDED_CHUNK_BYTES;
            body = load_be64(p + 24);
        } else {
            return; /* EXPORT_NAME, or a simple reply: its length is not in it */
        }
        THIN_ASSERT(out->len - at >= head);
        THIN_ASSERT(out->len - at - head >= body);
        at += head + body;
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes in = {0}, out = {0};
    struct ram *ram;
    size_t cut, left;
    bool greeting = true;

    if (size < 4)
        return 0;
    ram = create(data);
    cut = data[2] % 40;
    in.p = (uint8_t *)(uintptr_t)data + 4;
    in.len = size - 4;
    for (;;) {
        left = in.len - ram_feed(ram, &in, cut, &out);
        in.p += in.len - left;
        in.len = left;
        if (nbd_conn_phase(ram->conn) == NBD_PHASE_WANT_TLS) {
            check_output(&out, greeting);
            greeting = false;
            out.len = 0;
            /* All was thrown away; the peer says the same once more, through TLS. */
            nbd_conn_tls_started(ram->conn);
            in.p = (uint8_t *)(uintptr_t)data + 4;
            in.len = size - 4;
            if (in.len > 4 + NBD_OPTION_HEAD_BYTES) {
                in.p += 4 + NBD_OPTION_HEAD_BYTES;
                in.len -= 4 + NBD_OPTION_HEAD_BYTES;
            }
        } else if (in.len == 0 || !answer_some(ram, data[3])) {
            break;
        }
    }
    if (data[3] & 1) /* some go at once, some wait for their answers */
        while (answer_some(ram, data[3]) || ram->starved) {
            ram->starved = false;
            nbd_conn_resume(ram->conn);
            ram_drain_output(ram, &out, cut);
        }
    check_output(&out, greeting);
    ram_destroy(ram);
    free(out.p);
    return 0;
}
