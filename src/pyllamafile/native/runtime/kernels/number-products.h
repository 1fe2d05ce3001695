// Products of weights that are numbers by themselves. A panel holds words of 32 bits: one number,
// or a pair of neighbouring ones where the processor multiplies pairs.
//
// The order of sums is that in which a register of eight words goes along a row: DEPTH words at a
// time, each lane has a sum of its own, and then halves are added up until one sum is left. In a
// panel, where rows stand side by side, the words of each lane follow each other, and then those of
// the next.
#pragma once

#include "lanes.h"

#include <algorithm>
#include <cstring>

namespace {

#ifdef WITH_AVX512
const int REGISTERS = 3; // of rows, for one load of a column's word
#else
const int REGISTERS = 2;
#endif
const int ROWS = REGISTERS * LANES; // of a panel
const int DEPTH = 512;              // words of a row in a panel, for it to stay in the cache
const int SUMS = 8;                 // of a row, which are added up after so many words
const int HALVINGS = 3;             // of them, until one is left

// Those that are added up first are neighbours.
constexpr int nth_sum(int i) {
    return i % 2 * 4 + i / 2 % 2 * 2 + i / 4;
}

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
    static __m256 multiply_add_eight(__m256 a, __m256 b, __m256 sum) {
        return _mm256_fmadd_ps(a, b, sum);
    }
    static const column * prepare(const float * columns, int64_t, int64_t, int64_t &) {
        return columns;
    }
};

#ifdef __AVX512BF16__
// Upstream rounds columns before a panel meets them, and `prepare` does if there are few of them.
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
    static __m256 multiply_add_eight(__m256 a, __m256 b, __m256 sum) {
        return _mm256_dpbf16_ps(sum, (__m256bh)a, (__m256bh)b);
    }
    static const column * prepare(const float * columns, int64_t count, int64_t depth,
                                  int64_t & stride) {
        auto * out = scratch<column>(column_memory, count * depth);
        for (int64_t c = 0; c < count; c++) {
            int64_t k = 0;
            for (; k + LANES <= depth; k += LANES) {
                const floats x = _mm512_loadu_ps(columns + c * stride + k);
                _mm256_storeu_si256((__m256i *)(out + c * depth + k),
                                    (__m256i)_mm512_cvtneps_pbh(x));
            }
            for (; k < depth; k++) {
                out[c * depth + k] = GGML_FP32_TO_BF16(columns[c * stride + k]);
            }
        }
        stride = depth;
        return out;
    }
};
#endif

// Words of a sum in a panel, and one more: the sums would begin in the same set of the cache.
const int WORDS_OF_SUM = DEPTH / SUMS + 1;

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
                float * to = panel[nth_sum(i) * WORDS_OF_SUM + w / SUMS] + first;
                _mm256_store_si256((__m256i *)to, eight[i]);
            }
        }
        for (; w < words; w++) {
            for (int i = 0; i < 8; i++) {
                panel[nth_sum(w % SUMS) * WORDS_OF_SUM + w / SUMS][first + i] =
                    T::word(row[i] + w * T::NUMBERS);
            }
        }
    }
}

