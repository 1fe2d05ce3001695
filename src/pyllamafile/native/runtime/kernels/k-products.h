// Products of quants in blocks of 256, whose scales are small whole numbers: the K types, and those
// whose quants stand for values in a table, alone or eight together. The products of a block add up
// to one whole number, scales and offsets included, and only then meet the block's own scale and
// the column's. So it doesn't matter in which order a block is gone through, and the blocks follow
// each other in one order everywhere.
#pragma once

#include "quant-products.h"

namespace {

const int EIGHTS = QK_K / 32; // registers of AVX2 that hold a block's quants, a byte for each
const int STRIP_OF_K = 2;
const int ROWS_OF_K = STRIP_OF_K * LANES;

#if defined(WITH_AVX512)
const int MOST_OF_K = 6; // columns of a tile
#elif defined(WITH_VNNI)
const int MOST_OF_K = 4;
#else
const int MOST_OF_K = 3;
#endif

// What the types have in common: a weight is (quant - OFFSET) * scale * d, or the same with OFFSET
// 0 and - min * dmin; a part of PART quants has one scale and one min. The quants of some, times
// their scale, plus BIAS, still fit eight bits (FOLDED), if the processor adds up their products
// with 32 bits at once. For others, so many STEPS fit 16 bits. WIDE quants have a sign, or an
// offset of 128.
template <int part, int offset, bool min, int bias, int steps> struct k_kind {
    static constexpr int PART = part;
    static constexpr int PARTS = QK_K / part;
    static constexpr bool MIN = min;
    static constexpr bool FOLDED = !SIGNED && bias >= 0;
    static constexpr int BIAS = FOLDED ? bias : 0;
    static constexpr bool WIDE = offset == 128;
    static constexpr int OFFSET = WIDE && SIGNED ? 0 : offset;
    // Of each part's sum in 32 bits, which so can begin with what undoes the offset.
    static constexpr bool STARTS = !SIGNED && OFFSET != 0 && !FOLDED;
    static constexpr int TOGETHER = steps;
};

// So that types of which the same is to be said have the same code.
template <int part, int offset, bool min, int bias, int steps>
using kind_with = k_kind<part, offset, min, bias, SIGNED ? steps : 1>;

kind_with<16, 0, true, 0, 4> kind_of(const block_q2_K &);
kind_with<16, 4, false, 124, 4> kind_of(const block_q3_K &);
kind_with<32, 0, true, -1, 8> kind_of(const block_q4_K &);
kind_with<32, 0, true, -1, 4> kind_of(const block_q5_K &);
kind_with<16, 32, false, -1, 2> kind_of(const block_q6_K &);
kind_with<32, 128, false, -1, 1> kind_of(const block_iq4_xs &);
kind_with<32, 128, false, -1, 2> kind_of(const block_iq2_xxs &); // up to 43
kind_with<16, 128, false, -1, 2> kind_of(const block_iq2_xs &);
kind_with<16, 128, false, -1, 2> kind_of(const block_iq2_s &);
kind_with<32, 128, false, -1, 2> kind_of(const block_iq3_xxs &); // up to 62
kind_with<32, 128, false, -1, 8> kind_of(const block_iq3_s &);   // up to 15
kind_with<32, 128, false, -1, 8> kind_of(const block_iq1_s &);   // up to 9
kind_with<16, 128, false, -1, 4> kind_of(const block_iq1_m &);

template <typename block> using k_traits = decltype(kind_of(std::declval<const block &>()));

// The scales and mins of a block, as bytes, and what they are multiplied by.
struct k_scales {
    __m128i scales;
    __m128i mins;
    float d;
    float dmin;
};

inline __m128i eight_bytes(const void * p) {
    return _mm_loadl_epi64((const __m128i *)p);
}
inline __m256i load_32(const uint8_t * p) {
    return _mm256_loadu_si256((const __m256i *)p);
}
template <int SHIFT, int MASK> inline __m256i bits(__m256i x) {
    return _mm256_and_si256(_mm256_srli_epi16(x, SHIFT), _mm256_set1_epi8(MASK));
}
// Those bits, further up.
template <int SHIFT, int MASK, int UP> inline __m256i bits_at(__m256i x) {
    return _mm256_slli_epi16(bits<SHIFT, MASK>(x), UP);
}

// The quants of a block, in their order.

inline void unpack(const block_q2_K & x, __m256i (&out)[EIGHTS]) {
    for (int half = 0; half < 2; half++) {
        const __m256i q = load_32(x.qs + 32 * half);
        out[4 * half] = bits<0, 3>(q);
        out[4 * half + 1] = bits<2, 3>(q);
        out[4 * half + 2] = bits<4, 3>(q);
        out[4 * half + 3] = bits<6, 3>(q);
    }
}

inline void unpack(const block_q3_K & x, __m256i (&out)[EIGHTS]) {
    __m256i high = load_32(x.hmask);
    for (int half = 0; half < 2; half++) {
        const __m256i q = load_32(x.qs + 32 * half);
        out[4 * half] = _mm256_or_si256(bits<0, 3>(q), bits_at<0, 1, 2>(high));
        out[4 * half + 1] = _mm256_or_si256(bits<2, 3>(q), bits_at<1, 1, 2>(high));
        out[4 * half + 2] = _mm256_or_si256(bits<4, 3>(q), bits_at<2, 1, 2>(high));
        out[4 * half + 3] = _mm256_or_si256(bits<6, 3>(q), bits_at<3, 1, 2>(high));
        high = _mm256_srli_epi16(high, 4);
    }
}

inline void unpack(const block_q4_K & x, __m256i (&out)[EIGHTS]) {
    for (int i = 0; i < 4; i++) {
        const __m256i q = load_32(x.qs + 32 * i);
        out[2 * i] = bits<0, 15>(q);
        out[2 * i + 1] = bits<4, 15>(q);
    }
}

inline void unpack(const block_q5_K & x, __m256i (&out)[EIGHTS]) {
    __m256i high = load_32(x.qh);
    for (int i = 0; i < 4; i++) {
        const __m256i q = load_32(x.qs + 32 * i);
        out[2 * i] = _mm256_or_si256(bits<0, 15>(q), bits_at<0, 1, 4>(high));
        out[2 * i + 1] = _mm256_or_si256(bits<4, 15>(q), bits_at<1, 1, 4>(high));
        high = _mm256_srli_epi16(high, 2);
    }
}

inline void unpack(const block_q6_K & x, __m256i (&out)[EIGHTS]) {
    for (int half = 0; half < 2; half++) {
        const __m256i q = load_32(x.ql + 64 * half), r = load_32(x.ql + 64 * half + 32);
        const __m256i high = load_32(x.qh + 32 * half);
        out[4 * half] = _mm256_or_si256(bits<0, 15>(q), bits_at<0, 3, 4>(high));
        out[4 * half + 1] = _mm256_or_si256(bits<0, 15>(r), bits_at<2, 3, 4>(high));
        out[4 * half + 2] = _mm256_or_si256(bits<4, 15>(q), bits_at<4, 3, 4>(high));
        out[4 * half + 3] = _mm256_or_si256(bits<4, 15>(r), bits_at<6, 3, 4>(high));
    }
}

inline void unpack(const block_iq4_xs & x, __m256i (&out)[EIGHTS]) {
    for (int i = 0; i < EIGHTS; i++) {
        out[i] = look_up(kvalues_iq4nl, nibbles(x.qs + 16 * i));
    }
}

// Values out of a table, eight together or four, and what has a sign of its own.

template <typename place> inline __m256i eights_of(const uint64_t * table, const place & at) {
    return _mm256_setr_epi64x((int64_t)table[at(0)], (int64_t)table[at(1)], (int64_t)table[at(2)],
                              (int64_t)table[at(3)]);
}
template <typename place> inline __m256i fours_of(const uint32_t * table, const place & at) {
    return _mm256_setr_epi32((int)table[at(0)], (int)table[at(1)], (int)table[at(2)],
                             (int)table[at(3)], (int)table[at(4)], (int)table[at(5)],
                             (int)table[at(6)], (int)table[at(7)]);
}

inline __m256i negated(__m256i values, __m256i where) {
    return _mm256_sub_epi8(_mm256_xor_si256(values, where), where);
}
// Where a bit is set, of 32.
inline __m256i with_signs(__m256i values, const void * bits) {
    return negated(values, where_set(bits));
}
// Seven bits for eight values: an even number of them has the sign.
inline __m256i with_even_signs(__m256i values, uint32_t bits) {
    return negated(values, eights_of(ksigns64, [&](int i) { return bits >> 7 * i & 127; }));
}

inline void unpack(const block_iq2_xxs & x, __m256i (&out)[EIGHTS]) {
    for (int i = 0; i < EIGHTS; i++) {
        uint32_t own[2];
        memcpy(own, x.qs + 4 * i, sizeof(own));
        const __m256i sizes = eights_of(iq2xxs_grid, [&](int j) { return own[0] >> 8 * j & 255; });
        out[i] = with_even_signs(sizes, own[1]);
    }
}

inline void unpack(const block_iq2_xs & x, __m256i (&out)[EIGHTS]) {
    for (int i = 0; i < EIGHTS; i++) {
        const uint16_t * const own = x.qs + 4 * i;
        const __m256i sizes = eights_of(iq2xs_grid, [&](int j) { return own[j] & 511; });
        out[i] = negated(sizes, eights_of(ksigns64, [&](int j) { return own[j] >> 9; }));
    }
}

inline void unpack(const block_iq2_s & x, __m256i (&out)[EIGHTS]) {
    for (int i = 0; i < EIGHTS; i++) {
        const uint8_t * const own = x.qs + 4 * i;
        const __m256i sizes =
            eights_of(iq2s_grid, [&](int j) { return own[j] | (x.qh[i] << (8 - 2 * j) & 0x300); });
        out[i] = with_signs(sizes, own + QK_K / 8);
    }
}

inline void unpack(const block_iq3_xxs & x, __m256i (&out)[EIGHTS]) {
    for (int i = 0; i < EIGHTS; i++) {
        uint32_t signs;
        memcpy(&signs, x.qs + QK_K / 4 + 4 * i, sizeof(signs));
        const uint8_t * const own = x.qs + 8 * i;
        out[i] = with_even_signs(fours_of(iq3xxs_grid, [&](int j) { return own[j]; }), signs);
    }
}

inline void unpack(const block_iq3_s & x, __m256i (&out)[EIGHTS]) {
    for (int i = 0; i < EIGHTS; i++) {
        const uint8_t * const own = x.qs + 8 * i;
        const __m256i sizes =
            fours_of(iq3s_grid, [&](int j) { return own[j] | (x.qh[i] << (8 - j) & 256); });
        out[i] = with_signs(sizes, x.signs + 4 * i);
    }
}

// Eight times -1, 0 or 1, and one more or less: d is an eighth.

inline __m256i eight_times(__m256i values) {
    return _mm256_and_si256(_mm256_slli_epi16(values, 3), _mm256_set1_epi8((char)0xf8));
}
inline int64_t one_more_or_less(bool less) {
    return less ? -1 : 0x0101010101010101;
}

inline void unpack(const block_iq1_s & x, __m256i (&out)[EIGHTS]) {
    for (int i = 0; i < EIGHTS; i++) {
        const uint32_t high = x.qh[i];
        const __m256i values =
            eights_of(iq1s_grid, [&](int j) { return x.qs[4 * i + j] | (high >> 3 * j & 7) << 8; });
        const __m256i more = _mm256_set1_epi64x(one_more_or_less(high & 0x8000));
        out[i] = _mm256_add_epi8(eight_times(values), more);
    }
}

inline void unpack(const block_iq1_m & x, __m256i (&out)[EIGHTS]) {
    for (int i = 0; i < EIGHTS; i++) {
        uint16_t high;
        memcpy(&high, x.qh + 2 * i, sizeof(high));
        const auto more = [&](int j) { return one_more_or_less(high >> 4 * j & 8); };
        const __m256i values =
            eights_of(iq1s_grid, [&](int j) { return x.qs[4 * i + j] | (high >> 4 * j & 7) << 8; });
        out[i] = _mm256_add_epi8(eight_times(values),
                                 _mm256_setr_epi64x(more(0), more(1), more(2), more(3)));
    }
}

// Eight scales, and then eight mins, of six bits each: ggml-quants.c, get_scale_min_k4.
inline __m128i six_bits(const uint8_t * packed) {
    uint32_t x[3];
    memcpy(x, packed, sizeof(x));
    const uint32_t low = 0x0f0f0f0f, high = 0x30303030, six = 0x3f3f3f3f;
    return _mm_setr_epi32((int)(x[0] & six), (int)((x[2] & low) | (x[0] >> 2 & high)),
                          (int)(x[1] & six), (int)((x[2] >> 4 & low) | (x[1] >> 2 & high)));
}

template <typename block> k_scales scales_of(const block & x) { // Q4_K, Q5_K
    const __m128i both = six_bits(x.scales);
    return { both, _mm_unpackhi_epi64(both, both), GGML_CPU_FP16_TO_FP32(x.d),
             GGML_CPU_FP16_TO_FP32(x.dmin) };
}

inline k_scales scales_of(const block_q2_K & x) {
    const __m128i both = _mm_loadu_si128((const __m128i *)x.scales), low = _mm_set1_epi8(15);
    return { _mm_and_si128(both, low), _mm_and_si128(_mm_srli_epi16(both, 4), low),
             GGML_CPU_FP16_TO_FP32(x.d), GGML_CPU_FP16_TO_FP32(x.dmin) };
}

inline k_scales scales_of(const block_q3_K & x) {
    uint32_t s[3];
    memcpy(s, x.scales, sizeof(s));
    const uint32_t low = 0x0f0f0f0f, two = 0x03030303;
    const __m128i six = _mm_setr_epi32((int)((s[0] & low) | (s[2] & two) << 4),
                                       (int)((s[1] & low) | (s[2] >> 2 & two) << 4),
                                       (int)((s[0] >> 4 & low) | (s[2] >> 4 & two) << 4),
                                       (int)((s[1] >> 4 & low) | (s[2] >> 6 & two) << 4));
    return { _mm_sub_epi8(six, _mm_set1_epi8(32)), {}, GGML_CPU_FP16_TO_FP32(x.d), 0 };
}

inline k_scales scales_of(const block_q6_K & x) {
    return { _mm_loadu_si128((const __m128i *)x.scales), {}, GGML_CPU_FP16_TO_FP32(x.d), 0 };
}

inline k_scales scales_of(const block_iq4_xs & x) {
    uint32_t fours;
    memcpy(&fours, x.scales_l, sizeof(fours));
    uint64_t low = fours, high = x.scales_h; // to bytes of four bits and of two
    low = (low | low << 16) & 0x0000ffff0000ffff;
    low = (low | low << 8) & 0x00ff00ff00ff00ff;
    low = (low | low << 4) & 0x0f0f0f0f0f0f0f0f;
    high = (high | high << 24) & 0x000000ff000000ff;
    high = (high | high << 12) & 0x000f000f000f000f;
    high = (high | high << 6) & 0x0303030303030303;
    const __m128i six = _mm_cvtsi64_si128((int64_t)(low | high << 4));
    return { _mm_sub_epi8(six, _mm_set1_epi8(32)), {}, GGML_CPU_FP16_TO_FP32(x.d), 0 };
}

// Odd scales, of which a half is in the file.
inline k_scales odd_scales(__m128i halves, float d) {
    const __m128i twice = _mm_add_epi8(halves, halves);
    return { _mm_add_epi8(twice, _mm_set1_epi8(1)), {}, d, 0 };
}
// Of four bits, two in a byte.
inline k_scales odd_scales_of_nibbles(__m128i bytes, float d) {
    const __m128i low = _mm_set1_epi8(15);
    const __m128i both = _mm_unpacklo_epi8(bytes, _mm_srli_epi16(bytes, 4));
    return odd_scales(_mm_and_si128(both, low), d);
}
// The last four bits of eight words.
inline k_scales odd_scales_of_words(__m256i words, float d) {
    const __m256i fours = _mm256_srli_epi32(words, 28);
    const __m128i pairs =
        _mm_packs_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    return odd_scales(_mm_packs_epi16(pairs, pairs), d);
}

inline k_scales scales_of(const block_iq2_xxs & x) {
    const __m256i first = load_32((const uint8_t *)x.qs),
                  second = load_32((const uint8_t *)x.qs + 32);
    const __m256 odd =
        _mm256_shuffle_ps(_mm256_castsi256_ps(first), _mm256_castsi256_ps(second), 0xDD);
    const __m256i words = _mm256_permute4x64_epi64(_mm256_castps_si256(odd), 0xD8);
    return odd_scales_of_words(words, GGML_CPU_FP16_TO_FP32(x.d) / 8);
}
inline k_scales scales_of(const block_iq3_xxs & x) {
    return odd_scales_of_words(load_32(x.qs + QK_K / 4), GGML_CPU_FP16_TO_FP32(x.d) / 4);
}
inline k_scales scales_of(const block_iq2_xs & x) {
    return odd_scales_of_nibbles(eight_bytes(x.scales), GGML_CPU_FP16_TO_FP32(x.d) / 8);
}
inline k_scales scales_of(const block_iq2_s & x) {
    return odd_scales_of_nibbles(eight_bytes(x.scales), GGML_CPU_FP16_TO_FP32(x.d) / 8);
}
inline k_scales scales_of(const block_iq3_s & x) {
    return odd_scales_of_nibbles(_mm_cvtsi32_si128(four((const int8_t *)x.scales)),
                                 GGML_CPU_FP16_TO_FP32(x.d));
}
inline k_scales scales_of(const block_iq1_s & x) {
    const __m128i halves = _mm_srli_epi16(_mm_loadu_si128((const __m128i *)x.qh), 12);
    const __m128i three = _mm_and_si128(halves, _mm_set1_epi16(7));
    return odd_scales(_mm_packs_epi16(three, three), GGML_CPU_FP16_TO_FP32(x.d) / 8);
}
inline k_scales scales_of(const block_iq1_m & x) { // of three bits, and d in what is left of them
    uint64_t words;
    memcpy(&words, x.scales, sizeof(words));
    int8_t halves[16];
    for (int i = 0; i < 16; i++) {
        halves[i] = (int8_t)(words >> (i / 4 * 16 + i % 4 * 3) & 7);
    }
    const uint64_t d =
        (words >> 12 & 0xf) | (words >> 24 & 0xf0) | (words >> 36 & 0xf00) | (words >> 48 & 0xf000);
    return odd_scales(_mm_loadu_si128((const __m128i *)halves),
                      GGML_CPU_FP16_TO_FP32((ggml_half)d) / 8);
}

// A block of every row of a panel, as panel_block. Beside each four quants of all rows stand the
// scales of each part, and in pairs of 16 bits what the sums of the column's parts are multiplied
// by: the mins, or the scales times the offset.
template <typename T> struct k_panel_block {
    static constexpr int PARTS = T::FOLDED ? 0 : T::PARTS;
    static constexpr int SUMS = T::MIN || (T::OFFSET != 0 && SIGNED) ? T::PARTS / 2 : 0;

    alignas(64) uint8_t quants[QK_K / 4][ROWS_OF_K][4];
    alignas(64) int32_t scales[PARTS + 1][ROWS_OF_K]; // d for the last
    alignas(64) int16_t lows[SUMS + 1][ROWS_OF_K][2]; // dmin for the last
};

// What eight rows of a panel have beside their quants, a part after the other.
struct scales_of_eight {
    alignas(8) int8_t scales[16][8];
    alignas(8) int8_t mins[16][8];
    float d[8];
    float dmin[8];
};

template <typename T>
void put_scales(k_panel_block<T> & out, int first, const scales_of_eight & x) {
    using panel = k_panel_block<T>;
    for (int part = 0; part < panel::PARTS; part++) {
        __m256i scales = _mm256_cvtepi8_epi32(eight_bytes(x.scales[part]));
        if (SIGNED) { // two of 16 bits
            const __m256i low = _mm256_and_si256(scales, _mm256_set1_epi32(0xffff));
            scales = _mm256_or_si256(low, _mm256_slli_epi32(scales, 16));
        }
        _mm256_store_si256((__m256i *)(out.scales[part] + first), scales);
    }
    memcpy(out.scales[panel::PARTS] + first, x.d, sizeof(x.d));
    for (int pair = 0; pair < panel::SUMS; pair++) {
        const auto * from = (T::MIN ? x.mins : x.scales) + 2 * pair;
        const __m128i bytes = _mm_unpacklo_epi8(eight_bytes(from[0]), eight_bytes(from[1]));
        __m256i lows = _mm256_cvtepi8_epi16(bytes);
        if (!T::MIN) {
            lows = _mm256_mullo_epi16(lows, _mm256_set1_epi16(-T::OFFSET));
        }
        _mm256_store_si256((__m256i *)out.lows[pair][first], lows);
    }
    if constexpr (T::MIN) {
        memcpy(out.lows[panel::SUMS][first], x.dmin, sizeof(x.dmin));
    }
}

#ifdef WITH_VNNI

// Multiplies the quants of eight rows by their scales, bit by bit: what leaves the eight bits of a
// sum on the way comes back.
template <typename T> void fold(k_panel_block<T> & out, int first, const scales_of_eight & x) {
    static_assert(T::OFFSET == 0 || T::OFFSET == 4, "of two bits, or of three");
    const __m256i four_times = _mm256_set_epi64x(0x0707070706060606, 0x0505050504040404,
                                                 0x0303030302020202, 0x0101010100000000);
    for (int part = 0; part < T::PARTS; part++) {
        const __m256i eight = _mm256_broadcastq_epi64(eight_bytes(x.scales[part]));
        const __m256i scale = _mm256_shuffle_epi8(eight, four_times);
        const __m256i twice = _mm256_add_epi8(scale, scale);
        const __m256i four = _mm256_add_epi8(twice, twice);
        const __m256i bias = _mm256_set1_epi8(T::BIAS);
        const __m256i start = T::OFFSET == 0 ? bias : _mm256_sub_epi8(bias, four);
        for (int step = T::PART / 4 * part; step < T::PART / 4 * (part + 1); step++) {
            __m256i * const at = (__m256i *)out.quants[step][first];
            const __m256i quants = _mm256_load_si256(at);
            const auto times = [&](__m256i sum, int bit, __m256i by) {
                const __m256i set = _mm256_set1_epi8((char)bit);
#ifdef WITH_AVX512
                return _mm256_mask_add_epi8(sum, _mm256_test_epi8_mask(quants, set), sum, by);
#else
                const __m256i has = _mm256_cmpeq_epi8(_mm256_and_si256(quants, set), set);
                return _mm256_add_epi8(sum, _mm256_and_si256(by, has));
#endif
            };
            __m256i sum = times(times(start, 1, scale), 2, twice);
            if (T::OFFSET != 0) {
                sum = times(sum, 4, four);
            }
            _mm256_store_si256(at, sum);
        }
    }
}

#endif

template <typename block>
scales_of_eight unpack_eight(k_panel_block<k_traits<block>> & out, int first, const block * rows,
                             int64_t stride, int count) {
    scales_of_eight all;
    __m256i quants[8][EIGHTS];
    for (int i = 0; i < 8; i++) {
        const block & x = rows[std::min(first + i, count - 1) * stride];
        unpack(x, quants[i]);
        const k_scales own = scales_of(x);
        int8_t scales[16], mins[16];
        _mm_storeu_si128((__m128i *)scales, own.scales);
        _mm_storeu_si128((__m128i *)mins, own.mins);
        for (int part = 0; part < k_traits<block>::PARTS; part++) {
            all.scales[part][i] = scales[part];
            all.mins[part][i] = mins[part];
        }
        all.d[i] = own.d;
        all.dmin[i] = own.dmin;
    }
    for (int e = 0; e < EIGHTS; e++) {
        __m256i eight[8];
        for (int i = 0; i < 8; i++) {
            eight[i] = k_traits<block>::WIDE ? biased(quants[i][e]) : quants[i][e];
        }
        transpose(eight);
        for (int step = 0; step < 8; step++) {
            _mm256_store_si256((__m256i *)out.quants[8 * e + step][first], eight[step]);
        }
    }
    return all;
}

// The same from repack.cpp's form, in which eight rows stand together: eight bytes of one, eight of
// the next. What the bytes of a row hold, from the lowest bit on, is 32 quants apart.

template <int BITS>
inline void unpack_quants(uint8_t (*out)[ROWS_OF_K][4], int first, const uint8_t * packed) {
    const int IN_BYTE = 8 / BITS;
    const __m256i mask = _mm256_set1_epi8((1 << BITS) - 1);
    for (int bytes = 0; bytes < QK_K / IN_BYTE; bytes += 8, packed += 64) {
        const __m256 low = _mm256_castsi256_ps(load_32(packed));
        const __m256 high = _mm256_castsi256_ps(load_32(packed + 32));
        const __m256 words[] = { _mm256_shuffle_ps(low, high, 0x88),
                                 _mm256_shuffle_ps(low, high, 0xDD) };
        for (int i = 0; i < 2; i++) {
            __m256i four = _mm256_permute4x64_epi64(_mm256_castps_si256(words[i]), 0xD8);
            for (int at = 0; at < IN_BYTE; at++) {
                const int quant = bytes / 32 * 32 * IN_BYTE + 32 * at + bytes % 32 + 4 * i;
                _mm256_store_si256((__m256i *)out[quant / 4][first], _mm256_and_si256(four, mask));
                four = _mm256_srli_epi16(four, BITS);
            }
        }
    }
}

// Of each part, what eight scales and mins of one block are in a file.
inline void unpack_scales(const block_q4_Kx8 & x, scales_of_eight & out) {
    for (int part = 0; part < 8; part++) {
        const __m128i both = six_bits(x.scales + 12 * part);
        _mm_storel_epi64((__m128i *)out.scales[part], both);
        _mm_storel_epi64((__m128i *)out.mins[part], _mm_unpackhi_epi64(both, both));
    }
}

// Of two parts, row by row.
inline void unpack_scales(const block_q2_Kx8 & x, scales_of_eight & out) {
    const __m128i low = _mm_set1_epi8(15);
    const __m128i apart = _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    for (int part = 0; part < 16; part += 2) {
        const __m128i both =
            _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(x.scales + 8 * part)), apart);
        _mm_storeu_si128((__m128i *)out.scales[part], _mm_and_si128(both, low));
        _mm_storeu_si128((__m128i *)out.mins[part], _mm_and_si128(_mm_srli_epi16(both, 4), low));
    }
}

