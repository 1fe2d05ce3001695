// Products of weights that are numbers by themselves. A panel holds words of 32 bits: one number,
// or a pair of neighbouring ones where the processor multiplies pairs.
#pragma once

#include "lanes.h"

#include <algorithm>

namespace {

const int ROWS = 2 * LANES; // of a panel: two registers for one load of a column's word
const int DEPTH = 512;      // words of a row in a panel, for it to stay in the cache

// Columns are taken as they come, in 32 bits, which is more exact than upstream's way of rounding
// them to the type of the weights first.
template <typename type> struct singly {
    using number = type;
    using column = float;
    static constexpr int NUMBERS = 1; // in a word

    static __m256i eight_words(const float * x) {
        return _mm256_loadu_si256((const __m256i *)x);
    }
    static __m256i eight_words(const ggml_fp16_t * x) {
        return _mm256_castps_si256(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x)));
    }
    static __m256i eight_words(const ggml_bf16_t * x) {
        const __m128i halves = _mm_loadu_si128((const __m128i *)x);
        return _mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16);
    }
    static float word(const float * x) {
        return *x;
    }
    static float word(const ggml_fp16_t * x) {
        return GGML_CPU_FP16_TO_FP32(*x);
    }
    static float word(const ggml_bf16_t * x) {
        return GGML_BF16_TO_FP32(*x);
    }
    static floats load_all(const float * x) {
        return all(*x);
    }
    static floats multiply_add(floats a, floats b, floats sum) {
        return ::multiply_add(a, b, sum);
    }
};

#ifdef __AVX512BF16__
struct in_pairs {
    using number = ggml_bf16_t;
    using column = ggml_bf16_t;
    static constexpr int NUMBERS = 2;

    static __m256i eight_words(const number * x) {
        return _mm256_loadu_si256((const __m256i *)x);
    }
    static float word(const number * x) {
        float out;
        memcpy(&out, x, sizeof(out));
        return out;
    }
    static floats load_all(const column * x) {
        return all(word(x));
    }
    static floats multiply_add(floats a, floats b, floats sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    }
};
#endif

template <typename T>
void unpack_panel(float (*panel)[ROWS], const typename T::number * rows, int64_t stride, int count,
                  int64_t words) {
    for (int first = 0; first < ROWS; first += 8) {
        const typename T::number * row[8];
        for (int i = 0; i < 8; i++) {
            row[i] = rows + std::min(first + i, count - 1) * stride;
        }
        int64_t w = 0;
        for (; w + 8 <= words; w += 8) {
            __m256i eight[8];
            for (int i = 0; i < 8; i++) {
                eight[i] = T::eight_words(row[i] + w * T::NUMBERS);
            }
            transpose(eight);
            for (int i = 0; i < 8; i++) {
                _mm256_store_si256((__m256i *)(panel[w + i] + first), eight[i]);
            }
        }
        for (; w < words; w++) {
            for (int i = 0; i < 8; i++) {
                panel[w][first + i] = T::word(row[i] + w * T::NUMBERS);
            }
        }
    }
}

// A panel times N columns, added to what there is unless this is the first.
template <typename T, int N>
void tile(const float (*panel)[ROWS], int64_t words, const typename T::column * columns,
          int64_t ldb, float * out, int64_t ldc, int count, bool first) {
    floats low[N], high[N];
    for (int c = 0; c < N; c++) {
        low[c] = high[c] = zero();
    }
    for (int64_t w = 0; w < words; w++) {
        const floats a = load(panel[w]), b = load(panel[w] + LANES);
        for (int c = 0; c < N; c++) {
            const floats value = T::load_all(columns + c * ldb + w * T::NUMBERS);
            low[c] = T::multiply_add(a, value, low[c]);
            high[c] = T::multiply_add(b, value, high[c]);
        }
    }
    for (int c = 0; c < N; c++) {
        alignas(64) float values[ROWS];
        store(values, low[c]);
        store(values + LANES, high[c]);
        for (int r = 0; r < count; r++) {
            out[c * ldc + r] = first ? values[r] : out[c * ldc + r] + values[r];
        }
    }
}

