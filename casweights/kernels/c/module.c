/* The compiled kernels of encodings and patches, which numpy cannot run at the speed of memory.
 *
 * Each has a twin in casweights/kernels/reference/ that produces the same bytes; docs/format.md
 * specifies them. The kernels release the interpreter's lock while they work. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "targets.h"

typedef const char *(*Encode)(const uint8_t *, const uint8_t *, size_t, unsigned, Writer *);
typedef const char *(*Decode)(Reader *, uint8_t *, size_t, unsigned);
typedef void (*Arrange)(const uint8_t *, size_t, uint8_t *);
typedef size_t (*Changes)(const uint8_t *, const uint8_t *, size_t, size_t, uint8_t *, uint8_t *);
typedef bool (*Swap)(uint8_t *, size_t, const uint8_t *, size_t, uint8_t *);
typedef void (*Expect)(const uint8_t *, const uint8_t *, size_t, const uint8_t *, size_t, unsigned,
                       uint16_t *);
typedef void (*CopyField)(const uint8_t *, size_t, uint8_t *, size_t, size_t, size_t);
typedef void (*CountValues)(const uint8_t *, size_t, size_t, uint16_t *);
typedef void (*UnpackNumbers)(const uint8_t *, size_t, unsigned, uint8_t *);
typedef void (*NumberElements)(const uint8_t *, size_t, unsigned, const uint16_t *, uint16_t *);
typedef bool (*PackNumbers)(const uint16_t *, const uint16_t *, size_t, unsigned, uint8_t *);
typedef void (*Cast)(const uint8_t *, unsigned, unsigned, size_t, uint8_t *, unsigned, unsigned, bool);

typedef struct {
    const char *name;
    Encode sparse_encode[4], dense_encode[4]; /* index: log2 of an element's bytes */
    Decode sparse_decode[4], dense_decode[4];
    Arrange split[4], join[4];
    Changes changes[4];
    Swap swap[4];
    Cast cast;
    Expect expect;
    CopyField copy_field;
    CountValues count_values;
    UnpackNumbers unpack_numbers;
    NumberElements number_elements;
    PackNumbers pack_numbers;
} Target;