template <typename T, int BITS, typename eight_rows>
scales_of_eight unpack_repacked(k_panel_block<T> & out, int first, const eight_rows * rows,
                                int64_t stride, int count) {
    const eight_rows & x = rows[(first < count ? first / 8 : 0) * stride];
    scales_of_eight all;
    unpack_quants<BITS>(out.quants, first, x.qs);
    unpack_scales(x, all);
    _mm256_storeu_ps(all.d, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x.d)));
    _mm256_storeu_ps(all.dmin, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x.dmin)));
    return all;
}

inline scales_of_eight unpack_eight(k_panel_block<k_traits<block_q4_K>> & out, int first,
                                    const block_q4_Kx8 * rows, int64_t stride, int count) {
    return unpack_repacked<k_traits<block_q4_K>, 4>(out, first, rows, stride, count);
}
inline scales_of_eight unpack_eight(k_panel_block<k_traits<block_q2_K>> & out, int first,
                                    const block_q2_Kx8 * rows, int64_t stride, int count) {
    return unpack_repacked<k_traits<block_q2_K>, 2>(out, first, rows, stride, count);
}

// Unpacks rows; the last one again in place of those that there aren't.
template <typename T, typename form>
void unpack_k_panel(k_panel_block<T> * panel, const form * rows, int64_t stride, int count,
                    int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++) {
        for (int first = 0; first < ROWS_OF_K; first += 8) {
            const scales_of_eight scales = unpack_eight(panel[b], first, rows + b, stride, count);
            put_scales(panel[b], first, scales);
#ifdef WITH_VNNI
            if constexpr (T::FOLDED) {
                fold(panel[b], first, scales);
            }
#endif
        }
    }
}

