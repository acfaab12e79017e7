/*
 * Reads a dump's XML and feeds a visitor (ir.h). A scanner of our own knows exactly
 * what the thin tools write, which makes it ten times as fast as a general parser; at
 * the first thing that it does not know (comment, entity, CDATA, declaration) it hands
 * the rest, from that very place, to expat. Pipes are fine. Memory does not grow.
 */
#ifndef THIN_CORE_OFFLINE_XML_READ_H
#define THIN_CORE_OFFLINE_XML_READ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "core/base/error.h"
#include "core/offline/ir.h"

#define XML_BUFFER_BYTES (256u << 10)
#define XML_TAG_MAX      4096u /* a longer tag is refused */
#define XML_ATTRS_MAX    16u
#define XML_RUN_MAX      (1ull << 40) /* no run is longer: data blocks have 40 bits */

/* Bytes read, 0 at the end, or a negative code. */
typedef long xml_pull_fn(void *arg, char *buf, size_t room);

/*
 * -THIN_E_INVALID with the line number for XML that is wrong or not a dump; what the
 * visitor says; what `pull` says.
 */
int xml_read(xml_pull_fn *pull, void *pull_arg, const struct ir_visitor *visitor,
             void *arg, struct thin_error *err);

/* ---- between the scanner and expat ------------------------------------------------- */

struct xml_attr {
    const char *name, *value;
    size_t name_len, value_len;
};

/* What has been understood so far, whoever parses. */
struct xml_state {
    const struct ir_visitor *visitor;
    void *arg;
    struct thin_error *err;
    uint64_t line; /* for words */
    enum { XML_START, XML_IN_SUPERBLOCK, XML_IN_DEVICE, XML_DONE } where;
    const char *in_mapping; /* the element whose close tag must follow, or NULL */
    bool blank_first;       /* something stood before what is parsed now */
};

int xml_open_tag(struct xml_state *st, const char *name, size_t len,
                 const struct xml_attr *attrs, size_t nr);
int xml_close_tag(struct xml_state *st, const char *name, size_t len);

/* The rest of the document: `bytes` and then what pull brings. */
int xml_read_expat(struct xml_state *st, const char *bytes, size_t len, xml_pull_fn *pull,
                   void *pull_arg);

#endif
