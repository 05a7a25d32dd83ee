/* Shared by all kernels of a translation unit: halves, and the order of sums. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t thalweg_bfloat16;
typedef uint16_t thalweg_float16;

enum {
    THALWEG_LANES = 256,
    THALWEG_CHUNK = 16384,
    THALWEG_SERIAL = 32768, /* fewer elements are work for one thread */
    THALWEG_BLOCK = 64,     /* elements of a block of the dense loop */
    THALWEG_FETCH = 256,    /* how many elements ahead of it memory is fetched */
    THALWEG_LONG = 16384,   /* shorter pieces are not fetched ahead */
};

#define THALWEG_INLINE inline __attribute__((always_inline))

static inline float thalweg_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t thalweg_bits(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Halves go through integers: the text vectorizes on every processor. */

static inline float thalweg_load_bfloat16(thalweg_bfloat16 half)
{
    return thalweg_float((uint32_t)half << 16);
}

static inline thalweg_bfloat16 thalweg_store_bfloat16(float value)
{
    const uint32_t bits = thalweg_bits(value);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    return (thalweg_bfloat16)(value != value ? 0x7fc0u : rounded);
}

static inline float thalweg_load_float16(thalweg_float16 half)
{
    const uint32_t sign = ((uint32_t)half & 0x8000u) << 16;
    const uint32_t rest = (uint32_t)half & 0x7fffu;
    /* 0.5 with the half's bits as lowest mantissa bits, less 0.5: exact below 2^-14. */
    const float small = thalweg_float(rest | 0x3f000000u) - 0.5f;
    const uint32_t tiny = thalweg_bits(small);
    const uint32_t normal = (rest << 13) + (112u << 23);
    const uint32_t special = (rest << 13) + (224u << 23);
    const uint32_t large = rest < 0x7c00u ? normal : special;
    return thalweg_float(sign | (rest < 0x0400u ? tiny : large));
}

static inline thalweg_float16 thalweg_store_float16(float value)
{
    const uint32_t bits = thalweg_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t rest = bits & 0x7fffffffu;
    /* Below 2^-14 the sum with 0.5 rounds to a multiple of 2^-24, ties to even. */
    const uint32_t tiny = thalweg_bits(thalweg_float(rest) + 0.5f) - 0x3f000000u;
    const uint32_t normal = (rest - (112u << 23) + 0x0fffu + ((rest >> 13) & 1u)) >> 13;
    const uint32_t special = rest > 0x7f800000u ? 0x7e00u : 0x7c00u;
    const uint32_t finite = rest < 0x38800000u ? tiny : normal;
    return (thalweg_float16)(sign | (rest < 0x477ff000u ? finite : special));
}

static inline int64_t thalweg_smaller(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static inline double thalweg_maximum(double a, double b)
{
    return a > b ? a : (a != a ? a : b);
}

/* A power of two: the lanes behind hold what a sum or a maximum begins with. */
static inline int64_t thalweg_used_lanes(int64_t length)
{
    int64_t used = THALWEG_LANES;
    while (used > 1 && used / 2 >= length) {
        used /= 2;
    }
    return used;
}

/* Folds the lanes in halves; the lanes are used up. */
static double thalweg_fold_sum(double *lanes, int64_t used)
{
    for (int64_t half = used / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) {
            lanes[lane] += lanes[lane + half];
        }
    }
    return lanes[0];
}

static double thalweg_fold_maximum(double *lanes, int64_t used)
{
    for (int64_t half = used / 2; half > 0; half /= 2) {
        for (int64_t lane = 0; lane < half; ++lane) {
            lanes[lane] = thalweg_maximum(lanes[lane], lanes[lane + half]);
        }
    }
    return lanes[0];
}

/* Where a share of the elements cuts an item: at a multiple of `unit`. */
static inline int64_t thalweg_cut(int64_t place, int64_t unit, int64_t length)
{
    if (place <= 0) {
        return 0;
    }
    return place >= length ? length : place / unit * unit;
}

/* The first row whose gradients and itself lie at or behind a share of the work. */
static inline int64_t thalweg_find(const int64_t *starts, int64_t num_items, int64_t share)
{
    int64_t low = 0, high = num_items;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (starts[middle] - starts[0] + middle < share) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low;
}

/* The row that begins at an offset; exact, and faster than a division of integers. */
static inline int64_t thalweg_row(int64_t offset, int64_t width)
{
    return (int64_t)((double)offset / (double)width);
}

/* How many rows ahead to fetch: enough lines for short rows, no more for long ones. */
static inline int64_t thalweg_ahead(int64_t num_bytes)
{
    return num_bytes >= 256 ? 2 : num_bytes <= 32 ? 16 : 512 / num_bytes;
}

/* Long rows are left to the processor after their first lines. */
static inline void thalweg_prefetch(const void *address, int64_t num_bytes)
{
    const int64_t stop = num_bytes < 512 ? num_bytes : 512;
    for (int64_t offset = 0; offset < stop; offset += 64) {
        __builtin_prefetch((const char *)address + offset, 1);
    }
}

static void *thalweg_grow(void *buffer, int64_t num_bytes)
{
    free(buffer);
    buffer = malloc((size_t)num_bytes);
    if (buffer == NULL) {
        abort();
    }
    return buffer;
}