// What a block of a column adds besides its quants.
template <typename T> struct k_column_block {
    float scale;
    int32_t start; // of the sums, to undo the bias
    // With STARTS, of each part's sum, to undo the offset. Or the sums of its parts, two for a
    // word.
    int32_t of_parts[T::STARTS ? T::PARTS : T::PARTS / 2];
};

template <typename T> k_column_block<T> describe_k(const block_q8_K & x) {
    k_column_block<T> out = { x.d, 0, {} };
    if constexpr (T::BIAS != 0) {
        for (const int16_t sum : x.bsums) {
            out.start -= T::BIAS * sum;
        }
    }
    const __m256i sums = _mm256_loadu_si256((const __m256i *)x.bsums);
    if constexpr (T::STARTS) {
        for (int i = 0; i < QK_K / 16; i++) {
            out.of_parts[i * 16 / T::PART] -= T::OFFSET * x.bsums[i];
        }
    } else if constexpr (T::PART == 16) {
        _mm256_storeu_si256((__m256i *)out.of_parts, sums);
    } else {
        const __m256i wide = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
        const __m256i narrow = _mm256_permute4x64_epi64(_mm256_packs_epi32(wide, wide), 0xD8);
        _mm_storeu_si128((__m128i *)out.of_parts, _mm256_castsi256_si128(narrow));
    }
    return out;
}

