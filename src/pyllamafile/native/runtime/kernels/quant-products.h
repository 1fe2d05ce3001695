// Products of quants with columns that are rounded to quants, too.
#pragma once

#include "lanes.h"
#include "quants.h"
#include "repack.h"

#define GGML_COMMON_IMPL_CPP
#include "ggml-common.h" // kvalues_iq4nl

#include <algorithm>
#include <cstring>

namespace {

const int QUANTS = 32;        // in a block of the types here
const int STEPS = QUANTS / 4; // four at a time

// Where the columns' quants are: one column after the other, each four quants after the other, or
// as repack.cpp has them: four columns in a block, eight quants of one, eight of the next.
template <typename block> struct one_by_one {
    const block * columns;
    int64_t stride;

    const int8_t * quants(int64_t column, int64_t b) const {
        return columns[column * stride + b].qs;
    }
    static constexpr int place(int step) {
        return 4 * step;
    }
};

struct by_fours {
    const block_q8_0x4 * columns;
    int64_t stride;

    const int8_t * quants(int64_t column, int64_t b) const {
        return columns[column / 4 * stride + b].qs + column % 4 * 8;
    }
    static constexpr int place(int step) {
        return step / 2 * 32 + step % 2 * 4;
    }
};

inline int32_t four(const int8_t * p) {
    int32_t out;
    memcpy(&out, p, sizeof(out));
    return out;
}

// Adds up, lane by lane, the products of a block of quants with the same quants of columns.

#ifdef WITH_VNNI

const bool SIGNED = false; // wide quants stand in a panel with 128 added

template <bool WIDE, typename order, int N>
inline void dot(ints (&sums)[N], const uint8_t * q, const int8_t * const (&columns)[N]) {
    for (int step = 0; step < STEPS; step++) {
        const ints weights = _mm512_load_si512(q + step * sizeof(ints));
        for (int c = 0; c < N; c++) {
            const ints column = all(four(columns[c] + order::place(step)));
            sums[c] = _mm512_dpbusd_epi32(sums[c], weights, column);
        }
    }
}

#else

const bool SIGNED = true; // two products of wide ones would not fit 16 bits otherwise

template <bool WIDE, typename order, int N>
inline void dot(ints (&sums)[N], const uint8_t * q, const int8_t * const (&columns)[N]) {
    const ints ones = _mm256_set1_epi16(1);
    const int together = WIDE ? 1 : 4; // steps whose sums fit 16 bits: 4 x 2 x 31 x 127
    for (int first = 0; first < STEPS; first += together) {
        ints pairs[N];
        for (int step = first; step < first + together; step++) {
            const ints weights = _mm256_load_si256((const ints *)(q + step * sizeof(ints)));
            const ints size = WIDE ? _mm256_abs_epi8(weights) : weights;
            for (int c = 0; c < N; c++) {
                const ints column = all(four(columns[c] + order::place(step)));
                const ints sign = WIDE ? _mm256_sign_epi8(column, weights) : column;
                const ints more = _mm256_maddubs_epi16(size, sign);
                pairs[c] = step == first ? more : _mm256_add_epi16(pairs[c], more);
            }
        }
        for (int c = 0; c < N; c++) {
            sums[c] = _mm256_add_epi32(sums[c], _mm256_madd_epi16(pairs[c], ones));
        }
    }
}

#endif

// What the types of weights have in common (ggml-common.h): a block is 32 quants, and a weight is
// (quant - OFFSET) * d, or quant * d + m. WIDE ones need all eight bits.
template <bool wide, int offset, typename columns> struct kind {
    static constexpr bool WIDE = wide;
    static constexpr int OFFSET = wide && SIGNED ? 0 : offset;
    static constexpr bool MIN = std::is_same<columns, block_q8_1>::value;
    using column = columns;
};

template <typename block> struct traits;
template <> struct traits<block_q4_0> : kind<false, 8, block_q8_0> {};
template <> struct traits<block_q4_1> : kind<false, 0, block_q8_1> {};
template <> struct traits<block_q5_0> : kind<false, 16, block_q8_0> {};
template <> struct traits<block_q5_1> : kind<false, 0, block_q8_1> {};
template <> struct traits<block_q8_0> : kind<true, 128, block_q8_0> {};
template <> struct traits<block_iq4_nl> : kind<true, 128, block_q8_0> {};

inline __m256i nibbles(const uint8_t * qs) {
    const __m128i packed = _mm_loadu_si128((const __m128i *)qs);
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(packed, 4), packed);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

// Bit i of a word as 16 in byte i.
inline __m256i fifth_bits(const uint8_t * qh) {
    uint32_t word;
    memcpy(&word, qh, sizeof(word));
    const __m256i spread =
        _mm256_shuffle_epi8(_mm256_set1_epi32((int32_t)word),
                            _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202,
                                              0x0101010101010101, 0x0000000000000000));
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
    return _mm256_and_si256(set, _mm256_set1_epi8(16));
}

