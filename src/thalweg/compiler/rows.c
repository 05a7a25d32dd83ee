/* Touched rows: indices sorted by radix, equal ones grouped in order of appearance.
 *
 * Index and position are sorted as one number, which must have 64 bits at most. */
#include <stdint.h>
#include <string.h>

enum { THALWEG_DIGIT = 10 };

/* Bits of the numbers below `count`. */
static inline int thalweg_bits(int64_t count)
{
    return count > 1 ? 64 - __builtin_clzll((uint64_t)count - 1) : 0;
}

/* The position of the first index out of range, or -1; tells whether they ascend. */
static inline int64_t thalweg_check(
    int64_t count, const int64_t *wide, const int32_t *narrow, int64_t num_rows,
    int *ascends)
{
    int wrong = 0, descends = 0;
    int64_t before = 0;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t index = wide ? wide[i] : narrow[i];
        wrong |= (uint64_t)index >= (uint64_t)num_rows;
        descends |= index < before;
        before = index;
    }
    *ascends = !descends;
    for (int64_t i = 0; wrong && i < count; ++i) {
        const int64_t index = wide ? wide[i] : narrow[i];
        if ((uint64_t)index >= (uint64_t)num_rows) {
            return i;
        }
    }
    return -1;
}

/* One stable pass over the bits from `shift` on; `bits` of them. */
static void thalweg_pass(
    int64_t count, const uint64_t *from, uint64_t *to, int shift, int bits)
{
    int64_t places[1 << THALWEG_DIGIT];
    const uint64_t mask = ((uint64_t)1 << bits) - 1;
    memset(places, 0, (size_t)(mask + 1) * sizeof *places);
    for (int64_t i = 0; i < count; ++i) {
        places[(from[i] >> shift) & mask] += 1;
    }
    int64_t before = 0;
    for (uint64_t digit = 0; digit <= mask; ++digit) {
        const int64_t size = places[digit];
        places[digit] = before;
        before += size;
    }
    for (int64_t i = 0; i < count; ++i) {
        to[places[(from[i] >> shift) & mask]++] = from[i];
    }
}

/* Sorts by the bits from `shift` on, with as much room behind the numbers; returns
 * where the result begins. */
static const uint64_t *thalweg_sort(int64_t count, uint64_t *numbers, int shift, int all)
{
    const int passes = (all + THALWEG_DIGIT - 1) / THALWEG_DIGIT;
    uint64_t *from = numbers, *to = numbers + count;
    for (int left = passes; left > 0; --left) {
        const int bits = (all + left - 1) / left;
        thalweg_pass(count, from, to, shift, bits);
        uint64_t *const sorted = to;
        to = from;
        from = sorted;
        shift += bits;
        all -= bits;
    }
    return from;
}

/* items: [unique][5], starts: [unique + 1], sources: [count], numbers: [2 * count].
 * Returns the number of unique indices, or -1 - position of one out of range. */
static inline int64_t thalweg_group(
    int64_t count, const int64_t *wide, const int32_t *narrow, int64_t num_rows,
    int64_t width, int64_t variable, int64_t gradient, int64_t scalar_row, int64_t base,
    uint64_t *numbers, int64_t *restrict items, int64_t *restrict starts,
    int64_t *restrict sources)
{
    const int bits = thalweg_bits(count);
    const uint64_t mask = ((uint64_t)1 << bits) - 1;
    int ascends = 0;
    const int64_t wrong = thalweg_check(count, wide, narrow, num_rows, &ascends);
    if (wrong >= 0) {
        return -1 - wrong;
    }
    for (int64_t i = 0; i < count; ++i) {
        numbers[i] = (uint64_t)(wide ? wide[i] : narrow[i]) << bits | (uint64_t)i;
    }
    const uint64_t *const sorted =
        ascends ? numbers : thalweg_sort(count, numbers, bits, thalweg_bits(num_rows));
    /* No branch on whether a row is new: it could not be predicted. The gradients of a
     * row end where those of the next begin, and its item is written again for each. */
    int64_t last = -1, before = -1;
    starts[0] = base;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t index = (int64_t)(sorted[i] >> bits);
        last += index != before;
        before = index;
        int64_t *const touched = items + last * 5;
        touched[0] = variable;
        touched[1] = index * width;
        touched[2] = gradient;
        touched[3] = width;
        touched[4] = scalar_row;
        starts[last + 1] = base + i + 1;
        sources[i] = (int64_t)(sorted[i] & mask);
    }
    return last + 1;
}

int64_t thalweg_group_int64(
    int64_t count, const int64_t *indices, int64_t num_rows, int64_t width,
    int64_t variable, int64_t gradient, int64_t scalar_row, int64_t base,
    uint64_t *numbers, int64_t *items, int64_t *starts, int64_t *sources)
{
    return thalweg_group(count, indices, 0, num_rows, width, variable, gradient,
                         scalar_row, base, numbers, items, starts, sources);
}

int64_t thalweg_group_int32(
    int64_t count, const int32_t *indices, int64_t num_rows, int64_t width,
    int64_t variable, int64_t gradient, int64_t scalar_row, int64_t base,
    uint64_t *numbers, int64_t *items, int64_t *starts, int64_t *sources)
{
    return thalweg_group(count, 0, indices, num_rows, width, variable, gradient,
                         scalar_row, base, numbers, items, starts, sources);
}