// Adds what products of four bytes came to, times their scale.
inline ints add_scaled(ints sum, ints products, ints scale) {
#ifdef WITH_AVX512
    return _mm512_add_epi32(sum, _mm512_mullo_epi32(products, scale));
#else
    return _mm256_add_epi32(sum, _mm256_mullo_epi32(products, scale));
#endif
}

// Adds the products of part of a block, times its scale, to the sums.

template <typename T, int N>
inline void dot_k(ints (&sums)[STRIP_OF_K][N], const k_panel_block<T> & panel,
                  const int8_t * const (&columns)[N],
                  [[maybe_unused]] const int32_t * const (&starts)[N]) {
#ifdef WITH_VNNI
    const int PARTS = T::FOLDED ? 1 : T::PARTS;
    for (int part = 0; part < PARTS; part++) {
        ints own[STRIP_OF_K][N];
        for (int r = 0; r < STRIP_OF_K; r++) {
            for (int c = 0; c < N; c++) {
                own[r][c] = T::FOLDED ? sums[r][c] : T::STARTS ? all(starts[c][part]) : all(0);
            }
        }
        for (int i = 0; i < QK_K / 4 / PARTS; i++) {
            const int step = part * (QK_K / 4 / PARTS) + i;
            ints weights[STRIP_OF_K];
            for (int r = 0; r < STRIP_OF_K; r++) {
                weights[r] = load_ints(panel.quants[step][r * LANES]);
            }
            for (int c = 0; c < N; c++) {
                const ints column = all(four(columns[c] + 4 * step));
                for (int r = 0; r < STRIP_OF_K; r++) {
                    own[r][c] = add_fours(own[r][c], weights[r], column);
                }
            }
        }
        for (int r = 0; r < STRIP_OF_K; r++) {
            const ints scale = T::FOLDED ? all(0) : load_ints(panel.scales[part] + r * LANES);
            for (int c = 0; c < N; c++) {
                sums[r][c] = T::FOLDED ? own[r][c] : add_scaled(sums[r][c], own[r][c], scale);
            }
        }
    }
#else
    for (int first = 0; first < QK_K / 4; first += T::TOGETHER) {
        ints pairs[STRIP_OF_K][N];
        for (int step = first; step < first + T::TOGETHER; step++) {
            ints weights[STRIP_OF_K], sizes[STRIP_OF_K];
            for (int r = 0; r < STRIP_OF_K; r++) {
                weights[r] = load_ints(panel.quants[step][r * LANES]);
                sizes[r] = T::WIDE ? _mm256_abs_epi8(weights[r]) : weights[r];
            }
            for (int c = 0; c < N; c++) {
                const ints column = all(four(columns[c] + 4 * step));
                for (int r = 0; r < STRIP_OF_K; r++) {
                    const ints sign = T::WIDE ? _mm256_sign_epi8(column, weights[r]) : column;
                    const ints more = _mm256_maddubs_epi16(sizes[r], sign);
                    pairs[r][c] = step == first ? more : _mm256_add_epi16(pairs[r][c], more);
                }
            }
        }
        for (int r = 0; r < STRIP_OF_K; r++) {
            const ints scale = load_ints(panel.scales[4 * first / T::PART] + r * LANES);
            for (int c = 0; c < N; c++) {
                sums[r][c] = add_pairs(sums[r][c], pairs[r][c], scale);
            }
        }
    }
#endif
}

