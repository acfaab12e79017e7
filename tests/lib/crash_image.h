/* A sparse image of copy-on-write pages, for the disk that crashes. Aborts when out of
   memory. */
#ifndef THIN_TESTS_LIB_CRASH_IMAGE_H
#define THIN_TESTS_LIB_CRASH_IMAGE_H

#include <stdbool.h>
#include <stdint.h>

#define CRASH_PAGE_SECTORS 8u
#define CRASH_PAGE_BYTES   4096u

struct crash_page;

struct crash_image {
    struct crash_page **pages; /* NULL: a hole */
    uint64_t nr_pages;
};

void crash_image_init(struct crash_image *image, uint64_t size);
void crash_image_fini(struct crash_image *image);
void crash_image_grow(struct crash_image *image, uint64_t size);
/* Makes `image` equal to `from`, sharing its pages. Both initialised. */
void crash_image_copy(struct crash_image *image, const struct crash_image *from);

/* A page that images may share, with a copy of CRASH_PAGE_BYTES; `data` NULL: not yet
   filled (crash_page_bytes). All zeros become one page that everybody shares. */
struct crash_page *crash_page_create(const void *data);
struct crash_page *crash_page_zero(void);
/* To be filled before the page is shared. */
char *crash_page_bytes(struct crash_page *page);
void crash_page_put(struct crash_page *page); /* NULL is fine */

/* The whole page at once, shared with who has it. NULL: a hole. */
void crash_image_share(struct crash_image *image, uint64_t index,
                       struct crash_page *page);
/* The bytes of a page; NULL for a hole. */
const char *crash_image_page(const struct crash_image *image, uint64_t index);

/* One sector; NULL data: zeros. */
void crash_image_put(struct crash_image *image, uint64_t sector, const void *data);
void crash_image_punch(struct crash_image *image, uint64_t page);
void crash_image_read(const struct crash_image *image, uint64_t offset, void *buf,
                      uint64_t len);
bool crash_image_is_hole(const struct crash_image *image, uint64_t page);

#endif