inline __m256i unpack(const block_q4_0 & x) {
    return nibbles(x.qs);
}
inline __m256i unpack(const block_q4_1 & x) {
    return nibbles(x.qs);
}
inline __m256i unpack(const block_q5_0 & x) {
    return _mm256_or_si256(nibbles(x.qs), fifth_bits(x.qh));
}
inline __m256i unpack(const block_q5_1 & x) {
    return _mm256_or_si256(nibbles(x.qs), fifth_bits(x.qh));
}
inline __m256i biased(__m256i quants) {
    return SIGNED ? quants : _mm256_xor_si256(quants, _mm256_set1_epi8((char)0x80));
}
inline __m256i unpack(const block_q8_0 & x) {
    return biased(_mm256_loadu_si256((const __m256i *)x.qs));
}
inline __m256i unpack(const block_iq4_nl & x) {
    const __m128i values = _mm_loadu_si128((const __m128i *)kvalues_iq4nl);
    return biased(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(values), nibbles(x.qs)));
}

template <typename block> inline float minimum(const block & x) {
    if constexpr (traits<block>::MIN) {
        return GGML_CPU_FP16_TO_FP32(x.m);
    } else {
        return 0;
    }
}

// A block of every row of a panel: of four neighbouring quants of every row, one instruction
// makes the products with the same four of a column, and adds them up.
struct panel_block {
    alignas(64) uint8_t quants[STEPS][LANES][4];
    alignas(64) float scales[LANES];
    alignas(64) float minima[LANES];
};

// Unpacks rows; the last one again in place of those that there aren't.
template <typename block>
void unpack_panel(panel_block * panel, const block * rows, int64_t stride, int count,
                  int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++) {
        panel_block & out = panel[b];
        for (int first = 0; first < LANES; first += 8) {
            __m256i eight[8];
            for (int i = 0; i < 8; i++) {
                const int r = first + i;
                const block & x = rows[std::min(r, count - 1) * stride + b];
                eight[i] = unpack(x);
                out.scales[r] = GGML_CPU_FP16_TO_FP32(x.d);
                out.minima[r] = minimum(x);
            }
            transpose(eight);
            for (int step = 0; step < STEPS; step++) {
                _mm256_store_si256((__m256i *)out.quants[step][first], eight[step]);
            }
        }
    }
}

// The same from repack.cpp's form, in which eight rows stand together: eight bytes of one, eight of
// the next, then the other eight of each. The lower halves of the bytes are the first 16 quants,
// and each half is a number with a sign, which here gets its offset back.
void unpack_panel(panel_block * panel, const block_q4_0x8 * rows, int64_t stride, int count,
                  int64_t blocks) {
    const __m256i half = _mm256_set1_epi8(15), offset = _mm256_set1_epi8(8);
    for (int64_t b = 0; b < blocks; b++) {
        panel_block & out = panel[b];
        for (int first = 0; first < LANES; first += 8) {
            const block_q4_0x8 & x = rows[(first < count ? first / 8 : 0) * stride + b];
            for (int i = 0; i < 8; i++) {
                out.scales[first + i] = GGML_CPU_FP16_TO_FP32(x.d[i]);
            }
            for (int part = 0; part < 2; part++) {
                const __m256i * packed = (const __m256i *)x.qs + 2 * part;
                __m256i low = _mm256_loadu_si256(packed), high = _mm256_loadu_si256(packed + 1);
                for (int step = 2 * part; step < STEPS; step += 4) {
                    const __m256 four = _mm256_castsi256_ps(low);
                    const __m256 more = _mm256_castsi256_ps(high);
                    const __m256 words[] = { _mm256_shuffle_ps(four, more, 0x88),
                                             _mm256_shuffle_ps(four, more, 0xDD) };
                    for (int i = 0; i < 2; i++) {
                        const __m256i ordered =
                            _mm256_permute4x64_epi64(_mm256_castps_si256(words[i]), 0xD8);
                        const __m256i quants =
                            _mm256_xor_si256(_mm256_and_si256(ordered, half), offset);
                        _mm256_store_si256((__m256i *)out.quants[step + i][first], quants);
                    }
                    low = _mm256_srli_epi16(low, 4);
                    high = _mm256_srli_epi16(high, 4);
                }
            }
        }
    }
}

