/*
 * The numbers of the NBD protocol, for this folder, its tests, and whoever speaks NBD
 * himself. All are big-endian on the wire.
 * Source: the NBD protocol document (NetworkBlockDevice/nbd, doc/proto.md).
 */
#ifndef THIN_PROTO_NBD_WIRE_H
#define THIN_PROTO_NBD_WIRE_H

#define NBD_MAGIC                  0x4e42444d41474943ull /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC           0x49484156454f5054ull /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC     0x0003e889045565a9ull
#define NBD_REQUEST_MAGIC          0x25609513u
#define NBD_SIMPLE_REPLY_MAGIC     0x67446698u
#define NBD_STRUCTURED_REPLY_MAGIC 0x668e33efu
#define NBD_EXTENDED_REQUEST_MAGIC 0x21e41c71u
#define NBD_EXTENDED_REPLY_MAGIC   0x6e8a278cu

#define NBD_GREETING_BYTES         18u
#define NBD_OPTION_HEAD_BYTES      16u
#define NBD_OPTION_REPLY_BYTES     20u
#define NBD_REQUEST_BYTES          28u
#define NBD_EXTENDED_REQUEST_BYTES 32u
#define NBD_SIMPLE_REPLY_BYTES     16u
#define NBD_CHUNK_BYTES            20u
#define NBD_EXTENDED_CHUNK_BYTES   32u

/* Handshake flags, the same in both directions. */
#define NBD_FLAG_FIXED_NEWSTYLE 1u
#define NBD_FLAG_NO_ZEROES      2u

enum nbd_wire_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_STARTTLS = 5,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
    NBD_OPT_EXTENDED_HEADERS = 11,
};

#define NBD_REP_ACK                 1u
#define NBD_REP_SERVER              2u
#define NBD_REP_INFO                3u
#define NBD_REP_META_CONTEXT        4u
#define NBD_REP_ERR_UNSUP           0x80000001u
#define NBD_REP_ERR_POLICY          0x80000002u
#define NBD_REP_ERR_INVALID         0x80000003u
#define NBD_REP_ERR_PLATFORM        0x80000004u
#define NBD_REP_ERR_TLS_REQD        0x80000005u
#define NBD_REP_ERR_UNKNOWN         0x80000006u
#define NBD_REP_ERR_SHUTDOWN        0x80000007u
#define NBD_REP_ERR_BLOCK_SIZE_REQD 0x80000008u
#define NBD_REP_ERR_TOO_BIG         0x80000009u
#define NBD_REP_ERR_EXT_HEADER_REQD 0x8000000au

#define NBD_INFO_EXPORT      0u
#define NBD_INFO_NAME        1u
#define NBD_INFO_DESCRIPTION 2u
#define NBD_INFO_BLOCK_SIZE  3u

#define NBD_TX_HAS_FLAGS         (1u << 0)
#define NBD_TX_READ_ONLY         (1u << 1)
#define NBD_TX_SEND_FLUSH        (1u << 2)
#define NBD_TX_SEND_FUA          (1u << 3)
#define NBD_TX_ROTATIONAL        (1u << 4)
#define NBD_TX_SEND_TRIM         (1u << 5)
#define NBD_TX_SEND_WRITE_ZEROES (1u << 6)
#define NBD_TX_SEND_DF           (1u << 7)
#define NBD_TX_CAN_MULTI_CONN    (1u << 8)
#define NBD_TX_SEND_CACHE        (1u << 10)
#define NBD_TX_SEND_FAST_ZERO    (1u << 11)

enum nbd_wire_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

#define NBD_CMD_FLAG_FUA         (1u << 0)
#define NBD_CMD_FLAG_NO_HOLE     (1u << 1)
#define NBD_CMD_FLAG_DF          (1u << 2)
#define NBD_CMD_FLAG_REQ_ONE     (1u << 3)
#define NBD_CMD_FLAG_FAST_ZERO   (1u << 4)
#define NBD_CMD_FLAG_PAYLOAD_LEN (1u << 5)

#define NBD_CHUNK_FLAG_DONE       1u
#define NBD_CHUNK_NONE            0u
#define NBD_CHUNK_OFFSET_DATA     1u
#define NBD_CHUNK_OFFSET_HOLE     2u
#define NBD_CHUNK_BLOCK_STATUS    5u
#define NBD_CHUNK_BLOCK_STATUS_64 6u
#define NBD_CHUNK_ERROR           0x8001u
#define NBD_CHUNK_ERROR_OFFSET    0x8002u

/* The only errors that may stand in a reply. */
#define NBD_WIRE_EPERM     1u
#define NBD_WIRE_EIO       5u
#define NBD_WIRE_ENOMEM    12u
#define NBD_WIRE_EINVAL    22u
#define NBD_WIRE_ENOSPC    28u
#define NBD_WIRE_EOVERFLOW 75u
#define NBD_WIRE_ENOTSUP   95u
#define NBD_WIRE_ESHUTDOWN 108u

#endif
