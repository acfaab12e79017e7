/*
 * Three forms of a dump, as visitors (ir.h) over a text buffer: the XML of thin_dump
 * 0.9 byte for byte, its human-readable form, and JSON.
 */
#ifndef THIN_CORE_OFFLINE_TEXT_WRITE_H
#define THIN_CORE_OFFLINE_TEXT_WRITE_H

#include <stdbool.h>

#include "core/offline/ir.h"
#include "core/offline/textbuf.h"

/* The `arg` of all three visitors. */
struct text_writer {
    struct textbuf *text;
    bool first_device, first_run; /* JSON: no comma yet */
};

/* Each flushes the buffer in `end`. */
extern const struct ir_visitor xml_writer;
extern const struct ir_visitor human_writer;
extern const struct ir_visitor json_writer;

#endif