// What a block of a column adds besides its quants: its scale, and the sum of its quants, which
// weighs the offset or the minimum of the weights.
struct column_block {
    float scale;
    union {
        int32_t start; // of the sums, to undo the offset
        float sum;     // of the column's values
    };
};

template <int COUNT> int32_t sum_of(const int8_t * quants) {
    int32_t sum = 0;
    for (int i = 0; i < COUNT; i++) {
        sum += quants[i];
    }
    return sum;
}

template <int OFFSET> column_block describe(const block_q8_0 & x) {
    column_block out = { GGML_CPU_FP16_TO_FP32(x.d), { 0 } };
    out.start = OFFSET == 0 ? 0 : -OFFSET * sum_of<QUANTS>(x.qs);
    return out;
}
template <int OFFSET> column_block describe(const block_q8_1 & x) {
    column_block out = { GGML_CPU_FP16_TO_FP32(x.d), { 0 } };
    out.sum = GGML_CPU_FP16_TO_FP32(x.s);
    return out;
}

void write(float * to, floats x, int count) {
    if (count == LANES) {
        return store(to, x);
    }
    float values[LANES];
    store(values, x);
    memcpy(to, values, count * sizeof(float));
}

// A panel times N columns, beginning with `first`.
template <typename T, int N, typename order>
void tile(const panel_block * panel, int64_t blocks, const order & columns, int64_t first,
          const column_block * facts, float * out, int64_t ldc, int count) {
    facts += first * blocks;
    out += first * ldc;
    floats totals[N];
    for (int c = 0; c < N; c++) {
        totals[c] = zero();
    }
    for (int64_t b = 0; b < blocks; b++) {
        ints sums[N];
        const int8_t * quants[N];
        for (int c = 0; c < N; c++) {
            sums[c] = all(T::MIN ? 0 : facts[c * blocks + b].start);
            quants[c] = columns.quants(first + c, b);
        }
        dot<T::WIDE, order>(sums, panel[b].quants[0][0], quants);
        const floats scales = load(panel[b].scales);
        for (int c = 0; c < N; c++) {
            const column_block & fact = facts[c * blocks + b];
            totals[c] =
                multiply_add(to_floats(sums[c]), multiply(scales, all(fact.scale)), totals[c]);
            if (T::MIN) {
                totals[c] = multiply_add(load(panel[b].minima), all(fact.sum), totals[c]);
            }
        }
    }
    for (int c = 0; c < N; c++) {
        write(out + c * ldc, totals[c], count);
    }
}

template <typename T, int N, typename order>
void tiles(const panel_block * panel, int64_t blocks, const order & columns, int64_t first,
           int64_t end, const column_block * facts, float * out, int64_t ldc, int count) {
    for (; first + N <= end; first += N) {
        tile<T, N>(panel, blocks, columns, first, facts, out, ldc, count);
    }
    if constexpr (N > 1) {
        tiles<T, N / 2>(panel, blocks, columns, first, end, facts, out, ldc, count);
    }
}

template <typename block>
bool product(const ggml_compute_params * params, int64_t rows, int64_t columns, int64_t blocks,
             const void * a, int64_t lda, const void * b, int64_t ldb, float * out, int64_t ldc) {
    using T = traits<block>;
    const block * weights = (const block *)a;
    const auto * values = (const typename T::column *)b;

    auto * panel = scratch<panel_block>(panel_memory, blocks);
    auto * facts = scratch<column_block>(column_memory, columns * blocks);
    for (int64_t c = 0; c < columns; c++) {
        for (int64_t i = 0; i < blocks; i++) {
            facts[c * blocks + i] = describe<T::OFFSET>(values[c * ldb + i]);
        }
    }
    share(params, (rows + LANES - 1) / LANES, [&](int64_t job) {
        const int64_t row = job * LANES;
        const int count = (int)std::min<int64_t>(LANES, rows - row);
        unpack_panel(panel, weights + row * lda, lda, count, blocks);
        tiles<T, COLUMNS>(panel, blocks, one_by_one<typename T::column>{ values, ldb }, 0, columns,
                          facts, out + row, ldc, count);
    });
    return true;
}