#define ALL_WIDTHS(name, target) \
    { name##8##target, name##16##target, name##32##target, name##64##target }
#define ALL_KERNELS(target)                                                            \
    ALL_WIDTHS(sparse_encode_, target), ALL_WIDTHS(dense_encode_, target),             \
        ALL_WIDTHS(sparse_decode_, target), ALL_WIDTHS(dense_decode_, target),         \
        ALL_WIDTHS(split_, target), ALL_WIDTHS(join_, target),                         \
        ALL_WIDTHS(changes_, target), ALL_WIDTHS(swap_, target), cast##target, expect##target, \
        copy_field##target, count_values##target, unpack_numbers##target,             \
        number_elements##target, pack_numbers##target

static const Target targets[] = {
    {"portable", ALL_KERNELS(_portable)},
#ifdef USE_AVX2
    {"avx2", ALL_KERNELS(_avx2)},
#endif
};
static const Target *target = targets;

static bool is_supported(const Target *which) {
    if (which == targets) return true;
#ifdef USE_AVX2
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
#else
    return false;
#endif
}

/* Kinds of elements, by their codes in payloads: log2 of the bytes, and the bits of the mantissa (0
 * for kinds that are not floats). */
enum { KINDS = 11 };
static const struct {
    uint8_t log_width, mantissa;
} kinds[KINDS] = {{0, 0}, {1, 0},  {2, 0}, {3, 0},  {0, 2},
                  {0, 3}, {1, 10}, {1, 7}, {2, 23}, {3, 52}, {1, 8}};

/* A caller's bytes, and an aligned copy if the caller's are not aligned for the elements. */
typedef struct {
    Py_buffer buffer;
    uint8_t *data, *copy;
} Memory;

static bool align(Memory *memory, size_t width) {
    memory->data = memory->buffer.buf;
    memory->copy = NULL;
    if ((uintptr_t)memory->data % width == 0) return true;
    memory->copy = malloc((size_t)memory->buffer.len + 1);
    if (!memory->copy) return false;
    memcpy(memory->copy, memory->data, (size_t)memory->buffer.len);
    memory->data = memory->copy;
    return true;
}

static void release(Memory *memory) {
    free(memory->copy);
    PyBuffer_Release(&memory->buffer);
}

static PyObject *failed(const char *error) {
    if (!strcmp(error, OUT_OF_MEMORY)) return PyErr_NoMemory();
    PyErr_SetString(PyExc_ValueError, error);
    return NULL;
}

static bool check_size(Py_ssize_t size, unsigned log_width) {
    return (size & ((1 << log_width) - 1)) == 0 && (uint64_t)size >> log_width < UINT32_MAX;
}

static bool is_width(int width) {
    return width == 1 || width == 2 || width == 4 || width == 8;
}

static PyObject *encode(PyObject *args, const Encode kernels[4]) {
    Memory base, bits;
    int kind;
    Writer out = {0};
    if (!PyArg_ParseTuple(args, "y*y*i", &base.buffer, &bits.buffer, &kind)) return NULL;
    const char *error = "base and chunk must have the same number of elements, of a known kind";
    base.copy = bits.copy = NULL;
    if (kind >= 0 && kind < KINDS && base.buffer.len == bits.buffer.len &&
        check_size(base.buffer.len, kinds[kind].log_width)) {
        unsigned log_width = kinds[kind].log_width;
        Py_BEGIN_ALLOW_THREADS
        put_byte(&out, (unsigned)kind);
        if (align(&base, (size_t)1 << log_width) && align(&bits, (size_t)1 << log_width))
            error = kernels[log_width](base.data, bits.data, (size_t)base.buffer.len >> log_width,
                                       kinds[kind].mantissa, &out);
        else
            error = OUT_OF_MEMORY;
        Py_END_ALLOW_THREADS
    }
    release(&base);
    release(&bits);
    PyObject *result =
        error ? failed(error)
              : PyBytes_FromStringAndSize((const char *)out.data, (Py_ssize_t)out.size);
    free(out.data);
    return result;
}

static PyObject *decode(PyObject *args, const Decode kernels[4]) {
    Py_buffer payload;
    Memory out;
    if (!PyArg_ParseTuple(args, "y*w*", &payload, &out.buffer)) return NULL;
    const uint8_t *first = payload.buf;
    Reader reader = {first, first + payload.len, 0, 0, false};
    unsigned kind = get_byte(&reader);
    const char *error = "its kind of elements is unknown or does not fit its base";
    out.copy = NULL;
    if (!reader.failed && kind < KINDS && check_size(out.buffer.len, kinds[kind].log_width)) {
        unsigned log_width = kinds[kind].log_width;
        Py_BEGIN_ALLOW_THREADS
        error = OUT_OF_MEMORY;
        if (align(&out, (size_t)1 << log_width))
            error = kernels[log_width](&reader, out.data, (size_t)out.buffer.len >> log_width,
                                       kinds[kind].mantissa);
        if (out.copy && !error) memcpy(out.buffer.buf, out.copy, (size_t)out.buffer.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&payload);
    release(&out);
    if (error) return failed(error);
    Py_RETURN_NONE;
}

static PyObject *arrange(PyObject *args, const Arrange kernels[4], bool joining) {
    Memory from, to;
    int width;
    if (!PyArg_ParseTuple(args, "y*w*i", &from.buffer, &to.buffer, &width)) return NULL;
    const char *error = 
        "planes need elements of 1, 2, 4 or 8 bytes and two buffers of the same size";
    from.copy = to.copy = NULL;
    if (is_width(width) && from.buffer.len == to.buffer.len && from.buffer.len % width == 0) {
        Memory *elements = joining ? &to : &from;
        from.data = from.buffer.buf;
        to.data = to.buffer.buf;
        Py_BEGIN_ALLOW_THREADS
        error = OUT_OF_MEMORY;
        if (align(elements, (size_t)width)) {
            kernels[log2_floor((uint64_t)width)](from.data, (size_t)(from.buffer.len / width),
                                                 to.data);
            if (to.copy) memcpy(to.buffer.buf, to.copy, (size_t)to.buffer.len);
            error = NULL;
        }
        Py_END_ALLOW_THREADS
    }
    release(&from);
    release(&to);
    if (error) return failed(error);
    Py_RETURN_NONE;
}

enum { POSITION = sizeof(uint32_t), SPARE = 64 * POSITION };

/* Returns the positions and values of `count` changes as Python objects. */
static PyObject *pack(const uint8_t *positions, const uint8_t *values, size_t count, int width) {
    Py_ssize_t sizes[2] = {(Py_ssize_t)(count * POSITION), (Py_ssize_t)count * width};
    PyObject *first = PyBytes_FromStringAndSize(NULL, sizes[0]);
    PyObject *second = PyByteArray_FromStringAndSize(NULL, sizes[1]);
    PyObject *result = first && second ? PyTuple_Pack(2, first, second) : NULL;
    if (result) {
        char *to[2] = {PyBytes_AsString(first), PyByteArray_AsString(second)};
        Py_BEGIN_ALLOW_THREADS
        memcpy(to[0], positions, (size_t)sizes[0]);
        memcpy(to[1], values, (size_t)sizes[1]);
        Py_END_ALLOW_THREADS
    }
    Py_XDECREF(first);
    Py_XDECREF(second);
    return result;
}

static PyObject *changes(PyObject *self, PyObject *args) {
    Py_buffer old, new;
    int width;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*i", &old, &new, &width)) return NULL;
    const char *error = 
        "changes need two buffers of the same number of elements, below 2^32 - 1, "
        "of 1, 2, 4 or 8 bytes";
    uint8_t *positions = NULL, *values = NULL;
    size_t limit = 0, found = 0; /* limit: changes that are no larger than all elements */
    if (is_width(width) && old.len == new.len &&
        check_size(old.len, log2_floor((uint64_t)width))) {
        limit = (size_t)old.len / (POSITION + (size_t)width);
        Py_BEGIN_ALLOW_THREADS
        error = OUT_OF_MEMORY;
        positions = malloc(limit * (POSITION + (size_t)width) + SPARE);
        if (positions) {
            values = positions + limit * POSITION + SPARE;
            found = target->changes[log2_floor((uint64_t)width)](
                old.buf, new.buf, (size_t)(old.len / width), limit, positions, values);
            error = NULL;
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&old);
    PyBuffer_Release(&new);
    PyObject *result = error           ? failed(error)
                       : found > limit ? Py_NewRef(Py_None)
                                       : pack(positions, values, found, width);
    free(positions);
    return result;
}

static PyObject *swap(PyObject *self, PyObject *args) {
    Py_buffer memory, positions, values;
    int width;
    (void)self;
    if (!PyArg_ParseTuple(args, "w*y*w*i", &memory, &positions, &values, &width)) return NULL;
    const char *error = 
        "a patch needs fewer than 2^32 - 1 elements, of 1, 2, 4 or 8 bytes, "
        "and one value for each position";
    if (is_width(width) && check_size(memory.len, log2_floor((uint64_t)width)) &&
        positions.len % POSITION == 0 && values.len % width == 0 &&
        values.len / width == positions.len / POSITION) {
        Py_BEGIN_ALLOW_THREADS
        error = NULL;
        if (!target->swap[log2_floor((uint64_t)width)](
                memory.buf, (size_t)(memory.len / width), positions.buf,
                (size_t)positions.len / POSITION, values.buf))
            error = "the positions of a patch must ascend and be below the number of elements";
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&memory);
    PyBuffer_Release(&positions);
    PyBuffer_Release(&values);
    if (error) return failed(error);
    Py_RETURN_NONE;
}

static bool is_cast(int kind) { return kind >= CAST_E5M2 && kind <= CAST_F32; }

static PyObject *cast(PyObject *self, PyObject *args) {
    Py_buffer from, to;
    int kind, out_kind, toward_zero;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*iw*ip", &from, &kind, &to, &out_kind, &toward_zero)) return NULL;
    const char *error = "casts need floats of up to 32 bits, and two buffers of as many elements";
    if (is_cast(kind) && is_cast(out_kind)) {
        unsigned log_width = kinds[kind].log_width, log_out = kinds[out_kind].log_width;
        Py_ssize_t count = from.len >> log_width;
        if (count << log_width == from.len && count << log_out == to.len) {
            Py_BEGIN_ALLOW_THREADS
            target->cast(from.buf, (unsigned)kind, log_width, (size_t)count, to.buf,
                         (unsigned)out_kind, log_out, toward_zero != 0);
            error = NULL;
            Py_END_ALLOW_THREADS
        }
    }
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    if (error) return failed(error);
    Py_RETURN_NONE;
}

#include "module_records.h"

static PyObject *sparse_encode(PyObject *self, PyObject *args) {
    (void)self;
    return encode(args, target->sparse_encode);
}

static PyObject *dense_encode(PyObject *self, PyObject *args) {
    (void)self;
    return encode(args, target->dense_encode);
}

static PyObject *sparse_decode(PyObject *self, PyObject *args) {
    (void)self;
    return decode(args, target->sparse_decode);
}

static PyObject *dense_decode(PyObject *self, PyObject *args) {
    (void)self;
    return decode(args, target->dense_decode);
}

static PyObject *split_planes(PyObject *self, PyObject *args) {
    (void)self;
    return arrange(args, target->split, false);
}

static PyObject *join_planes(PyObject *self, PyObject *args) {
    (void)self;
    return arrange(args, target->join, true);
}

static PyObject *use(PyObject *self, PyObject *args) {
    const char *name;
    (void)self;
    if (!PyArg_ParseTuple(args, "s", &name)) return NULL;
    for (size_t n = 0; n < sizeof targets / sizeof *targets; n++)
        if (!strcmp(targets[n].name, name) && is_supported(&targets[n])) {
            target = &targets[n];
            Py_RETURN_NONE;
        }
    return PyErr_Format(PyExc_ValueError, "this processor has no kernels %s", name);
}

static PyMethodDef methods[] = {
    {"sparse_encode", sparse_encode, METH_VARARGS, "sparse_encode(base, new, kind) -> bytes"},
    {"sparse_decode", sparse_decode, METH_VARARGS, "sparse_decode(payload, base_to_new)"},
    {"dense_encode", dense_encode, METH_VARARGS, "dense_encode(base, new, kind) -> bytes"},
    {"dense_decode", dense_decode, METH_VARARGS, "dense_decode(payload, base_to_new)"},
    {"split_planes", split_planes, METH_VARARGS, "split_planes(elements, planes, width)"},
    {"join_planes", join_planes, METH_VARARGS, "join_planes(planes, elements, width)"},
    {"changes", changes, METH_VARARGS, "changes(old, new, width) -> (positions, values) or None"},
    {"swap", swap, METH_VARARGS, "swap(memory, positions, values, width)"},
    {"cast", cast, METH_VARARGS, "cast(elements, kind, out, out_kind, toward_zero)"},
    {"expect", expect, METH_VARARGS, "expect(old_scales, new_scales, numbers, bits, elements)"},
    {"take_field", take_field, METH_VARARGS, "take_field(records, size, offset, stream)"},
    {"put_field", put_field, METH_VARARGS, "put_field(stream, size, offset, records)"},
    {"count_values", count_values, METH_VARARGS, "count_values(records, size) -> bytes"},
    {"unpack_numbers", unpack_numbers, METH_VARARGS, "unpack_numbers(stored, bits, numbers)"},
    {"number_elements", number_elements, METH_VARARGS,
     "number_elements(stored, bits, known, elements)"},
    {"pack_numbers", pack_numbers, METH_VARARGS, "pack_numbers(elements, known, bits, stored)"},
    {"use", use, METH_VARARGS, "use(target): call the kernels for this target from now on"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_compiled", "Compiled kernels of the encodings.", -1, methods, NULL,
    NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__compiled(void) {
    init_learning_rates();
    init_log_table();
    init_set_bits();
    PyObject *self = PyModule_Create(&module);
    PyObject *names = PyList_New(0);
    for (size_t n = 0; self && names && n < sizeof targets / sizeof *targets; n++) {
        if (!is_supported(&targets[n])) continue;
        target = &targets[n]; /* the last one is the fastest */
        PyObject *name = PyUnicode_FromString(targets[n].name);
        if (!name || PyList_Append(names, name)) Py_CLEAR(self);
        Py_XDECREF(name);
    }
    if (self && names && PyModule_AddObjectRef(self, "TARGETS", names)) Py_CLEAR(self);
    Py_XDECREF(names);
    return self;
}
