/* Replaces libFuzzer on compilers without it: calls the same functions with random inputs, and
 * accepts the options that tools/fuzz/run uses. The same seed always creates the same inputs. */
#include <sanitizer/common_interface_defs.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max_size, unsigned seed);

enum { MAX_INPUT = 4096, FIRST_INPUT = 32, MAX_ROUNDS = 4, LONGEST_SECONDS = 20 };

static unsigned seed = 1; /* seed of the current input */
static uint64_t state;

static unsigned next_random(void) { /* the high bits of a linear congruential generator */
    state = state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (unsigned)(state >> 33);
}

static void tell_seed(void) { fprintf(stderr, "again: -seed=%u -runs=1\n", seed); }

static void too_slow(int number) {
    (void)number;
    abort(); /* prints a stack trace */
}

static size_t insert_byte(uint8_t *data, size_t size, size_t at) {
    memmove(data + at + 1, data + at, size - at);
    data[at] = (uint8_t)next_random();
    return size + 1;
}

static size_t remove_byte(uint8_t *data, size_t size, size_t at) {
    memmove(data + at, data + at + 1, size - at - 1);
    return size - 1;
}

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max_size) {
    size_t at = next_random() % size;
    switch (next_random() % 8) {
    case 0: return size < max_size ? insert_byte(data, size, at) : size;
    case 1: return size > 1 ? remove_byte(data, size, at) : size;
    case 2: data[at] = next_random() % 2 ? 0 : 255; break;
    case 3: data[at] ^= (uint8_t)next_random(); break;
    default: data[at] ^= (uint8_t)(1u << next_random() % 8);
    }
    return size;
}

static size_t make_input(uint8_t *data) {
    state = seed;
    for (unsigned n = 0; n < 4; n++) next_random(); /* so that neighbouring seeds diverge */
    size_t size = 1 + next_random() % FIRST_INPUT;
    for (size_t n = 0; n < size; n++) data[n] = (uint8_t)next_random();
    unsigned rounds = next_random() % 2 ? next_random() % MAX_ROUNDS + 1 : 0;
    for (; rounds; rounds--)
        size = LLVMFuzzerCustomMutator(data, size, MAX_INPUT, next_random());
    return size;
}

int main(int argc, char **argv) {
    unsigned runs = UINT32_MAX, seconds = UINT32_MAX;
    for (int n = 1; n < argc; n++) {
        sscanf(argv[n], "-seed=%u", &seed);
        sscanf(argv[n], "-runs=%u", &runs);
        sscanf(argv[n], "-max_total_time=%u", &seconds);
    }
    LLVMFuzzerInitialize(&argc, &argv);
    __sanitizer_set_death_callback(tell_seed);
    signal(SIGALRM, too_slow);
    time_t start = time(NULL);
    unsigned first = seed;
    for (; runs && time(NULL) - start < (time_t)seconds; runs--, seed++) {
        uint8_t data[MAX_INPUT];
        alarm(LONGEST_SECONDS);
        LLVMFuzzerTestOneInput(data, make_input(data));
    }
    fprintf(stderr, "%u inputs\n", seed - first);
    return 0;
}
