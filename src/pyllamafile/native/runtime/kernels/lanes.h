// The registers that products and attention are made in, AVX-512's, AVX2's or, for attention, those
// of SSE and NEON; and what the threads that make them share: their memory, and the work.
#pragma once

#include "ggml-cpu-impl.h"
#include "simd-mappings.h"

#include <type_traits>
#include <vector>

#if defined(__AVX512F__) && defined(__AVX512VNNI__)
#define WITH_AVX512
#endif
// An instruction that adds up products of eight bits with 32 bits at once: of AVX-512, or AVX2's.
#if defined(WITH_AVX512) || defined(__AVXVNNI__)
#define WITH_VNNI
#endif

namespace {

#ifdef WITH_AVX512

const int LANES = 16;
const int COLUMNS = 8;       // of a tile: accumulators in registers
const int SUMS_AT_ONCE = 24; // in registers, beside what they are made of
using floats = __m512;
using ints = __m512i;

inline floats zero() {
    return _mm512_setzero_ps();
}
inline floats load(const float * p) {
    return _mm512_load_ps(p);
}
inline floats all(float x) {
    return _mm512_set1_ps(x);
}
inline ints all(int32_t x) {
    return _mm512_set1_epi32(x);
}
inline floats to_floats(ints x) {
    return _mm512_cvtepi32_ps(x);
}
inline floats multiply(floats a, floats b) {
    return _mm512_mul_ps(a, b);
}
inline floats multiply_add(floats a, floats b, floats sum) {
    return _mm512_fmadd_ps(a, b, sum);
}
inline void store(float * p, floats x) {
    _mm512_storeu_ps(p, x);
}
inline floats widen(const float * x) {
    return _mm512_loadu_ps(x);
}
inline floats widen(const ggml_fp16_t * x) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)x));
}
inline floats widen(const ggml_bf16_t * x) {
    const ints words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
inline floats largest(floats a, floats b) { // b, where one of them is no number
    return _mm512_max_ps(a, b);
}
inline float largest_of(floats x) {
    return _mm512_reduce_max_ps(x);
}
inline floats nearest(floats x) {
    return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline floats power_of_two(floats whole) { // 0 below 2^-126, and for minus infinity
    const ints biased = _mm512_add_epi32(_mm512_cvtps_epi32(whole), all((int32_t)127));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_max_epi32(biased, all((int32_t)0)), 23));
}

#elif defined(__AVX2__)

const int LANES = 8;
const int COLUMNS = 6;
const int SUMS_AT_ONCE = 12;
using floats = __m256;
using ints = __m256i;

inline floats zero() {
    return _mm256_setzero_ps();
}
inline floats load(const float * p) {
    return _mm256_load_ps(p);
}
inline floats all(float x) {
    return _mm256_set1_ps(x);
}
inline ints all(int32_t x) {
    return _mm256_set1_epi32(x);
}
inline floats to_floats(ints x) {
    return _mm256_cvtepi32_ps(x);
}
inline floats multiply(floats a, floats b) {
    return _mm256_mul_ps(a, b);
}
inline floats multiply_add(floats a, floats b, floats sum) {
    return _mm256_fmadd_ps(a, b, sum);
}
inline void store(float * p, floats x) {
    _mm256_storeu_ps(p, x);
}
inline floats widen(const float * x) {
    return _mm256_loadu_ps(x);
}
inline floats widen(const ggml_fp16_t * x) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)x));
}
inline floats widen(const ggml_bf16_t * x) {
    const ints words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)x));
    return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}
inline floats largest(floats a, floats b) { // b, where one of them is no number
    return _mm256_max_ps(a, b);
}
inline float largest_of(floats x) {
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline floats nearest(floats x) {
    return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline floats power_of_two(floats whole) { // 0 below 2^-126, and for minus infinity
    const ints biased = _mm256_add_epi32(_mm256_cvtps_epi32(whole), all((int32_t)127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_max_epi32(biased, all((int32_t)0)), 23));
}

#elif defined(__ARM_NEON)

const int LANES = 4;
const int SUMS_AT_ONCE = 24;
using floats = float32x4_t;

inline floats zero() {
    return vdupq_n_f32(0);
}
inline floats load(const float * p) {
    return vld1q_f32(p);
}
inline floats all(float x) {
    return vdupq_n_f32(x);
}
inline floats multiply(floats a, floats b) {
    return vmulq_f32(a, b);
}
inline floats multiply_add(floats a, floats b, floats sum) {
    return vfmaq_f32(sum, a, b);
}
inline void store(float * p, floats x) {
    vst1q_f32(p, x);
}
inline floats widen(const float * x) {
    return vld1q_f32(x);
}
inline floats widen(const ggml_fp16_t * x) {
    return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(x)));
}
inline floats largest(floats a, floats b) { // the other, where one of them is no number
    return vmaxnmq_f32(a, b);
}
inline float largest_of(floats x) {
    return vmaxnmvq_f32(x);
}
inline floats nearest(floats x) {
    return vrndnq_f32(x);
}
inline floats power_of_two(floats whole) { // 0 below 2^-126, and for minus infinity
    const int32x4_t biased = vaddq_s32(vcvtnq_s32_f32(whole), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(vmaxq_s32(biased, vdupq_n_s32(0)), 23));
}

#else

const int LANES = 4;
const int SUMS_AT_ONCE = 12;
using floats = __m128;