// All columns, and what their blocks add.
template <typename T> struct k_columns {
    const block_q8_K * quants;
    int64_t stride; // of quants, in blocks
    const k_column_block<T> * facts;
    int64_t blocks; // of a column
    int64_t count;
};

template <typename T>
k_columns<T> describe_columns(const block_q8_K * values, int64_t stride, int64_t count,
                              int64_t blocks) {
    auto * facts = scratch<k_column_block<T>>(column_memory, count * blocks);
    for (int64_t c = 0; c < count; c++) {
        for (int64_t b = 0; b < blocks; b++) {
            facts[c * blocks + b] = describe_k<T>(values[c * stride + b]);
        }
    }
    return { values, stride, facts, blocks, count };
}

// What d scales, and what dmin does, of a column's products with a panel.
template <typename T> struct alignas(64) k_totals { float of[T::MIN ? 2 : 1][ROWS_OF_K]; };

// Adds the products of some blocks of a panel with N columns to what there is.
template <typename T, int N>
void k_tile(const k_panel_block<T> * panel, int64_t begin, int64_t end,
            const k_columns<T> & columns, int64_t first, k_totals<T> * to) {
    using block = k_panel_block<T>;
    const block_q8_K * const own = columns.quants + first * columns.stride;
    const k_column_block<T> * const facts = columns.facts + first * columns.blocks;
    const int64_t stride = columns.stride, blocks = columns.blocks;
    floats totals[STRIP_OF_K][N], minima[STRIP_OF_K][N];
    for (int r = 0; r < STRIP_OF_K; r++) {
        for (int c = 0; c < N; c++) {
            totals[r][c] = load(to[first + c].of[0] + r * LANES);
            minima[r][c] = load(to[first + c].of[T::MIN] + r * LANES);
        }
    }
    for (int64_t b = begin; b < end; b++) {
        const block & x = panel[b - begin];
        ints sums[STRIP_OF_K][N];
        const int8_t * quants[N];
        const int32_t * starts[N];
        for (int c = 0; c < N; c++) {
            const k_column_block<T> & fact = facts[c * blocks + b];
            quants[c] = own[c * stride + b].qs;
            starts[c] = fact.of_parts;
            for (int r = 0; r < STRIP_OF_K; r++) {
                ints low = all(T::MIN ? 0 : fact.start);
                for (int i = 0; i < block::SUMS; i++) {
                    low = add_pairs(low, load_ints(x.lows[i][r * LANES]), all(fact.of_parts[i]));
                }
                if constexpr (T::MIN) {
                    const floats d = load((const float *)x.lows[block::SUMS][r * LANES]);
                    minima[r][c] =
                        multiply_add(to_floats(low), multiply(d, all(fact.scale)), minima[r][c]);
                    low = all(0);
                }
                sums[r][c] = low;
            }
        }
        dot_k<T, N>(sums, x, quants, starts);
        for (int r = 0; r < STRIP_OF_K; r++) {
            const floats d = load((const float *)x.scales[block::PARTS] + r * LANES);
            for (int c = 0; c < N; c++) {
                const floats scale = multiply(d, all(facts[c * blocks + b].scale));
                totals[r][c] = multiply_add(to_floats(sums[r][c]), scale, totals[r][c]);
            }
        }
    }
    for (int r = 0; r < STRIP_OF_K; r++) {
        for (int c = 0; c < N; c++) {
            store(to[first + c].of[0] + r * LANES, totals[r][c]);
            if constexpr (T::MIN) {
                store(to[first + c].of[1] + r * LANES, minima[r][c]);
            }
        }
    }
}