// The same for rows and columns as repack.cpp has them, by one thread.
void repacked_product(int64_t rows, int64_t columns, int64_t blocks, const block_q4_0x8 * weights,
                      const block_q8_0x4 * values, float * out, int64_t ldc) {
    using T = traits<block_q4_0>;
    auto * panel = scratch<panel_block>(panel_memory, blocks);
    auto * facts = scratch<column_block>(column_memory, columns * blocks);
    const by_fours order = { values, blocks };
    for (int64_t c = 0; c < columns; c++) {
        for (int64_t b = 0; b < blocks; b++) {
            column_block & fact = facts[c * blocks + b];
            fact.scale = GGML_CPU_FP16_TO_FP32(values[c / 4 * blocks + b].d[c % 4]);
            fact.start = 0;
            for (int step = 0; step < STEPS; step += 2) {
                fact.start -= T::OFFSET * sum_of<8>(order.quants(c, b) + by_fours::place(step));
            }
        }
    }
    for (int64_t row = 0; row < rows; row += LANES) {
        const int count = (int)std::min<int64_t>(LANES, rows - row);
        unpack_panel(panel, weights + row / 8 * blocks, blocks, count, blocks);
        tiles<T, COLUMNS>(panel, blocks, order, 0, columns, facts, out + row, ldc, count);
    }
}

// Few columns. Two blocks, as many as a register holds, are a group. (With the half registers of
// AVX2, upstream's way was measured to be the faster one.)

#ifdef WITH_VNNI

struct group {
    alignas(64) int8_t quants[2][QUANTS];
    alignas(64) int32_t starts[LANES]; // of the sums, to undo the offset
    alignas(64) float scales[2][LANES / 2];
    alignas(64) float sums[2][LANES / 2]; // of the column's values: one lane of a half has it all
};

// Unpacks a column; of a last group that is not full, the rest adds nothing.
template <typename T> void regroup(group * out, const typename T::column * column, int64_t blocks) {
    const ints offset = all((int32_t)(T::OFFSET * 0x01010101u));
    for (int64_t b = 0; b < blocks; b += 2, out++) {
        *out = {};
        for (int i = 0; i < 2 && b + i < blocks; i++) {
            const typename T::column & x = column[b + i];
            memcpy(out->quants[i], x.qs, QUANTS);
            std::fill_n(out->scales[i], LANES / 2, GGML_CPU_FP16_TO_FP32(x.d));
            if constexpr (T::MIN) {
                out->sums[i][0] = GGML_CPU_FP16_TO_FP32(x.s);
            }
        }
        const ints quants = _mm512_load_si512(out->quants);
        const ints sums = _mm512_dpbusd_epi32(all(0), offset, quants);
        _mm512_store_si512(out->starts, _mm512_sub_epi32(all(0), sums));
    }
}

template <typename block> ints unpack_group(const block & x, const block & y) {
    return _mm512_inserti64x4(_mm512_castsi256_si512(unpack(x)), unpack(y), 1);
}

inline floats spread(ggml_half x, ggml_half y) {
    return _mm512_cvtph_ps(_mm256_set_m128i(_mm_set1_epi16((short)y), _mm_set1_epi16((short)x)));
}

// A row of weights times a column. One row after the other, as they stand in memory: several at
// once are too much for the processor's prefetching.
template <typename block> float dot_row(const block * row, const group * column, int64_t blocks) {
    floats total = zero();
    for (int64_t b = 0; b < blocks; b += 2, column++) {
        const block & x = row[b];
        const block & y = row[std::min(b + 1, blocks - 1)];
        const ints products =
            _mm512_dpbusd_epi32(_mm512_load_si512(column->starts), unpack_group(x, y),
                                _mm512_load_si512(column->quants));
        const floats scales = multiply(load(column->scales[0]), spread(x.d, y.d));
        total = multiply_add(to_floats(products), scales, total);
        if constexpr (traits<block>::MIN) {
            total = multiply_add(spread(x.m, y.m), load(column->sums[0]), total);
        }
    }
    return sum_of(total);
}

// Threads share the rows once for all: between so small products, waiting for each other costs
// more than it brings.
template <typename block>
bool product_of_few(const ggml_compute_params * params, int64_t rows, int64_t columns,
                    int64_t blocks, const void * a, int64_t lda, const void * b, int64_t ldb,
                    float * out, int64_t ldc) {
    const int64_t share = (rows + params->nth - 1) / params->nth;
    const int64_t first = params->ith * share, end = std::min(rows, first + share);
    const block * weights = (const block *)a;
    const auto * values = (const typename traits<block>::column *)b;
    const int64_t groups = (blocks + 1) / 2;
    auto * grouped = scratch<group>(column_memory, columns * groups);
    for (int64_t c = 0; c < columns; c++) {
        regroup<traits<block>>(grouped + c * groups, values + c * ldb, blocks);
    }
    for (int64_t row = first; row < end; row++) {
        for (int64_t c = 0; c < columns; c++) {
            out[c * ldc + row] = dot_row(weights + row * lda, grouped + c * groups, blocks);
        }
    }
    return true;
}

#endif

} // namespace
