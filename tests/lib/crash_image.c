#include "tests/lib/crash_image.h"

#include <stdlib.h>
#include <string.h>

#include "core/base/assert.h"
#include "core/base/checked.h"

struct crash_page {
    unsigned refs;
    char bytes[CRASH_PAGE_BYTES];
};

/* Its own reference stays: it is never freed. */
static struct crash_page zero_page = {.refs = 1};

void
crash_page_put(struct crash_page *page)
{
    if (page && --page->refs == 0)
        free(page);
}

struct crash_page *
crash_page_zero(void)
{
    zero_page.refs++;
    return &zero_page;
}

struct crash_page *
crash_page_create(const void *data)
{
    struct crash_page *page;

    if (data && memcmp(data, zero_page.bytes, CRASH_PAGE_BYTES) == 0)
        return crash_page_zero();
    page = malloc(sizeof(*page));
    THIN_ASSERT(page);
    page->refs = 1;
    if (data)
        memcpy(page->bytes, data, CRASH_PAGE_BYTES);
    return page;
}

char *
crash_page_bytes(struct crash_page *page)
{
    return page->bytes;
}

void
crash_image_share(struct crash_image *image, uint64_t index, struct crash_page *page)
{
    THIN_ASSERT(index < image->nr_pages);
    if (page)
        page->refs++;
    crash_page_put(image->pages[index]);
    image->pages[index] = page;
}

const char *
crash_image_page(const struct crash_image *image, uint64_t index)
{
    THIN_ASSERT(index < image->nr_pages);
    return image->pages[index] ? image->pages[index]->bytes : NULL;
}

void
crash_image_init(struct crash_image *image, uint64_t size)
{
    image->pages = NULL;
    image->nr_pages = 0;
    crash_image_grow(image, size);
}

void
crash_image_fini(struct crash_image *image)
{
    for (uint64_t i = 0; i < image->nr_pages; i++)
        crash_page_put(image->pages[i]);
    free(image->pages);
    image->pages = NULL;
    image->nr_pages = 0;
}

void
crash_image_grow(struct crash_image *image, uint64_t size)
{
    uint64_t nr = div_up_u64(size, CRASH_PAGE_BYTES);
    struct crash_page **pages;

    if (nr <= image->nr_pages && image->pages)
        return;
    pages = realloc(image->pages, (nr + 1) * sizeof(*pages));
    THIN_ASSERT(pages);
    memset(pages + image->nr_pages, 0, (nr + 1 - image->nr_pages) * sizeof(*pages));
    image->pages = pages;
    image->nr_pages = nr;
}

void
crash_image_copy(struct crash_image *image, const struct crash_image *from)
{
    crash_image_grow(image, from->nr_pages * CRASH_PAGE_BYTES);
    for (uint64_t i = 0; i < image->nr_pages; i++) {
        struct crash_page *page = i < from->nr_pages ? from->pages[i] : NULL;

        if (image->pages[i] == page)
            continue;
        crash_page_put(image->pages[i]);
        image->pages[i] = page;
        if (page)
            page->refs++;
    }
}

/* The page, for this image alone to change. */
static struct crash_page *
own_page(struct crash_image *image, uint64_t index)
{
    struct crash_page *old = image->pages[index], *page;

    if (old && old->refs == 1)
        return old;
    page = old ? malloc(sizeof(*page)) : calloc(1, sizeof(*page));
    THIN_ASSERT(page);
    if (old)
        memcpy(page->bytes, old->bytes, CRASH_PAGE_BYTES);
    page->refs = 1;
    crash_page_put(old);
    image->pages[index] = page;
    return page;
}

void
crash_image_put(struct crash_image *image, uint64_t sector, const void *data)
{
    uint64_t index = sector / CRASH_PAGE_SECTORS;
    struct crash_page *page;
    char *at;

    THIN_ASSERT(index < image->nr_pages);
    if (!data && !image->pages[index])
        return;
    page = own_page(image, index);
    at = page->bytes + sector % CRASH_PAGE_SECTORS * SECTOR_SIZE;
    if (data)
        memcpy(at, data, SECTOR_SIZE);
    else
        memset(at, 0, SECTOR_SIZE);
}

void
crash_image_punch(struct crash_image *image, uint64_t page)
{
    THIN_ASSERT(page < image->nr_pages);
    crash_page_put(image->pages[page]);
    image->pages[page] = NULL;
}

void
crash_image_read(const struct crash_image *image, uint64_t offset, void *buf,
                 uint64_t len)
{
    char *to = buf;

    while (len > 0) {
        uint64_t index = offset / CRASH_PAGE_BYTES, in_page = offset % CRASH_PAGE_BYTES;
        size_t n = min_u64(CRASH_PAGE_BYTES - in_page, len);

        THIN_ASSERT(index < image->nr_pages);
        if (image->pages[index])
            memcpy(to, image->pages[index]->bytes + in_page, n);
        else
            memset(to, 0, n);
        to += n;
        offset += n;
        len -= n;
    }
}

bool
crash_image_is_hole(const struct crash_image *image, uint64_t page)
{
    THIN_ASSERT(page < image->nr_pages);
    return !image->pages[page];
}