thread_local std::vector<line> totals_memory;

// Rows for one panel times all columns. With columns for a few tiles, unpacking is much of the
// work, and so few blocks at a time stay in the processor's first cache. With more of them that was
// slower: each column is in another page of memory.
template <typename T, typename form>
void multiply_k_panel(const form * rows, int64_t stride, int count, const k_columns<T> & columns,
                      float * out, int64_t ldc) {
    const int64_t at_once = columns.count < 4 * MOST_OF_K
                                ? std::max<int64_t>(1, (24 << 10) / sizeof(k_panel_block<T>))
                                : columns.blocks;
    auto * panel = scratch<k_panel_block<T>>(panel_memory, at_once);
    auto * totals = scratch<k_totals<T>>(totals_memory, columns.count);
    std::fill_n(totals, columns.count, k_totals<T>{});
    for (int64_t begin = 0; begin < columns.blocks; begin += at_once) {
        const int64_t end = std::min(columns.blocks, begin + at_once);
        unpack_k_panel(panel, rows + begin, stride, count, end - begin);
        in_tiles<MOST_OF_K>(columns.count, [&](auto width, int64_t first) {
            k_tile<T, width>(panel, begin, end, columns, first, totals);
        });
    }
    for (int64_t c = 0; c < columns.count; c++) {
        for (int r = 0; r < count; r += LANES) {
            floats total = load(totals[c].of[0] + r);
            if constexpr (T::MIN) {
                total -= load(totals[c].of[1] + r);
            }
            write(out + c * ldc + r, total, std::min(LANES, count - r));
        }
    }
}

