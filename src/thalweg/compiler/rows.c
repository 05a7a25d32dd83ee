/* Touched rows: sorted by index, equal ones in order of appearance, and walked.
 *
 * The threads take small shares of the rows in turn and write the work items of each on
 * their stack, where the kernel reads them at once: tables of all items would be driven
 * out of the caches by the rows. */
#include <stdint.h>
#include <string.h>

enum {
    THALWEG_DIGIT = 10,     /* bits of an index that one pass sorts by */
    THALWEG_SHARE = 128,    /* most positions of a share */
    THALWEG_LENGTH = 8192,  /* about as many elements, where rows are long */
    THALWEG_SERIAL = 32768, /* as in kernels: fewer elements are work for one thread */
};

/* The indices of one variable, in a table of int64 that Python fills. */
typedef struct {
    int64_t count;
    const void *indices;
    int64_t is_wide; /* int64 or int32 */
    int64_t begin;   /* its place in the list of all sources */
    int64_t num_rows, width, variable, scalar_row;
} thalweg_rows;

typedef void (*thalweg_kernel)(
    int64_t num_items, const int64_t *items, void *const *pointers, double *scalars,
    int64_t num_rows, int num_threads, const int64_t *starts, const int64_t *sources);

static inline int64_t thalweg_index(const thalweg_rows *rows, int64_t position)
{
    return rows->is_wide ? ((const int64_t *)rows->indices)[position]
                         : ((const int32_t *)rows->indices)[position];
}

/* Bits of the numbers below `count`. */
static inline int thalweg_num_bits(int64_t count)
{
    return count > 1 ? 64 - __builtin_clzll((uint64_t)count - 1) : 0;
}

/* Whether all are in range; tells whether they ascend. */
static int thalweg_check(const thalweg_rows *rows, int *ascends)
{
    int wrong = 0, descends = 0;
    int64_t before = 0;
    for (int64_t i = 0; i < rows->count; ++i) {
        const int64_t index = thalweg_index(rows, i);
        wrong |= (uint64_t)index >= (uint64_t)rows->num_rows;
        descends |= index < before;
        before = index;
    }
    *ascends = !descends;
    return !wrong;
}

/* One stable pass over positions, all in order at first; the last writes sources. */
static void thalweg_pass(
    const thalweg_rows *rows, const uint32_t *from, uint32_t *to, int64_t *sources,
    int shift, int bits)
{
    const int64_t count = rows->count;
    const uint64_t mask = ((uint64_t)1 << bits) - 1;
    uint32_t places[1 << THALWEG_DIGIT];
    memset(places, 0, (size_t)(mask + 1) * sizeof *places);
    for (int64_t i = 0; i < count; ++i) {
        places[((uint64_t)thalweg_index(rows, i) >> shift) & mask] += 1;
    }
    uint32_t before = 0;
    for (uint64_t digit = 0; digit <= mask; ++digit) {
        const uint32_t size = places[digit];
        places[digit] = before;
        before += size;
    }
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t position = from ? from[i] : (uint32_t)i;
        const uint64_t index = (uint64_t)thalweg_index(rows, position);
        const uint32_t place = places[(index >> shift) & mask]++;
        if (to) {
            to[place] = position;
        } else {
            sources[place] = position;
        }
    }
}

/* Sorts positions by index; `scratch` has room for two of each. */
static void thalweg_sort(const thalweg_rows *rows, uint32_t *scratch, int64_t *sources)
{
    int all = thalweg_num_bits(rows->num_rows), shift = 0;
    uint32_t *from = 0, *to = scratch, *other = scratch + rows->count;
    for (int left = (all + THALWEG_DIGIT - 1) / THALWEG_DIGIT; left > 0; --left) {
        const int bits = (all + left - 1) / left;
        thalweg_pass(rows, from, left == 1 ? 0 : to, sources, shift, bits);
        from = to;
        to = other;
        other = from;
        shift += bits;
        all -= bits;
    }
}

