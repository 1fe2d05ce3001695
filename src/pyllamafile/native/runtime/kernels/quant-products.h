// Products of quants with columns that are rounded to quants, too.
#pragma once

#include "lanes.h"
#include "quants.h"
#include "repack.h"

#define GGML_COMMON_IMPL_CPP
#include "ggml-common.h" // kvalues_iq4nl

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace {

const int QUANTS = 32;        // in a block of the types here
const int STEPS = QUANTS / 4; // four at a time

#if defined(WITH_AVX512)
const int STRIP = 2; // registers of rows in a panel: each load of a column serves both
const int MOST = 6;  // columns of a tile: their sums and totals stay in registers
#elif defined(WITH_VNNI)
const int STRIP = 1;
const int MOST = 6;
#else
const int STRIP = 1;
const int MOST = 4;
#endif
const int ROWS_OF_PANEL = STRIP * LANES;
const int64_t FEW_COLUMNS_OF_QUANTS = 4; // below, a panel doesn't pay

// Where the columns' quants are: one column after the other, each four quants after the other, or
// as repack.cpp has them: four columns in a block, eight quants of one, eight of the next. And in
// how many sums their blocks are added up.
template <typename block, int chains> struct one_by_one {
    static constexpr int CHAINS = chains;
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
    static constexpr int CHAINS = 1;
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
inline void dot(ints (&sums)[STRIP][N], const uint8_t (&q)[STEPS][ROWS_OF_PANEL][4],
                const int8_t * const (&columns)[N]) {
    for (int step = 0; step < STEPS; step++) {
        ints weights[STRIP];
        for (int r = 0; r < STRIP; r++) {
            weights[r] = load_ints(q[step][r * LANES]);
        }
        for (int c = 0; c < N; c++) {
            const ints column = all(four(columns[c] + order::place(step)));
            for (int r = 0; r < STRIP; r++) {
                sums[r][c] = add_fours(sums[r][c], weights[r], column);
            }
        }
    }
}

#else

const bool SIGNED = true; // two products of wide ones would not fit 16 bits otherwise

template <bool WIDE, typename order, int N>
inline void dot(ints (&sums)[STRIP][N], const uint8_t (&q)[STEPS][ROWS_OF_PANEL][4],
                const int8_t * const (&columns)[N]) {
    const ints ones = _mm256_set1_epi16(1);
    const int together = WIDE ? 1 : 4; // steps whose sums fit 16 bits: 4 x 2 x 31 x 127
    for (int first = 0; first < STEPS; first += together) {
        ints pairs[STRIP][N];
        for (int step = first; step < first + together; step++) {
            for (int r = 0; r < STRIP; r++) {
                const ints weights = load_ints(q[step][r * LANES]);
                const ints size = WIDE ? _mm256_abs_epi8(weights) : weights;
                for (int c = 0; c < N; c++) {
                    const ints column = all(four(columns[c] + order::place(step)));
                    const ints sign = WIDE ? _mm256_sign_epi8(column, weights) : column;
                    const ints more = _mm256_maddubs_epi16(size, sign);
                    pairs[r][c] = step == first ? more : _mm256_add_epi16(pairs[r][c], more);
                }
            }
        }
        for (int r = 0; r < STRIP; r++) {
            for (int c = 0; c < N; c++) {
                sums[r][c] = _mm256_add_epi32(sums[r][c], _mm256_madd_epi16(pairs[r][c], ones));
            }
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
template <> struct traits<block_mxfp4> : kind<false, 12, block_q8_0> {};

// Quants that stand for one of sixteen values.
inline __m256i look_up(const int8_t * values, __m256i quants) {
    const __m128i sixteen = _mm_loadu_si128((const __m128i *)values);
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(sixteen), quants);
}

inline __m256i nibbles(const uint8_t * qs) {
    const __m128i packed = _mm_loadu_si128((const __m128i *)qs);
    const __m256i both = _mm256_set_m128i(_mm_srli_epi16(packed, 4), packed);
    return _mm256_and_si256(both, _mm256_set1_epi8(15));
}

// All bits of byte i where bit i of 32 is set.
inline __m256i where_set(const void * bits) {
    uint32_t word;
    memcpy(&word, bits, sizeof(word));
#ifdef WITH_AVX512
    return _mm256_movm_epi8(word);
#else
    const __m256i spread =
        _mm256_shuffle_epi8(_mm256_set1_epi32((int32_t)word),
                            _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202,
                                              0x0101010101010101, 0x0000000000000000));
    const __m256i bit = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    return _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
#endif
}

inline __m256i with_fifth_bits(__m256i quants, const uint8_t * qh) {
    return _mm256_or_si256(quants, _mm256_and_si256(where_set(qh), _mm256_set1_epi8(16)));
}

inline __m256i unpack(const block_q4_0 & x) {
    return nibbles(x.qs);
}
inline __m256i unpack(const block_q4_1 & x) {
    return nibbles(x.qs);
}
inline __m256i unpack(const block_q5_0 & x) {
    return with_fifth_bits(nibbles(x.qs), x.qh);
}
inline __m256i unpack(const block_q5_1 & x) {
    return with_fifth_bits(nibbles(x.qs), x.qh);
}
inline __m256i biased(__m256i quants) {
    return SIGNED ? quants : _mm256_xor_si256(quants, _mm256_set1_epi8((char)0x80));
}
inline __m256i unpack(const block_q8_0 & x) {
    return biased(_mm256_loadu_si256((const __m256i *)x.qs));
}
inline __m256i values_of_iq4(__m256i nibbles) {
    return biased(look_up(kvalues_iq4nl, nibbles));
}
inline __m256i values_of_mxfp4(__m256i nibbles) {
    const __m256i offset = _mm256_set1_epi8(traits<block_mxfp4>::OFFSET);
    return _mm256_add_epi8(look_up(kvalues_fp4, nibbles), offset);
}
inline __m256i unpack(const block_iq4_nl & x) {
    return values_of_iq4(nibbles(x.qs));
}
inline __m256i unpack(const block_mxfp4 & x) {
    return values_of_mxfp4(nibbles(x.qs));
}

template <typename block> inline float scale(const block & x) {
    return GGML_CPU_FP16_TO_FP32(x.d);
}
inline float scale(const block_mxfp4 & x) {
    return GGML_CPU_E8M0_TO_FP32_HALF(x.e);
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
    alignas(64) uint8_t quants[STEPS][ROWS_OF_PANEL][4];
    alignas(64) float scales[ROWS_OF_PANEL];
    alignas(64) float minima[ROWS_OF_PANEL];
};

// Unpacks rows; the last one again in place of those that there aren't.
template <typename block>
void unpack_panel(panel_block * panel, const block * rows, int64_t stride, int count,
                  int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++) {
        panel_block & out = panel[b];
        for (int first = 0; first < ROWS_OF_PANEL; first += 8) {
            __m256i eight[8];
            for (int i = 0; i < 8; i++) {
                const int r = first + i;
                const block & x = rows[std::min(r, count - 1) * stride + b];
                eight[i] = unpack(x);
                out.scales[r] = scale(x);
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
// the next, then the other eight of each. The lower halves of the bytes are the first 16 quants.

template <> struct traits<block_q4_0x8> : traits<block_q4_0> {};
template <> struct traits<block_iq4_nlx8> : traits<block_iq4_nl> {};
template <> struct traits<block_mxfp4x8> : traits<block_mxfp4> {};

inline __m256i quants_of(const block_q4_0x8 &, __m256i halves) { // with a sign, here an offset
    return _mm256_xor_si256(halves, _mm256_set1_epi8(8));
}
inline __m256i quants_of(const block_iq4_nlx8 &, __m256i halves) {
    return values_of_iq4(halves);
}
inline __m256i quants_of(const block_mxfp4x8 &, __m256i halves) {
    return values_of_mxfp4(halves);
}

template <typename eight_rows> inline float scale(const eight_rows & x, int row) {
    return GGML_CPU_FP16_TO_FP32(x.d[row]);
}
inline float scale(const block_mxfp4x8 & x, int row) {
    return GGML_CPU_E8M0_TO_FP32_HALF(x.e[row]);
}

template <typename eight_rows>
void unpack_repacked(panel_block * panel, const eight_rows * rows, int64_t stride, int count,
                     int64_t blocks) {
    const __m256i half = _mm256_set1_epi8(15);
    for (int64_t b = 0; b < blocks; b++) {
        panel_block & out = panel[b];
        for (int first = 0; first < ROWS_OF_PANEL; first += 8) {
            const eight_rows & x = rows[(first < count ? first / 8 : 0) * stride + b];
            for (int i = 0; i < 8; i++) {
                out.scales[first + i] = scale(x, i);
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
                        const __m256i quants = quants_of(x, _mm256_and_si256(ordered, half));
                        _mm256_store_si256((__m256i *)out.quants[step + i][first], quants);
                    }
                    low = _mm256_srli_epi16(low, 4);
                    high = _mm256_srli_epi16(high, 4);
                }
            }
        }
    }
}

inline void unpack_panel(panel_block * panel, const block_q4_0x8 * rows, int64_t stride, int count,
                         int64_t blocks) {
    unpack_repacked(panel, rows, stride, count, blocks);
}
inline void unpack_panel(panel_block * panel, const block_iq4_nlx8 * rows, int64_t stride,
                         int count, int64_t blocks) {
    unpack_repacked(panel, rows, stride, count, blocks);
}
inline void unpack_panel(panel_block * panel, const block_mxfp4x8 * rows, int64_t stride, int count,
                         int64_t blocks) {
    unpack_repacked(panel, rows, stride, count, blocks);
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

inline void write(float * to, floats x, int count) {
    if (count == LANES) {
        return store(to, x);
    }
    float values[LANES];
    store(values, x);
    memcpy(to, values, count * sizeof(float));
}

// The order in which blocks are added up: every fourth in one sum, so that a register of four makes
// them at once where a row meets few columns; or all in one, as upstream's kernels for one column
// do with what repack.cpp arranged.
template <int CHAINS, typename number> number sum_of_chains(const number (&x)[CHAINS]) {
    if constexpr (CHAINS == 4) {
        return (x[0] + x[1]) + (x[2] + x[3]);
    } else {
        return x[0];
    }
}

// A panel times N columns, beginning with `first`.
template <typename T, int N, typename order>
void tile(const panel_block * panel, int64_t blocks, const order & columns, int64_t first,
          const column_block * facts, float * out, int64_t ldc, int count) {
    const int CHAINS = order::CHAINS;
    facts += first * blocks;
    out += first * ldc;
    floats totals[STRIP][N][CHAINS];
    for (int r = 0; r < STRIP; r++) {
        for (int c = 0; c < N; c++) {
            std::fill_n(totals[r][c], CHAINS, zero());
        }
    }
    for (int64_t b = 0; b < blocks; b++) {
        ints sums[STRIP][N];
        const int8_t * quants[N];
        for (int c = 0; c < N; c++) {
            quants[c] = columns.quants(first + c, b);
            for (int r = 0; r < STRIP; r++) {
                sums[r][c] = all(T::MIN ? 0 : facts[c * blocks + b].start);
            }
        }
        dot<T::WIDE, order>(sums, panel[b].quants, quants);
        for (int r = 0; r < STRIP; r++) {
            const floats scales = load(panel[b].scales + r * LANES);
            for (int c = 0; c < N; c++) {
                const column_block & fact = facts[c * blocks + b];
                floats & total = totals[r][c][b % CHAINS];
                total =
                    multiply_add(to_floats(sums[r][c]), multiply(scales, all(fact.scale)), total);
                if constexpr (T::MIN) {
                    total = multiply_add(load(panel[b].minima + r * LANES), all(fact.sum), total);
                }
            }
        }
    }
    for (int r = 0; r < STRIP; r++) {
        const int rows = std::min(LANES, count - r * LANES);
        for (int c = 0; c < N && rows > 0; c++) {
            write(out + c * ldc + r * LANES, sum_of_chains<CHAINS>(totals[r][c]), rows);
        }
    }
}

template <typename T, typename order>
void tiles(const panel_block * panel, int64_t blocks, const order & columns, int64_t count,
           const column_block * facts, float * out, int64_t ldc, int rows) {
    in_tiles<MOST>(count, [&](auto width, int64_t first) {
        tile<T, width>(panel, blocks, columns, first, facts, out, ldc, rows);
    });
}

template <int OFFSET, typename column>
const column_block * describe_all(const column * columns, int64_t stride, int64_t count,
                                  int64_t blocks) {
    auto * facts = scratch<column_block>(column_memory, count * blocks);
    for (int64_t c = 0; c < count; c++) {
        for (int64_t i = 0; i < blocks; i++) {
            facts[c * blocks + i] = describe<OFFSET>(columns[c * stride + i]);
        }
    }
    return facts;
}

template <typename block>
bool product(const ggml_compute_params * params, int64_t rows, int64_t columns, int64_t blocks,
             const void * a, int64_t lda, const void * b, int64_t ldb, float * out, int64_t ldc) {
    using T = traits<block>;
    const block * weights = (const block *)a;
    const auto * values = (const typename T::column *)b;

    auto * panel = scratch<panel_block>(panel_memory, blocks);
    const column_block * facts = describe_all<T::OFFSET>(values, ldb, columns, blocks);
    share(params, (rows + ROWS_OF_PANEL - 1) / ROWS_OF_PANEL, [&](int64_t job) {
        const int64_t row = job * ROWS_OF_PANEL;
        const int count = (int)std::min<int64_t>(ROWS_OF_PANEL, rows - row);
        unpack_panel(panel, weights + row * lda, lda, count, blocks);
        tiles<T>(panel, blocks, one_by_one<typename T::column, 4>{ values, ldb }, columns, facts,
                 out + row, ldc, count);
    });
    return true;
}

// The same for rows and columns as repack.cpp has them, by one thread.
template <typename eight_rows>
void repacked_product(int64_t rows, int64_t columns, int64_t blocks, const eight_rows * weights,
                      const block_q8_0x4 * values, float * out, int64_t ldc) {
    using T = traits<eight_rows>;
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
    for (int64_t row = 0; row < rows; row += ROWS_OF_PANEL) {
        const int count = (int)std::min<int64_t>(ROWS_OF_PANEL, rows - row);
        unpack_panel(panel, weights + row / 8 * blocks, blocks, count, blocks);
        tiles<T>(panel, blocks, order, columns, facts, out + row, ldc, count);
    }
}

// Few columns: a row of weights after the other, as they stand in memory (several at once are too
// much for the processor's prefetching), four blocks at a time in registers of AVX2. Sums and
// roundings are those of a tile.

struct alignas(16) column_of_four {
    float scales[4];
    union {
        int32_t starts[4];
        float sums[4];
    };
};

// Of the last four, those that there aren't add nothing.
template <typename T>
void describe_fours(column_of_four * out, const typename T::column * column, int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++) {
        if (b % 4 == 0) {
            out[b / 4] = {};
        }
        const column_block fact = describe<T::OFFSET>(column[b]);
        out[b / 4].scales[b % 4] = fact.scale;
        out[b / 4].starts[b % 4] = fact.start; // or the sum, which is in the same place
    }
}

// The products of 32 quants, added up in eight numbers.
template <bool WIDE> inline __m256i multiply_quants(__m256i weights, const int8_t * column) {
    const __m256i values = _mm256_loadu_si256((const __m256i *)column);
#ifdef WITH_VNNI
    return add_fours_of_8(_mm256_setzero_si256(), weights, values);
#else
    const __m256i size = WIDE ? _mm256_abs_epi8(weights) : weights;
    const __m256i sign = WIDE ? _mm256_sign_epi8(values, weights) : values;
    return _mm256_madd_epi16(_mm256_maddubs_epi16(size, sign), _mm256_set1_epi16(1));
#endif
}

inline __m128i sums_of(const __m256i (&x)[4]) {
    const auto add_32 = [](__m256i a, __m256i b) {
        return _mm256_add_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    };
    const __m256i low = add_32(x[0], x[1]), high = add_32(x[2], x[3]);
    const __m256i both =
        _mm256_add_epi32(_mm256_unpacklo_epi64(low, high), _mm256_unpackhi_epi64(low, high));
    return _mm_add_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1));
}

inline __m128 widen_four(ggml_half a, ggml_half b, ggml_half c, ggml_half d) {
    return _mm_cvtph_ps(_mm_setr_epi16((short)a, (short)b, (short)c, (short)d, 0, 0, 0, 0));
}
template <typename block>
inline __m128 four_scales(const block & a, const block & b, const block & c, const block & d) {
    return widen_four(a.d, b.d, c.d, d.d);
}
inline __m128 four_scales(const block_mxfp4 & a, const block_mxfp4 & b, const block_mxfp4 & c,
                          const block_mxfp4 & d) {
    return _mm_setr_ps(scale(a), scale(b), scale(c), scale(d));
}

// A row of weights times N columns.
template <typename block, int N>
void dot_row(const block * row, int64_t blocks, const typename traits<block>::column * columns,
             int64_t stride, const column_of_four * facts, float * out, int64_t ldc) {
    using T = traits<block>;
    const int64_t fours = (blocks + 3) / 4;
    __m128 totals[N] = {};
    const auto add = [&](int64_t g, const int64_t(&at)[4]) {
        __m256i quants[4];
        for (int i = 0; i < 4; i++) {
            quants[i] = unpack(row[at[i]]);
        }
        const __m128 d = four_scales(row[at[0]], row[at[1]], row[at[2]], row[at[3]]);
        for (int c = 0; c < N; c++) {
            const column_of_four & fact = facts[c * fours + g];
            __m256i products[4];
            for (int i = 0; i < 4; i++) {
                products[i] = multiply_quants<T::WIDE>(quants[i], columns[c * stride + at[i]].qs);
            }
            __m128i sums = sums_of(products);
            if constexpr (!T::MIN) {
                sums = _mm_add_epi32(sums, _mm_load_si128((const __m128i *)fact.starts));
            }
            totals[c] = _mm_fmadd_ps(_mm_cvtepi32_ps(sums), _mm_mul_ps(d, _mm_load_ps(fact.scales)),
                                     totals[c]);
            if constexpr (T::MIN) {
                const __m128 minima =
                    widen_four(row[at[0]].m, row[at[1]].m, row[at[2]].m, row[at[3]].m);
                totals[c] = _mm_fmadd_ps(minima, _mm_load_ps(fact.sums), totals[c]);
            }
        }
    };
    int64_t g = 0;
    for (; g < blocks / 4; g++) {
        add(g, { 4 * g, 4 * g + 1, 4 * g + 2, 4 * g + 3 });
    }
    if (g < fours) {
        const int64_t last = blocks - 1;
        add(g, { 4 * g, std::min(4 * g + 1, last), std::min(4 * g + 2, last), last });
    }
    for (int c = 0; c < N; c++) {
        float four[4];
        _mm_storeu_ps(four, totals[c]);
        out[c * ldc] = sum_of_chains<4>(four);
    }
}

// Threads share the rows once for all: between so small products, waiting for each other costs
// more than it brings.
template <typename work>
void share_rows(const ggml_compute_params * params, int64_t rows, const work & run) {
    const int64_t share = (rows + params->nth - 1) / params->nth;
    const int64_t first = params->ith * share, end = std::min(rows, first + share);
    for (int64_t row = first; row < end; row++) {
        run(row);
    }
}

template <typename block> struct few_columns {
    using column = typename traits<block>::column;
    const column * values;
    int64_t stride, blocks;
    const column_of_four * facts;
    decltype(&dot_row<block, 1>) run;

    few_columns(const column * values, int64_t stride, int64_t count, int64_t blocks)
        : values(values), stride(stride), blocks(blocks) {
        const int64_t fours = (blocks + 3) / 4;
        auto * out = scratch<column_of_four>(column_memory, count * fours);
        for (int64_t c = 0; c < count; c++) {
            describe_fours<traits<block>>(out + c * fours, values + c * stride, blocks);
        }
        facts = out;
        run = count == 1 ? dot_row<block, 1> : count == 2 ? dot_row<block, 2> : dot_row<block, 3>;
    }
    void multiply(const block * row, float * out, int64_t ldc) const {
        run(row, blocks, values, stride, facts, out, ldc);
    }
};

template <typename block>
bool product_of_few(const ggml_compute_params * params, int64_t rows, int64_t columns,
                    int64_t blocks, const void * a, int64_t lda, const void * b, int64_t ldb,
                    float * out, int64_t ldc) {
    const few_columns<block> all((const typename traits<block>::column *)b, ldb, columns, blocks);
    share_rows(params, rows,
               [&](int64_t row) { all.multiply((const block *)a + row * lda, out + row, ldc); });
    return true;
}

// The experts of a mixture: the rows of one that a thread has, and the columns that come to it.
struct expert {
    const void * weights; // from its first row on
    int64_t stride;       // from row to row, or eight to eight, in blocks
    int64_t first, end;   // rows
    const void * columns; // one after the other
    int64_t count, blocks;
    const ggml_tensor * dst;
    const int32_t (*places)[2]; // the token of each column, and which of its experts this is

    // Where the product with a column goes.
    float * out(int64_t column) const {
        const int32_t * place = places[column];
        return (float *)((char *)dst->data + place[0] * dst->nb[1] + place[1] * dst->nb[2]);
    }
};

thread_local std::vector<line> expert_memory;

// Calls `multiply` with some rows at a time and where their products may stand, column by column.
template <int AT_ONCE, typename work> void in_panels(const expert & x, const work & multiply) {
    auto * products = scratch<float>(expert_memory, x.count * AT_ONCE);
    for (int64_t row = x.first; row < x.end; row += AT_ONCE) {
        const int count = (int)std::min<int64_t>(AT_ONCE, x.end - row);
        multiply(row, count, products);
        for (int64_t c = 0; c < x.count; c++) {
            memcpy(x.out(c) + row, products + c * AT_ONCE, (size_t)count * sizeof(float));
        }
    }
}

// The same row by row, for few columns.
template <typename work> void in_rows(const expert & x, const work & multiply) {
    for (int64_t row = x.first; row < x.end; row++) {
        float products[FEW_COLUMNS_OF_QUANTS];
        multiply(row, products);
        for (int64_t c = 0; c < x.count; c++) {
            x.out(c)[row] = products[c];
        }
    }
}

template <typename block> void product_of_expert(const expert & x) {
    using T = traits<block>;
    const auto * weights = (const block *)x.weights;
    const auto * values = (const typename T::column *)x.columns;
    if (x.count < FEW_COLUMNS_OF_QUANTS) {
        const few_columns<block> all(values, x.blocks, x.count, x.blocks);
        in_rows(x, [&](int64_t row, float * products) {
            all.multiply(weights + row * x.stride, products, 1);
        });
        return;
    }
    auto * panel = scratch<panel_block>(panel_memory, x.blocks);
    const column_block * facts = describe_all<T::OFFSET>(values, x.blocks, x.count, x.blocks);
    const one_by_one<typename T::column, 4> order = { values, x.blocks };
    in_panels<ROWS_OF_PANEL>(x, [&](int64_t row, int count, float * products) {
        unpack_panel(panel, weights + row * x.stride, x.stride, count, x.blocks);
        tiles<T>(panel, x.blocks, order, x.count, facts, products, ROWS_OF_PANEL, count);
    });
}

// Upstream's kernel for one column and rows as repack.cpp has them; sums and roundings are those
// of a tile.
using product_of_one = decltype(ggml_gemv_q4_0_8x8_q8_0);

template <typename column> void one_after_the_other(const expert & x, product_of_one * of_one) {
    const int64_t bytes = (int64_t)x.dst->src[0]->nb[1];
    for (int64_t c = 0; c < x.count; c++) {
        of_one((int)x.dst->src[0]->ne[0], x.out(c) + x.first, (size_t)x.dst->ne[0],
               (const char *)x.weights + x.first * bytes, (const column *)x.columns + c * x.blocks,
               1, (int)(x.end - x.first));
    }
}

template <typename eight_rows, product_of_one of_one>
void product_of_repacked_expert(const expert & x) {
    using T = traits<eight_rows>;
    if (x.count < FEW_COLUMNS_OF_QUANTS) {
        return one_after_the_other<block_q8_0>(x, of_one);
    }
    const auto * values = (const block_q8_0 *)x.columns;
    auto * panel = scratch<panel_block>(panel_memory, x.blocks);
    const column_block * facts = describe_all<T::OFFSET>(values, x.blocks, x.count, x.blocks);
    const one_by_one<block_q8_0, 1> order = { values, x.blocks };
    in_panels<ROWS_OF_PANEL>(x, [&](int64_t row, int count, float * products) {
        unpack_panel(panel, (const eight_rows *)x.weights + row / 8 * x.stride, x.stride, count,
                     x.blocks);
        tiles<T>(panel, x.blocks, order, x.count, facts, products, ROWS_OF_PANEL, count);
    });
}

} // namespace
