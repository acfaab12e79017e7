/*
 * CRC-32C (Castagnoli) with the instructions that the machine has (ISA-L).
 * Source: dm-thin's block checks use the register without final inversion.
 */
#ifndef THIN_CORE_BASE_CRC32C_H
#define THIN_CORE_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/*
 * Goes on from register `crc` over `len_bytes` bytes; no inversion at either end.
 * Start with CRC32C_INIT. "123456789" gives 0x1CF96D7C. Any thread.
 */
#define CRC32C_INIT 0xFFFFFFFFu
uint32_t crc32c_update(uint32_t crc, const void *bytes, size_t len_bytes);

/* The standard CRC-32C (register inverted at the end): "123456789" gives 0xE3069283. */
uint32_t crc32c(const void *bytes, size_t len_bytes);

#endif