template <typename T, int N>
void tiles(const float (*panel)[ROWS], int64_t words, const typename T::column * columns,
           int64_t ldb, int64_t left, float * out, int64_t ldc, int count, bool first) {
    for (; left >= N; left -= N) {
        tile<T, N>(panel, words, columns, ldb, out, ldc, count, first);
        columns += N * ldb;
        out += N * ldc;
    }
    if constexpr (N > 1) {
        tiles<T, N / 2>(panel, words, columns, ldb, left, out, ldc, count, first);
    }
}

template <typename T>
bool product_of_numbers(const ggml_compute_params * params, int64_t rows, int64_t columns,
                        int64_t depth, const void * a, int64_t lda, const void * b, int64_t ldb,
                        float * out, int64_t ldc) {
    if (depth % T::NUMBERS != 0) {
        return false;
    }
    using panel_row = float[ROWS];
    auto * panel = scratch<panel_row>(panel_memory, DEPTH);
    share(params, (rows + ROWS - 1) / ROWS, [&](int64_t job) {
        const int64_t row = job * ROWS;
        const int count = (int)std::min<int64_t>(ROWS, rows - row);
        for (int64_t k = 0; k < depth; k += DEPTH * T::NUMBERS) {
            const int64_t words = std::min<int64_t>(DEPTH, (depth - k) / T::NUMBERS);
            unpack_panel<T>(panel, (const typename T::number *)a + row * lda + k, lda, count,
                            words);
            tiles<T, COLUMNS>(panel, words, (const typename T::column *)b + k, ldb, columns,
                              out + row, ldc, count, k == 0);
        }
    });
    return true;
}

// Few columns of numbers: as with quants, every thread takes its rows one after the other.

template <typename type> struct widened {
    using number = type;
    using column = float;
    static constexpr int AT_ONCE = LANES;

    static floats multiply_add(const number * a, const column * b, floats sum) {
        return ::multiply_add(widen(a), widen(b), sum);
    }
    static const column * prepare(const float * columns, int64_t, int64_t, int64_t &) {
        return columns;
    }
};

#ifdef __AVX512BF16__
// Rounds the columns first, as upstream does: what is left to do per weight is half as much.
struct paired {
    using number = ggml_bf16_t;
    using column = ggml_bf16_t;
    static constexpr int AT_ONCE = 2 * LANES;

    static floats multiply_add(const number * a, const column * b, floats sum) {
        return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(a),
                                (__m512bh)_mm512_loadu_si512(b));
    }
    static const column * prepare(const float * columns, int64_t count, int64_t depth,
                                  int64_t & stride) {
        auto * out = scratch<column>(column_memory, count * depth);
        for (int64_t c = 0; c < count; c++) {
            for (int64_t k = 0; k < depth; k += LANES) {
                const floats x = _mm512_loadu_ps(columns + c * stride + k);
                _mm256_storeu_si256((__m256i *)(out + c * depth + k),
                                    (__m256i)_mm512_cvtneps_pbh(x));
            }
        }
        stride = depth;
        return out;
    }
};
#endif

template <typename T>
float dot_row(const typename T::number * row, const typename T::column * column, int64_t depth) {
    const int CHAINS = 4 * LANES / T::AT_ONCE; // sums that don't wait for each other
    floats sums[CHAINS];
    std::fill_n(sums, CHAINS, zero());
    for (int64_t k = 0; k < depth; k += CHAINS * T::AT_ONCE) {
        for (int i = 0; i < CHAINS; i++) {
            const int64_t at = k + i * T::AT_ONCE;
            sums[i] = T::multiply_add(row + at, column + at, sums[i]);
        }
    }
    floats total = sums[0];
    for (int i = 1; i < CHAINS; i++) {
        total += sums[i];
    }
    return sum_of(total);
}

template <typename T>
bool numbers_of_few(const ggml_compute_params * params, int64_t rows, int64_t columns,
                    int64_t depth, const void * a, int64_t lda, const void * b, int64_t ldb,
                    float * out, int64_t ldc) {
    if (depth % (4 * LANES) != 0) {
        return false;
    }
    const int64_t share = (rows + params->nth - 1) / params->nth;
    const int64_t first = params->ith * share, end = std::min(rows, first + share);
    const auto * weights = (const typename T::number *)a;
    const auto * values = T::prepare((const float *)b, columns, depth, ldb);
    for (int64_t row = first; row < end; row++) {
        for (int64_t c = 0; c < columns; c++) {
            out[c * ldc + row] = dot_row<T>(weights + row * lda, values + c * ldb, depth);
        }
    }
    return true;
}

} // namespace