template <typename block>
bool k_product(const ggml_compute_params * params, int64_t rows, int64_t columns, int64_t blocks,
               const void * a, int64_t lda, const void * b, int64_t ldb, float * out, int64_t ldc) {
    using T = k_traits<block>;
    const auto all_columns = describe_columns<T>((const block_q8_K *)b, ldb, columns, blocks);
    share(params, (rows + ROWS_OF_K - 1) / ROWS_OF_K, [&](int64_t job) {
        const int64_t row = job * ROWS_OF_K;
        const int count = (int)std::min<int64_t>(ROWS_OF_K, rows - row);
        multiply_k_panel<T>((const block *)a + row * lda, lda, count, all_columns, out + row, ldc);
    });
    return true;
}

// The same for rows as repack.cpp has them, by one thread. Of few columns upstream's kernel for one
// makes the products, whose sums and roundings are those of a tile.
template <typename block, typename eight_rows>
void repacked_k_product(int64_t rows, int64_t columns, int64_t blocks, const eight_rows * weights,
                        const block_q8_K * values, float * out, int64_t ldc,
                        product_of_one of_one) {
    using T = k_traits<block>;
    if (columns < FEW_COLUMNS_OF_QUANTS) {
        for (int64_t row = 0; row < rows; row += 8) {
            for (int64_t c = 0; c < columns; c++) {
                of_one((int)(blocks * QK_K), out + c * ldc + row, (size_t)ldc,
                       weights + row / 8 * blocks, values + c * blocks, 1, 8);
            }
        }
        return;
    }
    const auto all_columns = describe_columns<T>(values, blocks, columns, blocks);
    for (int64_t row = 0; row < rows; row += ROWS_OF_K) {
        const int count = (int)std::min<int64_t>(ROWS_OF_K, rows - row);
        multiply_k_panel<T>(weights + row / 8 * blocks, blocks, count, all_columns, out + row, ldc);
    }
}

// Few columns: a block of weights after the other, as they stand in memory, with its quants in
// registers of AVX2. Sums and roundings are those of a tile.

