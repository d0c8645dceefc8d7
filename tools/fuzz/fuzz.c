/* Fuzzes the kernels: no payload does harm, all encoded elements come back, and all targets agree.
 * tools/fuzz/run builds and runs it, with libFuzzer or standalone.c.
 *
 * An input is a header, which describes elements and new values for them, followed by either a
 * payload or edits to the payload that encodes them. */
#include <pthread.h>

#include "cases.h"
#include "edits.h"
#include "records.h"

static char planted[16]; /* a bug that the checks must find, to test them */

static bool is_planted(const char *bug) { return !strcmp(planted, bug); }

/* Every fault ends with a stack trace; no kernel needs nearly this much memory. */
const char *__asan_default_options(void) { return "handle_abort=1:max_allocation_size_mb=64"; }
const char *__ubsan_default_options(void) { return "abort_on_error=1"; }

static void start_kernel(const Case *it) {
    allocated = 0;
    starved = false;
    until_failure = it->failure;
}

/* A kernel reports that it is out of memory exactly if an allocation failed. */
static void end_kernel(const char *error) {
    until_failure = 0;
    CHECK(starved == (error && !strcmp(error, OUT_OF_MEMORY)));
}

static Writer encode(const Target *target, const Case *it) {
    Writer w = {0};
    start_kernel(it);
    const char *error = target->encode[it->encoding][it->log_width](it->base, it->bits, it->count,
                                                                    it->mantissa, &w);
    end_kernel(error);
    CHECK(!error || starved);
    if (!error) return w;
    free(w.data);
    return (Writer){0};
}

/* Returns the payload, after a check that all targets agree; empty if out of memory. */
static Writer encode_everywhere(const Case *it) {
    Writer first = encode(&targets[0], it);
    for (size_t n = 1; n < count_targets(); n++) {
        Writer other = encode(&targets[n], it);
        CHECK(!first.data || !other.data ||
              (other.size == first.size && !memcmp(other.data, first.data, first.size)));
        free(other.data);
    }
    return first;
}

static const char *decode(const Target *target, const Case *it, const uint8_t *payload,
                          size_t size, uint8_t *elements) {
    uint8_t *exact = malloc(size);
    CHECK(exact);
    memcpy(exact, payload, size);
    memcpy(elements, it->base, it->size);
    Reader reader = {exact, exact + size + is_planted("overread"), 0, 0, false};
    start_kernel(it);
    const char *error =
        target->decode[it->encoding][it->log_width](&reader, elements, it->count, it->mantissa);
    end_kernel(error);
    CHECK(allocated <= (4 << 20) + 4 * (size + it->size));
    if (is_planted("mistake") && it->size) elements[it->size - 1] ^= 1;
    free(exact);
    return error;
}

/* Checks that all targets decode or refuse the payload alike, unless out of memory. */
static const char *decode_everywhere(const Case *it, const uint8_t *payload, size_t size,
                                     uint8_t *elements) {
    const char *error = decode(&targets[0], it, payload, size, elements);
    bool first_starved = starved;
    uint8_t *others = new_elements(it);
    for (size_t n = 1; n < count_targets(); n++) {
        const char *other = decode(&targets[n], it, payload, size, others);
        if (starved || first_starved) continue;
        CHECK(error ? other && !strcmp(other, error) : !other);
        CHECK(!memcmp(others, elements, it->size));
    }
    free_elements(it, others);
    starved |= first_starved;
    return error;
}

static void check_payload(const Case *it, const Writer *payload) {
    uint8_t *elements = new_elements(it);
    const char *error = decode_everywhere(it, payload->data, payload->size, elements);
    CHECK(error ? starved : !memcmp(elements, it->bits, it->size));
    free_elements(it, elements);
}

static void check_hostile(const Case *it, const uint8_t *payload, size_t size) {
    uint8_t *elements = new_elements(it);
    decode_everywhere(it, payload, size, elements);
    free_elements(it, elements);
}

static void check_edited(const Case *it, const Writer *payload, const uint8_t *edits,
                         size_t count) {
    size_t size;
    uint8_t *edited = edit_payload(payload, edits, count, &size);
    CHECK(edited);
    check_hostile(it, edited, size);
    free(edited);
}

