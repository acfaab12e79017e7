/* A metadata source on any struct device, waiting for each request. */
#include "core/device/device.h"
#include "core/offline/source.h"

static int
dev_read(void *arg, uint64_t offset, void *buf, size_t len_bytes)
{
    return device_read_wait(arg, offset, buf, len_bytes);
}

static int
dev_write(void *arg, uint64_t offset, const void *buf, size_t len_bytes)
{
    return device_write_wait(arg, offset, buf, len_bytes, 0);
}

static int
dev_flush(void *arg)
{
    return device_flush_wait(arg);
}

static const struct source_ops device_source_ops = {
    .read = dev_read,
    .write = dev_write,
    .flush = dev_flush,
};

int
source_open_device(struct device *dev, struct meta_source **ret_src)
{
    return source_open_ops(&device_source_ops, dev, dev->size, !dev->read_only, ret_src);
}
