/* Every limit of the wire, in one table. Both ends check what they receive against it. */
#ifndef THIN_PROTO_LIMITS_H
#define THIN_PROTO_LIMITS_H

#define PROTO_VERSION_MIN 1u
#define PROTO_VERSION_MAX 1u

#define PROTO_MESSAGE_MAX             (256u << 10) /* bytes of one protobuf message */
#define PROTO_DATA_MESSAGE_MAX        512u /* bytes of a request's message with payload */
#define PROTO_PAYLOAD_MAX             (32u << 20) /* bytes beside one message */
#define PROTO_SLOTS_DEFAULT           256u        /* requests in flight in a session */
#define PROTO_SLOTS_MAX               1024u
#define PROTO_BYTES_IN_FLIGHT_DEFAULT (64u << 20)
#define PROTO_TOKEN_BYTES             32u    /* of a session's secret */
#define PROTO_CONNECTIONS_MAX         16u    /* of one session */
#define PROTO_VOLUMES_MAX             64u    /* open handles of one session */
#define PROTO_HANDSHAKE_MS            10000u /* TLS and hello together */
#define PROTO_KEEPALIVE_MS            15000u /* silence after which the peer is gone */
#define PROTO_LEASE_MS                30000u /* a lost session is kept so long */
#define PROTO_EXTENTS_MAX             8192u  /* of one block status reply */
#define PROTO_HOLES_MAX               64u    /* pairs in one read reply */
#define PROTO_LIST_MAX                256u   /* entries in one list reply */
#define PROTO_ARENA_BYTES             2048u  /* a data request's decoded form */

#define PROTO_PORT 10819
#define NBD_PORT   10809

#endif