static void check_planes(const Case *it) {
    uint8_t *planes = malloc(it->size), *others = malloc(it->size), *elements = new_elements(it);
    CHECK(planes && others);
    for (size_t n = 0; n < count_targets(); n++) {
        targets[n].split[it->log_width](it->bits, it->count, n ? others : planes);
        CHECK(!n || !memcmp(others, planes, it->size));
        targets[n].join[it->log_width](planes, it->count, elements);
        CHECK(!memcmp(elements, it->bits, it->size));
    }
    free(planes);
    free(others);
    free_elements(it, elements);
}

/* Finds changes with no more memory than a target may write to, so that overruns are detected. */
static size_t find_changes(const Target *target, const Case *it, size_t limit, uint8_t **positions,
                           uint8_t **values) {
    *positions = malloc(4 * (limit + 64));
    *values = malloc(limit << it->log_width);
    CHECK(*positions && (*values || !limit));
    return target->changes[it->log_width](it->base, it->bits, it->count, limit, *positions,
                                          *values);
}

/* Checks that all targets refuse hostile positions, or all accept them with the same result. */
static void check_hostile_positions(const Case *it, const uint8_t *positions, size_t count) {
    uint8_t *elements[2] = {new_elements(it), new_elements(it)};
    bool taken[2] = {false, false};
    for (size_t n = 0; n < count_targets(); n++) {
        uint8_t *values = calloc(count + 1, (size_t)1 << it->log_width);
        CHECK(values);
        memcpy(elements[n], it->base, it->size);
        taken[n] = targets[n].swap[it->log_width](elements[n], it->count, positions, count, values);
        CHECK(taken[n] || !memcmp(elements[n], it->base, it->size));
        CHECK(taken[n] == taken[0] && !memcmp(elements[n], elements[0], it->size));
        free(values);
    }
    for (int n = 0; n < 2; n++) free_elements(it, elements[n]);
}

/* Checks that swapping changes in yields the new elements, and again the old ones. */
static void check_patch(const Case *it, const uint8_t *edits, size_t count) {
    uint8_t *elements = new_elements(it), *positions, *values;
    const Edit *edit = (const Edit *)(const void *)edits;
    for (size_t n = 0; n < 2 * count_targets(); n++) {
        const Target *target = &targets[n / 2];
        size_t limit = n % 2 ? it->count : it->size / (4 + ((size_t)1 << it->log_width));
        size_t found = find_changes(target, it, limit, &positions, &values);
        CHECK(found <= it->count);
        memcpy(elements, it->base, it->size);
        for (int back = 0; found <= limit && back < 2; back++) {
            CHECK(target->swap[it->log_width](elements, it->count, positions, found, values));
            CHECK(!memcmp(elements, back ? it->base : it->bits, it->size));
        }
        if (found > limit) found = limit;
        for (size_t k = 0; found && k < count; k++)
            positions[load16(edit[k].where) % found * 4 + edit[k].how % 4] ^= edit[k].value;
        check_hostile_positions(it, positions, found);
        free(positions);
        free(values);
    }
    free_elements(it, elements);
}

static bool writing; /* whether the other thread continues */

static void *write_meanwhile(void *data) {
    const Case *it = data;
    volatile uint8_t *bits = it->bits;
    size_t step = it->size / 64 + 1;
    while (__atomic_load_n(&writing, __ATOMIC_RELAXED))
        for (size_t n = 0; n < it->size; n += step) bits[n] ^= 1;
    return NULL;
}

/* The new values may belong to a model in training: encoding them while they change yields a
 * useless payload, but does no harm. */
