/* Little- and big-endian load and store at any alignment. */
#ifndef THIN_CORE_BASE_BYTES_H
#define THIN_CORE_BASE_BYTES_H

#include <endian.h>
#include <stdint.h>
#include <string.h>

#define THIN_DEFINE_BYTES(bits)                                  \
    static inline uint##bits##_t load_le##bits(const void *p)    \
    {                                                            \
        uint##bits##_t v;                                        \
        memcpy(&v, p, sizeof(v));                                \
        return le##bits##toh(v);                                 \
    }                                                            \
    static inline uint##bits##_t load_be##bits(const void *p)    \
    {                                                            \
        uint##bits##_t v;                                        \
        memcpy(&v, p, sizeof(v));                                \
        return be##bits##toh(v);                                 \
    }                                                            \
    static inline void store_le##bits(void *p, uint##bits##_t v) \
    {                                                            \
        v = htole##bits(v);                                      \
        memcpy(p, &v, sizeof(v));                                \
    }                                                            \
    static inline void store_be##bits(void *p, uint##bits##_t v) \
    {                                                            \
        v = htobe##bits(v);                                      \
        memcpy(p, &v, sizeof(v));                                \
    }

THIN_DEFINE_BYTES(16)
THIN_DEFINE_BYTES(32)
THIN_DEFINE_BYTES(64)
#undef THIN_DEFINE_BYTES

#endif
