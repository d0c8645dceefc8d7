/* Edits to payloads, as an input lists them. */
#ifndef FUZZ_EDITS_H
#define FUZZ_EDITS_H

#include "kernels.h"

typedef struct {
    uint8_t how, where[2], value;
} Edit;

enum { INSERT, REMOVE, FLIP, SET, ACTIONS }; /* selected by `how` modulo their number */
enum { NEAR_START = 4, HEAD = 64, MAX_INSERTED = 16 };

/* Writes bytes that count up, as in lists of classes. */
static size_t insert_bytes(const Edit *edit, uint8_t *payload, size_t size, size_t at) {
    size_t more = 1u + (edit->how >> 4);
    memmove(payload + at + more, payload + at, size - at);
    for (size_t n = 0; n < more; n++) payload[at + n] = (uint8_t)(edit->value + n);
    return size + more;
}

/* Changes one byte, or all from there on. */
static size_t remove_bytes(const Edit *edit, uint8_t *payload, size_t size, size_t at) {
    if (edit->value % 16 == 0) return at;
    memmove(payload + at, payload + at + 1, size - at - 1);
    return size - 1;
}

/* Half of the edits change the first bytes, which describe the others. */
static size_t apply_edit(const Edit *edit, uint8_t *payload, size_t size) {
    size_t span = edit->how & NEAR_START && size > HEAD ? HEAD : size;
    size_t at = (edit->where[0] | (size_t)edit->where[1] << 8) % (span + 1);
    unsigned action = edit->how % ACTIONS;
    if (action == INSERT) return insert_bytes(edit, payload, size, at);
    if (at == size) return size;
    if (action == REMOVE) return remove_bytes(edit, payload, size, at);
    payload[at] = action == FLIP ? payload[at] ^ edit->value : edit->value;
    return size;
}

/* Returns a payload after `count` edits, which the caller frees; NULL if out of memory. */
static uint8_t *edit_payload(const Writer *payload, const uint8_t *edits, size_t count,
                             size_t *size) {
    uint8_t *edited = malloc(payload->size + MAX_INSERTED * count);
    if (!edited) return NULL;
    memcpy(edited, payload->data, payload->size);
    *size = payload->size;
    for (size_t n = 0; n < count; n++) {
        Edit edit;
        memcpy(&edit, edits + n * sizeof edit, sizeof edit);
        *size = apply_edit(&edit, edited, *size);
    }
    return edited;
}

#endif