// A row of weights times N columns.
template <typename block, int N>
void dot_row_of_k(const block * row, int64_t blocks, const block_q8_K * columns, int64_t stride,
                  float * out, int64_t ldc) {
    using T = k_traits<block>;
    // Of a part of 32, one scale in both halves; of two parts of 16, one in each.
    const __m128i order = T::PART == 32
                              ? _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7)
                              : _mm_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
    __m128 totals[N] = {}; // what d scales, and what dmin does
    for (int64_t b = 0; b < blocks; b++) {
        const block & x = row[b];
        const k_scales facts = scales_of(x);
        const __m256i halves = _mm256_cvtepi8_epi16(_mm_shuffle_epi8(facts.scales, order));
        __m256i quants[EIGHTS], sums[N];
        unpack(x, quants);
        for (int e = 0; e < EIGHTS; e++) {
            const __m256i scale =
                _mm256_shuffle_epi8(halves, _mm256_set1_epi16((short)(0x0100 + 0x0202 * e)));
            const __m256i size = T::WIDE ? _mm256_abs_epi8(quants[e]) : quants[e];
            for (int c = 0; c < N; c++) {
                const __m256i values =
                    _mm256_loadu_si256((const __m256i *)(columns[c * stride + b].qs + 32 * e));
                const __m256i sign = T::WIDE ? _mm256_sign_epi8(values, quants[e]) : values;
                const __m256i pairs = _mm256_maddubs_epi16(size, sign);
                sums[c] = e == 0 ? _mm256_madd_epi16(pairs, scale)
                                 : add_pairs_of_8(sums[c], pairs, scale);
            }
        }
        __m128i low = T::MIN ? facts.mins : facts.scales;
        if (T::PART == 32) {
            low = _mm_unpacklo_epi8(low, low);
        }
        __m256i lows = _mm256_cvtepi8_epi16(low);
        if (!T::MIN) {
            lows = _mm256_mullo_epi16(lows, _mm256_set1_epi16(-T::OFFSET));
        }
        const __m128 d = _mm_setr_ps(facts.d, facts.dmin, 0, 0);
        for (int c = 0; c < N; c++) {
            const block_q8_K & column = columns[c * stride + b];
            const __m256i of_parts = _mm256_loadu_si256((const __m256i *)column.bsums);
            if (!T::MIN && !T::WIDE) {
                sums[c] = add_pairs_of_8(sums[c], lows, of_parts);
            }
            const __m256i second = T::MIN ? _mm256_madd_epi16(lows, of_parts) : sums[c];
            const __m256i both = _mm256_add_epi32(_mm256_unpacklo_epi32(sums[c], second),
                                                  _mm256_unpackhi_epi32(sums[c], second));
            const __m128i half =
                _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
            const __m128i whole = _mm_add_epi32(half, _mm_unpackhi_epi64(half, half));
            const __m128 scale = _mm_mul_ps(d, _mm_set1_ps(column.d));
            totals[c] = _mm_fmadd_ps(_mm_cvtepi32_ps(whole), scale, totals[c]);
        }
    }
    for (int c = 0; c < N; c++) {
        float sums[4];
        _mm_storeu_ps(sums, totals[c]);
        out[c * ldc] = T::MIN ? sums[0] - sums[1] : sums[0];
    }
}

template <typename block> auto run_of_few(int64_t columns) {
    return columns == 1   ? dot_row_of_k<block, 1>
           : columns == 2 ? dot_row_of_k<block, 2>
                          : dot_row_of_k<block, 3>;
}

template <typename block>
bool k_product_of_few(const ggml_compute_params * params, int64_t rows, int64_t columns,
                      int64_t blocks, const void * a, int64_t lda, const void * b, int64_t ldb,
                      float * out, int64_t ldc) {
    const auto * values = (const block_q8_K *)b;
    const auto run = run_of_few<block>(columns);
    share_rows(params, rows, [&](int64_t row) {
        run((const block *)a + row * lda, blocks, values, ldb, out + row, ldc);
    });
    return true;
}

template <typename block> void k_product_of_expert(const expert & x) {
    using T = k_traits<block>;
    const auto * weights = (const block *)x.weights;
    const auto * values = (const block_q8_K *)x.columns;
    if (x.count < FEW_COLUMNS_OF_QUANTS) {
        const auto run = run_of_few<block>(x.count);
        in_rows(x, [&](int64_t row, float * products) {
            run(weights + row * x.stride, x.blocks, values, x.blocks, products, 1);
        });
        return;
    }
    const auto all_columns = describe_columns<T>(values, x.blocks, x.count, x.blocks);
    in_panels<ROWS_OF_K>(x, [&](int64_t row, int count, float * products) {
        multiply_k_panel<T>(weights + row * x.stride, x.stride, count, all_columns, products,
                            ROWS_OF_K);
    });
}

template <typename block, typename eight_rows, product_of_one of_one>
void k_product_of_repacked_expert(const expert & x) {
    using T = k_traits<block>;
    if (x.count < FEW_COLUMNS_OF_QUANTS) {
        return one_after_the_other<block_q8_K>(x, of_one);
    }
    const auto all_columns =
        describe_columns<T>((const block_q8_K *)x.columns, x.blocks, x.count, x.blocks);
    in_panels<ROWS_OF_K>(x, [&](int64_t row, int count, float * products) {
        multiply_k_panel<T>((const eight_rows *)x.weights + row / 8 * x.stride, x.stride, count,
                            all_columns, products, ROWS_OF_K);
    });
}

// Rounds a column as quantize_row_q8_K_ref does, bit for bit, which the compiler can't do eight
// numbers at a time.
inline void round_column(const float * x, block_q8_K * out, int64_t blocks) {
    const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (int64_t b = 0; b < blocks; b++, x += QK_K, out++) {
        __m256 most = _mm256_setzero_ps();
        for (int i = 0; i < QK_K; i += 8) {
            most = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(x + i), no_sign), most);
        }
        const __m128 four =
            _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
        const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
        const float largest = _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
        if (largest == 0) {
            *out = {};
            continue;
        }
        int first = 0; // whose sign decides
        for (int found = 0; found == 0; first += 8) {
            const __m256 size = _mm256_and_ps(_mm256_loadu_ps(x + first), no_sign);
            found = _mm256_movemask_ps(_mm256_cmp_ps(size, _mm256_set1_ps(largest), _CMP_EQ_OQ));
            if (found != 0) {
                first += __builtin_ctz((unsigned)found) - 8;
            }
        }
        const float scale = -127.0f / x[first];
        const __m256 scales = _mm256_set1_ps(scale);
        const auto whole = [&](int i) {
            return _mm256_cvtps_epi32(_mm256_mul_ps(scales, _mm256_loadu_ps(x + i)));
        };
        for (int i = 0; i < QK_K; i += 32) {
            const __m256i low = _mm256_packs_epi32(whole(i), whole(i + 8));
            const __m256i high = _mm256_packs_epi32(whole(i + 16), whole(i + 24));
            const __m256i quants =
                _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high), order);
            _mm256_storeu_si256((__m256i *)(out->qs + i), quants);
            const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), quants);
            const __m256i fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(1));
            const __m256i eights = _mm256_hadd_epi32(fours, fours);
            const __m256i sums = _mm256_hadd_epi32(eights, eights);
            out->bsums[i / 16] = (int16_t)_mm256_extract_epi32(sums, 0);
            out->bsums[i / 16 + 1] = (int16_t)_mm256_extract_epi32(sums, 4);
        }
        out->d = 1 / scale;
    }
}

} // namespace