static void check_unsteady(Case *it) {
    enum { TIMES = 40 };
    pthread_t thread;
    memcpy(it->bits, it->base, it->size);
    writing = true;
    CHECK(!pthread_create(&thread, NULL, write_meanwhile, it));
    for (size_t n = 0; n < TIMES * count_targets(); n++) {
        Writer payload = encode(&targets[n / TIMES], it);
        if (payload.data) check_hostile(it, payload.data, payload.size);
        free(payload.data);
        uint8_t *positions, *values;
        CHECK(find_changes(&targets[n / TIMES], it, it->count, &positions, &values) <= it->count);
        free(positions);
        free(values);
    }
    __atomic_store_n(&writing, false, __ATOMIC_RELAXED);
    pthread_join(thread, NULL);
}

/* Checks that all targets cast alike, and that a cast to F32 can be undone. */
static void check_casts(const Case *it) {
    if (it->kind < CAST_E5M2 || it->kind > CAST_F32) return;
    size_t size = 4 * it->count;
    uint8_t *found[2] = {malloc(size), malloc(size)}, *again = malloc(it->size);
    CHECK(found[0] && found[1] && again);
    for (unsigned to = 2 * CAST_E5M2; to < 2 * (CAST_F32 + 1); to++) {
        unsigned kind = to / 2, log_out = kinds[kind].log_width;
        for (size_t n = 0; n < count_targets(); n++) {
            targets[n].cast(it->bits, it->kind, it->log_width, it->count, found[n], kind, log_out,
                            to % 2);
            CHECK(!n || !memcmp(found[0], found[1], it->count << log_out));
        }
    }
    targets[0].cast(found[0], CAST_F32, 2, it->count, again, it->kind, it->log_width, false);
    targets[0].cast(again, it->kind, it->log_width, it->count, found[1], CAST_F32, 2, false);
    CHECK(!memcmp(found[0], found[1], size));
    free(found[0]);
    free(found[1]);
    free(again);
}

static void check_case(Case *it, unsigned what, const uint8_t *edits, size_t count) {
    Writer payload = encode_everywhere(it);
    if (payload.data) {
        check_payload(it, &payload);
        Case other = *it;
        if (what & OTHER_BASE) other.base = it->bits;
        check_edited(&other, &payload, edits, count);
    }
    free(payload.data);
    check_planes(it);
    check_casts(it);
    check_records(it, what + (unsigned)it->size);
    check_patch(it, edits, count);
    if ((what & UNSTEADY) == UNSTEADY) check_unsteady(it);
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
    for (int n = 1; n < *argc; n++) sscanf((*argv)[n], "-planted=%15s", planted);
    init_learning_rates();
    init_log_table();
    init_set_bits();
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    Header header;
    if (size < sizeof header) return 0;
    memcpy(&header, data, sizeof header);
    const uint8_t *rest = data + sizeof header;
    size -= sizeof header;
    Case it = make_case(&header);
    if (header.what & HOSTILE)
        check_hostile(&it, rest, size);
    else
        check_case(&it, header.what, rest, size / sizeof(Edit));
    free_case(&it);
    return 0;
}

/* Replaces the edits of an input by the payload that they edit, so that later mutations can change
 * any of its bits. Leaves the input alone if it contains a payload or has no room for one. */
static size_t with_payload(uint8_t *data, size_t size, size_t max_size) {
    Header header;
    memcpy(&header, data, sizeof header);
    if (header.what & HOSTILE) return size;
    header.failure = 0;
    header.what |= HOSTILE;
    Case it = make_case(&header);
    Writer payload = encode(&targets[0], &it);
    if (payload.size <= max_size - sizeof header) {
        memcpy(data, &header, sizeof header);
        memcpy(data + sizeof header, payload.data, payload.size);
        size = sizeof header + payload.size;
    }
    free(payload.data);
    free_case(&it);
    return size;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);

/* Cases of whole segments and unsteady cases need far longer, so most of them are replaced. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed) {
    size = LLVMFuzzerMutate(data, size, max_size);
    if (size < sizeof(Header)) return size;
    if (seed / 8 % 16) {
        uint8_t *high = data + offsetof(Header, count) + 1, *what = data + offsetof(Header, what);
        if (*high > 250) *high %= 64;
        if ((*what & UNSTEADY) == UNSTEADY) *what &= (uint8_t)~UNSTEADY;
    }
    return seed % 8 ? size : with_payload(data, size, max_size);
}
