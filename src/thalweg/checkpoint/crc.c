/* CRC-32 of zlib by carry-less multiplication: 64 bytes are folded into 64 at a time.

   Multiplying by x^n modulo the polynomial moves bits n places on. Four lanes of 128
   bits are moved over 512 bits and added to the next 64 bytes; at the end they are
   folded into one. What is left are 16 bytes with the same sum as all that was read. */
#include <stdint.h>

#if defined(__PCLMUL__) && defined(__SSE4_1__)
#include <immintrin.h>

static __m128i fold(__m128i lane, __m128i by, __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(lane, by, 0x00);
    __m128i high = _mm_clmulepi64_si128(lane, by, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

static __m128i load(const uint8_t *data)
{
    return _mm_loadu_si128((const __m128i *)data);
}

/* `count` is a multiple of 64 and at least 64. Returns 1; 0 where it cannot. */
int thalweg_crc(const uint8_t *data, int64_t count, uint32_t crc, uint8_t *left)
{
    const __m128i over_512 = _mm_set_epi64x(0x1c6e41596, 0x154442bd4);
    const __m128i over_128 = _mm_set_epi64x(0x0ccaa009e, 0x1751997d0);
    __m128i lanes[4];
    for (int i = 0; i < 4; i++)
        lanes[i] = load(data + 16 * i);
    lanes[0] = _mm_xor_si128(lanes[0], _mm_cvtsi32_si128((int)~crc));
    for (data += 64, count -= 64; count > 0; data += 64, count -= 64)
        for (int i = 0; i < 4; i++)
            lanes[i] = fold(lanes[i], over_512, load(data + 16 * i));
    for (int i = 1; i < 4; i++)
        lanes[i] = fold(lanes[i - 1], over_128, lanes[i]);
    _mm_storeu_si128((__m128i *)left, lanes[3]);
    return 1;
}
#else
int thalweg_crc(const uint8_t *data, int64_t count, uint32_t crc, uint8_t *left)
{
    (void)data, (void)count, (void)crc, (void)left;
    return 0;
}
#endif
