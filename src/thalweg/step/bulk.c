/* Questions to many tensors in one call, that Python would ask of each in turn.
 *
 * An object is a Python tensor; its at::Tensor lies `offset` bytes behind its start.
 * The functions of libtorch and Python are passed in: nothing is linked.
 */
#include <stdint.h>
#include <string.h>

typedef int32_t (*data_ptr_function)(void *tensor, void **address);
typedef void (*bump_function)(const void *tensor);
typedef void *(*item_function)(void *sequence, intptr_t position);
typedef int (*next_function)(void *dict, intptr_t *position, void **key, void **value);

static int64_t address_of(char *object, int64_t offset, data_ptr_function data_ptr)
{
    void *address = 0;
    return data_ptr(object + offset, &address) ? -1 : (int64_t)(intptr_t)address;
}

/* Whether each object lies where it is known to. */
int32_t thalweg_lie_at(int64_t count, char *const *objects, int64_t offset,
    data_ptr_function data_ptr, const int64_t *known)
{
    for (int64_t i = 0; i < count; ++i) {
        if (address_of(objects[i], offset, data_ptr) != known[i]) {
            return 0;
        }
    }
    return 1;
}

/* Where the objects of a list or tuple lie; 0 if one does not say. */
int32_t thalweg_addresses(void *sequence, int64_t count, item_function item,
    int64_t offset, data_ptr_function data_ptr, int64_t *addresses)
{
    for (int64_t i = 0; i < count; ++i) {
        addresses[i] = address_of(item(sequence, i), offset, data_ptr);
        if (addresses[i] == -1) {
            return 0;
        }
    }
    return 1;
}

/* Whether pieces of memory exist, and touch no span.
 *
 * The table holds the sizes of the pieces, the addresses at which they were last found
 * apart, the number of spans, where they start and where they end: sorted and disjoint.
 */
int32_t thalweg_lie_apart(int64_t count, const int64_t *addresses, int64_t *table)
{
    const int64_t *sizes = table, num_spans = table[2 * count];
    const int64_t *starts = table + 2 * count + 1, *ends = starts + num_spans;
    int64_t *seen = table + count;
    if (!memcmp(seen, addresses, (size_t)count * sizeof *seen)) {
        return 1;
    }
    for (int64_t i = 0; i < count; ++i) {
        int64_t low = 0, high = sizes[i] ? num_spans : 0;
        if (sizes[i] && !addresses[i]) {
            return 0;
        }
        while (low < high) { /* all spans before `low` start before the piece ends */
            const int64_t middle = (low + high) / 2;
            if (starts[middle] < addresses[i] + sizes[i]) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        if (low && ends[low - 1] > addresses[i]) {
            return 0;
        }
    }
    memcpy(seen, addresses, (size_t)count * sizeof *seen);
    return 1;
}

/* Tell autograd that each object was written. */
void thalweg_count_writes(
    int64_t count, char *const *objects, int64_t offset, bump_function bump)
{
    for (int64_t i = 0; i < count; ++i) {
        bump(objects[i] + offset);
    }
}

/* Whether dicts hold the known values, all of them, in their order. */
int32_t thalweg_hold(int64_t num_dicts, void *const *dicts, next_function next,
    int64_t count, void *const *known)
{
    int64_t seen = 0;
    for (int64_t number = 0; number < num_dicts; ++number) {
        intptr_t position = 0;
        void *key, *value;
        while (next(dicts[number], &position, &key, &value)) {
            if (seen == count || value != known[seen]) {
                return 0;
            }
            ++seen;
        }
    }
    return seen == count;
}