/* Fills the sources of all variables; false if an index is out of range. */
int thalweg_sort_rows(
    int64_t num_variables, const thalweg_rows *variables, uint32_t *scratch,
    int64_t *sources, int num_threads)
{
    int wrong = 0;
#pragma omp parallel for schedule(dynamic) num_threads(num_threads) \
    reduction(| : wrong) if (num_variables > 1 && num_threads > 1)
    for (int64_t number = 0; number < num_variables; ++number) {
        const thalweg_rows *const rows = variables + number;
        int64_t *const found = sources + rows->begin;
        int ascends = 0;
        if (!thalweg_check(rows, &ascends)) {
            wrong = 1;
        } else if (!ascends) {
            thalweg_sort(rows, scratch + 2 * rows->begin, found);
        } else {
            for (int64_t i = 0; i < rows->count; ++i) {
                found[i] = i;
            }
        }
    }
    return !wrong;
}

static inline int64_t thalweg_share(const thalweg_rows *rows)
{
    const int64_t wanted = THALWEG_LENGTH / (rows->width > 0 ? rows->width : 1);
    return wanted < 1 ? 1 : wanted > THALWEG_SHARE ? THALWEG_SHARE : wanted;
}

/* The first place from `place` on where a row begins; `limit` if that is further. */
static inline int64_t thalweg_cut(
    const thalweg_rows *rows, const int64_t *sources, int64_t place, int64_t limit)
{
    if (place == 0) {
        return 0;
    }
    const int64_t before = thalweg_index(rows, sources[place - 1]);
    while (place < limit && thalweg_index(rows, sources[place]) == before) {
        ++place;
    }
    return place;
}

/* Updates the rows that begin in one share. */
static void thalweg_walk_share(
    const thalweg_rows *rows, const int64_t *sources, int64_t share,
    thalweg_kernel kernel, void *const *pointers, double *scalars)
{
    int64_t items[5 * THALWEG_SHARE], starts[THALWEG_SHARE + 1];
    const int64_t size = thalweg_share(rows), count = rows->count;
    const int64_t next = (share + 1) * size < count ? (share + 1) * size : count;
    const int64_t begin = thalweg_cut(rows, sources, share * size, next);
    if (begin == next) {
        return;
    }
    const int64_t end = thalweg_cut(rows, sources, next, count);
    /* No branch on whether a row is new: it could not be predicted. The gradients of a
     * row end where those of the next begin, and its item is written again for each. */
    int64_t last = -1, before = -1;
    starts[0] = begin;
    for (int64_t place = begin; place < end; ++place) {
        const int64_t index = thalweg_index(rows, sources[place]);
        last += index != before;
        before = index;
        int64_t *const item = items + last * 5;
        item[0] = rows->variable;
        item[1] = index * rows->width;
        item[2] = 0;
        item[3] = rows->width;
        item[4] = rows->scalar_row;
        starts[last + 1] = place + 1;
    }
    kernel(last + 1, items, pointers, scalars, 0, 1, starts, sources);
}

/* Updates the rows of all variables, whose sources are filled. */
void thalweg_walk_rows(
    int64_t num_variables, const thalweg_rows *variables, const int64_t *sources,
    thalweg_kernel kernel, void *const *pointers, double *scalars, int64_t num_rows,
    int num_threads)
{
    const int64_t none[5] = {0};
    int64_t elements = 0, next = 0;
    for (int64_t number = 0; number < num_variables; ++number) {
        elements += 2 * variables[number].count * variables[number].width;
    }
    const int64_t parts = elements < THALWEG_SERIAL ? 1 : num_threads;
    kernel(0, none, pointers, scalars, num_rows, 1, none, none); /* derives scalars */
#pragma omp parallel for schedule(static) num_threads((int)parts) if (parts > 1)
    for (int64_t part = 0; part < parts; ++part) {
        int64_t number = 0, first = 0;
        for (;;) {
            const int64_t share = __atomic_fetch_add(&next, 1, __ATOMIC_RELAXED);
            for (; number < num_variables; ++number) {
                const int64_t size = thalweg_share(variables + number);
                const int64_t count = (variables[number].count + size - 1) / size;
                if (share < first + count) {
                    break;
                }
                first += count;
            }
            if (number == num_variables) {
                break;
            }
            const thalweg_rows *const rows = variables + number;
            thalweg_walk_share(rows, sources + rows->begin, share - first, kernel,
                               pointers, scalars);
        }
    }
}
