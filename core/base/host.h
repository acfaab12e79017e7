/*
 * What this machine is called, for marks that others read: ids of 128 bits from the
 * system's files. Zeros where there is none (a container without a machine-id).
 */
#ifndef THIN_CORE_BASE_HOST_H
#define THIN_CORE_BASE_HOST_H

#include <stdbool.h>
#include <stdint.h>

#define HOST_ID_BYTES 16u

/* The same over all boots: /etc/machine-id. */
void host_machine_id(uint8_t ret[HOST_ID_BYTES]);
/* Another one after each boot. */
void host_boot_id(uint8_t ret[HOST_ID_BYTES]);

bool host_id_is_zero(const uint8_t id[HOST_ID_BYTES]);

#endif
