/* Questions to many tensors in one call, that Python would ask of each in turn.
 *
 * An object is a Python tensor; its at::Tensor lies `offset` bytes behind its start.
 * The functions of libtorch and Python are passed in: nothing is linked.
 */
#include <stdint.h>

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