inline floats zero() {
    return _mm_setzero_ps();
}
inline floats load(const float * p) {
    return _mm_load_ps(p);
}
inline floats all(float x) {
    return _mm_set1_ps(x);
}
inline floats multiply(floats a, floats b) {
    return _mm_mul_ps(a, b);
}
inline floats multiply_add(floats a, floats b, floats sum) {
    return _mm_add_ps(sum, _mm_mul_ps(a, b));
}
inline void store(float * p, floats x) {
    _mm_storeu_ps(p, x);
}
inline floats widen(const float * x) {
    return _mm_loadu_ps(x);
}
inline floats widen(const ggml_fp16_t * x) {
    return _mm_setr_ps(GGML_CPU_FP16_TO_FP32(x[0]), GGML_CPU_FP16_TO_FP32(x[1]),
                       GGML_CPU_FP16_TO_FP32(x[2]), GGML_CPU_FP16_TO_FP32(x[3]));
}
inline floats largest(floats a, floats b) { // b, where one of them is no number
    return _mm_max_ps(a, b);
}
inline float largest_of(floats x) {
    const floats two = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline floats nearest(floats x) {
    return _mm_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline floats power_of_two(floats whole) { // 0 below 2^-126, and for minus infinity
    const __m128i biased = _mm_add_epi32(_mm_cvtps_epi32(whole), _mm_set1_epi32(127));
    return _mm_castsi128_ps(_mm_slli_epi32(_mm_max_epi32(biased, _mm_setzero_si128()), 23));
}

#endif

struct alignas(64) line {
    uint8_t bytes[64];
};

// Memory of a thread for as long as it lives; grows to what was asked for at most.
template <typename T> T * scratch(std::vector<line> & memory, size_t count) {
    const size_t lines = (count * sizeof(T) + sizeof(line) - 1) / sizeof(line);
    if (memory.size() < lines) {
        memory.resize(lines);
    }
    return reinterpret_cast<T *>(memory.data());
}

thread_local std::vector<line> panel_memory;
thread_local std::vector<line> column_memory;

#ifdef __AVX2__

inline ints load_ints(const void * p) {
#ifdef WITH_AVX512
    return _mm512_load_si512(p);
#else
    return _mm256_load_si256((const __m256i *)p);
#endif
}

#ifdef WITH_VNNI

// Adds up the products of four bytes that have no sign, and four that have one.

inline __m256i add_fours_of_8(__m256i sum, __m256i sizes, __m256i values) {
#ifdef WITH_AVX512
    return _mm256_dpbusd_epi32(sum, sizes, values);
#else
    return _mm256_dpbusd_avx_epi32(sum, sizes, values);
#endif
}

inline ints add_fours(ints sum, ints sizes, ints values) {
#ifdef WITH_AVX512
    return _mm512_dpbusd_epi32(sum, sizes, values);
#else
    return add_fours_of_8(sum, sizes, values);
#endif
}

#endif

// Adds up the products of two words of 16 bits.

inline __m256i add_pairs_of_8(__m256i sum, __m256i a, __m256i b) {
#if defined(WITH_AVX512)
    return _mm256_dpwssd_epi32(sum, a, b);
#elif defined(WITH_VNNI)
    return _mm256_dpwssd_avx_epi32(sum, a, b);
#else
    return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
#endif
}

inline ints add_pairs(ints sum, ints a, ints b) {
#ifdef WITH_AVX512
    return _mm512_dpwssd_epi32(sum, a, b);
#else
    return add_pairs_of_8(sum, a, b);
#endif
}

#endif

// Lets the threads, all of which come here, do jobs until there are none left.
template <typename work>
void share(const ggml_compute_params * params, int64_t jobs, const work & run) {
    if (params->ith == 0) {
        ggml_threadpool_chunk_set(params->threadpool, params->nth);
    }
    ggml_barrier(params->threadpool);
    for (int64_t job = params->ith; job < jobs;
         job = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        run(job);
    }
    ggml_barrier(params->threadpool);
}

// Calls `run` with a number of columns that the compiler knows.
template <int N, int LARGEST, typename work> void with_width(int64_t columns, const work & run) {
    if (columns == N) {
        run(std::integral_constant<int, N>());
    } else if constexpr (2 * N > LARGEST) {
        with_width<N - 1, LARGEST>(columns, run);
    }
}

// Calls `run` with the width and the first column of each tile. They are as much alike as they can
// be: a tile of one column takes nearly as long as one of several. There are enough columns for no
// tile to be less than half of the largest.
template <int LARGEST, typename work> void in_tiles(int64_t columns, const work & run) {
    int64_t first = 0;
    for (int64_t tiles = (columns + LARGEST - 1) / LARGEST; tiles > 0; tiles--) {
        const int64_t width = (columns - first + tiles - 1) / tiles;
        with_width<LARGEST, LARGEST>(width, [&](auto known) { run(known, first); });
        first += width;
    }
}

#ifdef __AVX2__

// Halves are added up until one number is left.
inline float sum_of(__m256 x) {
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

// Turns eight rows of eight 32-bit values into columns.
inline void transpose(__m256i (&x)[8]) {
    __m256i pairs[8], fours[8];
    for (int i = 0; i < 8; i += 2) {
        pairs[i] = _mm256_unpacklo_epi32(x[i], x[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_epi32(x[i], x[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        fours[i] = _mm256_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm256_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm256_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm256_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        x[i] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x20);
        x[i + 4] = _mm256_permute2x128_si256(fours[i], fours[i + 4], 0x31);
    }
}

#endif

} // namespace
