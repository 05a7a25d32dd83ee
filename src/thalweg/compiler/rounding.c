/* Stochastic rounding to bfloat16; see rounding.py, which says the same in NumPy. */

/* lowbias32 of Chris Wellons, "hash-prospector"; public domain. */
static inline uint32_t thalweg_mix(uint32_t bits)
{
    bits ^= bits >> 16;
    bits *= 0x7feb352du;
    bits ^= bits >> 15;
    bits *= 0x846ca68bu;
    return bits ^ (bits >> 16);
}

/* One number for seed and variable, step, and pair of outputs of the rule. */
static inline uint32_t thalweg_rounding_key(double variable, double step, uint32_t pair)
{
    const uint32_t key = thalweg_mix((uint32_t)(int64_t)variable);
    return thalweg_mix(thalweg_mix(key + pair) + (uint32_t)(int64_t)step);
}

/* What distinguishes the gradients that one row has in the same step. */
static inline uint32_t thalweg_turn(int64_t turn)
{
    return (uint32_t)turn * 0x85ebca6bu;
}

/* Up as often as the value is near to the upper neighbour: by one half of a hash, the
 * other half of which, 16 bits up, is for the other output of the pair. Beyond the
 * largest finite number to nearest, so that only what is an infinity there becomes one. */
static inline thalweg_bfloat16 thalweg_round_bfloat16(
    float value, uint32_t key, int64_t place, uint32_t shift)
{
    const uint32_t high = (uint32_t)((uint64_t)place >> 32) * 0x9e3779b9u;
    const uint32_t hash = thalweg_mix(high + (uint32_t)place + key);
    const uint32_t random = (hash >> shift) & 0xffffu;
    const uint32_t bits = thalweg_bits(value);
    const uint32_t nearest = 0x7fffu + ((bits >> 16) & 1u);
    const uint32_t addend = (bits & 0x7fffffffu) > 0x7f7f0000u ? nearest : random;
    return (thalweg_bfloat16)(value != value ? 0x7fc0u : (bits + addend) >> 16);
}
