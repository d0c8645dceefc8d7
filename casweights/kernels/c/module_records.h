/* Functions of Python for records: their fields as streams, and numbers as elements. Included by
 * module.c. */

static PyObject *expect(PyObject *self, PyObject *args) {
    Py_buffer old, new, numbers;
    Memory out;
    int bits;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*y*iw*", &old, &new, &numbers, &bits, &out.buffer)) return NULL;
    const char *error = "numbers of 4 or 8 bits need two scales for each record, and as many elements";
    Py_ssize_t records = old.len / 2, count = records ? numbers.len / records : 0;
    out.copy = NULL;
    if ((bits == 4 || bits == 8) && old.len % 2 == 0 && old.len == new.len &&
        records * count == numbers.len && 2 * numbers.len == out.buffer.len) {
        Py_BEGIN_ALLOW_THREADS
        error = OUT_OF_MEMORY;
        if (align(&out, 2)) {
            target->expect(old.buf, new.buf, (size_t)records, numbers.buf, (size_t)count,
                           (unsigned)bits, (uint16_t *)(void *)out.data);
            if (out.copy) memcpy(out.buffer.buf, out.copy, (size_t)out.buffer.len);
            error = NULL;
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&old);
    PyBuffer_Release(&new);
    PyBuffer_Release(&numbers);
    release(&out);
    if (error) return failed(error);
    Py_RETURN_NONE;
}

/* Copies a field of all records to a stream, or back. */
static PyObject *copy_field(Py_buffer *records, Py_ssize_t size, Py_ssize_t offset,
                            Py_buffer *stream, bool back) {
    Py_ssize_t count = size > 0 ? records->len / size : 0;
    Py_ssize_t own = count ? stream->len / count : 0;
    bool fits = size > 0 && count * size == records->len && count * own == stream->len &&
                offset >= 0 && offset <= size && own <= size - offset;
    if (fits && count) {
        uint8_t *at = (uint8_t *)records->buf + offset, *all = stream->buf;
        Py_BEGIN_ALLOW_THREADS
        if (back)
            target->copy_field(all, (size_t)own, at, (size_t)size, (size_t)own, (size_t)count);
        else
            target->copy_field(at, (size_t)size, all, (size_t)own, (size_t)own, (size_t)count);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(records);
    PyBuffer_Release(stream);
    if (!fits) return failed("a field must lie within its records, and fill its stream");
    Py_RETURN_NONE;
}

static PyObject *take_field(PyObject *self, PyObject *args) {
    Py_buffer records, stream;
    Py_ssize_t size, offset;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nnw*", &records, &size, &offset, &stream)) return NULL;
    return copy_field(&records, size, offset, &stream, false);
}

static PyObject *put_field(PyObject *self, PyObject *args) {
    Py_buffer records, stream;
    Py_ssize_t size, offset;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*nnw*", &stream, &size, &offset, &records)) return NULL;
    return copy_field(&records, size, offset, &stream, true);
}

static PyObject *count_values(PyObject *self, PyObject *args) {
    Py_buffer records;
    Py_ssize_t size;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*n", &records, &size)) return NULL;
    bool fits = size > 0 && records.len % size == 0 && records.len >= size;
    PyObject *result = fits ? PyBytes_FromStringAndSize(NULL, 2 * size) : NULL;
    if (result) /* bytes are aligned for any number */
        target->count_values(records.buf, (size_t)size, (size_t)(records.len / size),
                             (uint16_t *)(void *)PyBytes_AsString(result));
    PyBuffer_Release(&records);
    return fits ? result : failed("values are counted of one record or more");
}

/* Whether `stored` bytes have as many numbers as there are in `size` bytes of `width` each. */
static bool fits_numbers(Py_ssize_t stored, int bits, Py_ssize_t size, Py_ssize_t width) {
    return (bits == 4 || bits == 8) && size % width == 0 && size / width == stored * (8 / bits);
}

static const char *const wrong_numbers = "numbers of 4 or 8 bits need as many elements";

static PyObject *unpack_numbers(PyObject *self, PyObject *args) {
    Py_buffer stored, numbers;
    int bits;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*iw*", &stored, &bits, &numbers)) return NULL;
    bool fits = fits_numbers(stored.len, bits, numbers.len, 1);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        target->unpack_numbers(stored.buf, (size_t)stored.len, (unsigned)bits, numbers.buf);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&stored);
    PyBuffer_Release(&numbers);
    if (!fits) return failed(wrong_numbers);
    Py_RETURN_NONE;
}

static PyObject *number_elements(PyObject *self, PyObject *args) {
    Py_buffer stored;
    Memory known, out;
    int bits;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*iy*w*", &stored, &bits, &known.buffer, &out.buffer)) return NULL;
    const char *error = wrong_numbers;
    known.copy = out.copy = NULL;
    if (fits_numbers(stored.len, bits, out.buffer.len, 2) &&
        (!known.buffer.len || known.buffer.len == out.buffer.len)) {
        Py_BEGIN_ALLOW_THREADS
        error = OUT_OF_MEMORY;
        if (align(&known, 2) && align(&out, 2)) {
            const void *given = known.buffer.len ? known.data : NULL;
            target->number_elements(stored.buf, (size_t)stored.len, (unsigned)bits, given,
                                    (uint16_t *)(void *)out.data);
            if (out.copy) memcpy(out.buffer.buf, out.copy, (size_t)out.buffer.len);
            error = NULL;
        }
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&stored);
    release(&known);
    release(&out);
    if (error) return failed(error);
    Py_RETURN_NONE;
}

static PyObject *pack_numbers(PyObject *self, PyObject *args) {
    Memory found, known;
    Py_buffer stored;
    int bits;
    (void)self;
    if (!PyArg_ParseTuple(args, "y*y*iw*", &found.buffer, &known.buffer, &bits, &stored))
        return NULL;
    const char *error = wrong_numbers;
    found.copy = known.copy = NULL;
    if (fits_numbers(stored.len, bits, found.buffer.len, 2) &&
        known.buffer.len == found.buffer.len) {
        Py_BEGIN_ALLOW_THREADS
        error = OUT_OF_MEMORY;
        if (align(&found, 2) && align(&known, 2))
            error = target->pack_numbers((const uint16_t *)(const void *)found.data,
                                         (const uint16_t *)(const void *)known.data,
                                         (size_t)stored.len, (unsigned)bits, stored.buf)
                        ? NULL
                        : "one of its numbers is out of range";
        Py_END_ALLOW_THREADS
    }
    release(&found);
    release(&known);
    PyBuffer_Release(&stored);
    if (error) return failed(error);
    Py_RETURN_NONE;
}