// A panel times N columns, added to what there is unless this is the first.
template <typename T, int N>
void tile(const float (*panel)[ROWS], int64_t words, const typename T::column * columns,
          int64_t ldb, float * out, int64_t ldc, int count, bool first) {
    floats halves[HALVINGS + 1][N][REGISTERS]; // which wait for the others
    for (int i = 0; i < SUMS; i++) {
        floats sums[N][REGISTERS];
        for (int c = 0; c < N; c++) {
            std::fill_n(sums[c], REGISTERS, zero());
        }
        const float(*row)[ROWS] = panel + i * WORDS_OF_SUM;
        for (int64_t w = nth_sum(i); w < words; w += SUMS) {
            floats weights[REGISTERS];
            for (int r = 0; r < REGISTERS; r++) {
                weights[r] = load(*row + r * LANES);
            }
            row++;
            // Of a column of the next tile: all of it is gone through for the first of the sums.
            _mm_prefetch((const char *)(columns + (N + i) * ldb + w * T::NUMBERS), _MM_HINT_T0);
            for (int c = 0; c < N; c++) {
                const floats value = T::load_all(columns + c * ldb + w * T::NUMBERS);
                for (int r = 0; r < REGISTERS; r++) {
                    sums[c][r] = T::multiply_add(weights[r], value, sums[c][r]);
                }
            }
        }
        int half = 0;
        for (; i >> half & 1; half++) {
            for (int c = 0; c < N; c++) {
                for (int r = 0; r < REGISTERS; r++) {
                    sums[c][r] = halves[half][c][r] + sums[c][r];
                }
            }
        }
        memcpy(halves[half], sums, sizeof(sums));
    }
    for (int c = 0; c < N; c++) {
        alignas(64) float values[ROWS];
        for (int r = 0; r < REGISTERS; r++) {
            store(values + r * LANES, halves[HALVINGS][c][r]);
        }
        for (int r = 0; r < count; r++) {
            out[c * ldc + r] = first ? values[r] : out[c * ldc + r] + values[r];
        }
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
    auto * panel = scratch<panel_row>(panel_memory, SUMS * WORDS_OF_SUM);
    share(params, (rows + ROWS - 1) / ROWS, [&](int64_t job) {
        const int64_t row = job * ROWS;
        const int count = (int)std::min<int64_t>(ROWS, rows - row);
        for (int64_t k = 0; k < depth; k += DEPTH * T::NUMBERS) {
            const int64_t words = std::min<int64_t>(DEPTH, (depth - k) / T::NUMBERS);
            unpack_panel<T>(panel, (const typename T::number *)a + row * lda + k, lda, count,
                            words);
            in_tiles<COLUMNS>(columns, [&](auto width, int64_t first) {
                tile<T, width>(panel, words, (const typename T::column *)b + first * ldb + k, ldb,
                               out + first * ldc + row, ldc, count, k == 0);
            });
        }
    });
    return true;
}

// Few columns of numbers: every thread takes a few of its rows at a time, so that there are enough
// sums that don't wait for each other. The processor's prefetching would be lost among them (half
// the speed of a single row), so each step asks for a line of those that come next in memory.

template <typename T>
const int rows_at_once = sizeof(line) / (SUMS * T::NUMBERS * sizeof(typename T::number));

template <typename T, int R, int N>
void dot_rows(const typename T::number * rows, int64_t lda, const typename T::column * columns,
              int64_t ldb, int64_t words, float * out, int64_t ldc) {
    const int STEP = R * SUMS * T::NUMBERS * sizeof(*rows);
    const char * next = (const char *)(rows + R * lda);
    for (int64_t first = 0; first < words; first += DEPTH) {
        const int64_t end = std::min(words, first + DEPTH);
        __m256 sums[R][N];
        for (int r = 0; r < R; r++) {
            std::fill_n(sums[r], N, _mm256_setzero_ps());
        }
        int64_t w = first;
        const auto add = [&](const typename T::number * row, int64_t row_stride,
                             const typename T::column * column, int64_t column_stride) {
            __m256 weights[R];
            for (int r = 0; r < R; r++) {
                weights[r] = _mm256_castsi256_ps(T::eight_words(row + r * row_stride));
            }
            for (int c = 0; c < N; c++) {
                const __m256 values =
                    _mm256_castsi256_ps(T::eight_words(column + c * column_stride));
                for (int r = 0; r < R; r++) {
                    sums[r][c] = T::multiply_add_eight(weights[r], values, sums[r][c]);
                }
            }
        };
        for (; w + SUMS <= end; w += SUMS) {
            _mm_prefetch(next + w / SUMS * STEP, _MM_HINT_T0);
            add(rows + w * T::NUMBERS, lda, columns + w * T::NUMBERS, ldb);
        }
        if (w < end) {
            constexpr int WIDTH = SUMS * T::NUMBERS;
            typename T::number last[R * WIDTH] = {};
            typename T::column values[N * WIDTH] = {};
            const int64_t left = (end - w) * T::NUMBERS;
            for (int r = 0; r < R; r++) {
                std::copy_n(rows + r * lda + w * T::NUMBERS, left, last + r * WIDTH);
            }
            for (int c = 0; c < N; c++) {
                std::copy_n(columns + c * ldb + w * T::NUMBERS, left, values + c * WIDTH);
            }
            add(last, WIDTH, values, WIDTH);
        }
        for (int c = 0; c < N; c++) {
            for (int r = 0; r < R; r++) {
                const float sum = sum_of(sums[r][c]);
                out[c * ldc + r] = first == 0 ? sum : out[c * ldc + r] + sum;
            }
        }
    }
}

template <typename T, int N>
void dot_columns(const typename T::number * rows, int64_t lda, int64_t count,
                 const typename T::column * columns, int64_t ldb, int64_t left, int64_t words,
                 float * out, int64_t ldc) {
    constexpr int R = std::min(rows_at_once<T>, 8 / N);
    for (; left >= N; left -= N) {
        int64_t r = 0;
        for (; r + R <= count; r += R) {
            dot_rows<T, R, N>(rows + r * lda, lda, columns, ldb, words, out + r, ldc);
        }
        for (; r < count; r++) {
            dot_rows<T, 1, N>(rows + r * lda, lda, columns, ldb, words, out + r, ldc);
        }
        columns += N * ldb;
        out += N * ldc;
    }
    if constexpr (N > 1) {
        dot_columns<T, N / 2>(rows, lda, count, columns, ldb, left, words, out, ldc);
    }
}

template <typename T>
bool numbers_of_few(const ggml_compute_params * params, int64_t rows, int64_t columns,
                    int64_t depth, const void * a, int64_t lda, const void * b, int64_t ldb,
                    float * out, int64_t ldc) {
    if (depth % T::NUMBERS != 0) {
        return false;
    }
    const int64_t share = (rows + params->nth - 1) / params->nth;
    const int64_t first = params->ith * share, end = std::min(rows, first + share);
    const auto * weights = (const typename T::number *)a;
    const auto * values = T::prepare((const float *)b, columns, depth, ldb);
    for (int64_t row = first; row < end; row += rows_at_once<T>) {
        dot_columns<T, 4>(weights + row * lda, lda, std::min<int64_t>(rows_at_once<T>, end - row),
                          values, ldb, columns, depth / T::NUMBERS, out + row, ldc);
    }
    return true;
}

} // namespace
