// How many products of two numbers, summed up, this machine makes in a second, by the best
// instruction that the compiler was told of: limits THREADS. Prints its name and the number.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

enum { CHAINS = 10, ROUNDS = 40 * 1000 * 1000 };

// STEP adds PRODUCTS products to `sum`. What comes in must not be known to the compiler, or it
// would compute once what is to be computed again and again.
#if defined(__AVX512VNNI__)
#define NAME "vpdpbusd, 512 bits"
#define HIDE(a) __asm__ volatile("" : "+v"(a))
typedef __m512i lanes;
enum { PRODUCTS = 64 };
#define STEP(sum, a, b) sum = _mm512_dpbusd_epi32(sum, a, b)
#elif defined(__AVXVNNI__)
#define NAME "vpdpbusd, 256 bits"
#define HIDE(a) __asm__ volatile("" : "+x"(a))
typedef __m256i lanes;
enum { PRODUCTS = 32 };
#define STEP(sum, a, b) sum = _mm256_dpbusd_avx_epi32(sum, a, b)
#elif defined(__AVX512BW__)
#define NAME "vpmaddubsw, vpmaddwd and vpaddd, 512 bits"
#define HIDE(a) __asm__ volatile("" : "+v"(a))
typedef __m512i lanes;
enum { PRODUCTS = 64 };
#define STEP(sum, a, b)                                                                            \
    sum = _mm512_add_epi32(sum, _mm512_madd_epi16(_mm512_maddubs_epi16(a, b), _mm512_set1_epi16(1)))
#elif defined(__AVX2__)
#define NAME "vpmaddubsw, vpmaddwd and vpaddd, 256 bits"
#define HIDE(a) __asm__ volatile("" : "+x"(a))
typedef __m256i lanes;
enum { PRODUCTS = 32 };
#define STEP(sum, a, b)                                                                            \
    sum = _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)))
#elif defined(__x86_64__)
#define NAME "pmaddubsw, pmaddwd and paddd, 128 bits"
#define HIDE(a) __asm__ volatile("" : "+x"(a))
typedef __m128i lanes;
enum { PRODUCTS = 16 };
#define STEP(sum, a, b)                                                                            \
    sum = _mm_add_epi32(sum, _mm_madd_epi16(_mm_maddubs_epi16(a, b), _mm_set1_epi16(1)))
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#define NAME "smmla"
#define HIDE(a) __asm__ volatile("" : "+w"(a))
typedef int8x16_t lanes;
enum { PRODUCTS = 32 };
#define STEP(sum, a, b) sum = vreinterpretq_s8_s32(vmmlaq_s32(vreinterpretq_s32_s8(sum), a, b))
#elif defined(__ARM_FEATURE_DOTPROD)
#define NAME "sdot"
#define HIDE(a) __asm__ volatile("" : "+w"(a))
typedef int8x16_t lanes;
enum { PRODUCTS = 16 };
#define STEP(sum, a, b) sum = vreinterpretq_s8_s32(vdotq_s32(vreinterpretq_s32_s8(sum), a, b))
#else
#define NAME "fmla"
#define HIDE(a) __asm__ volatile("" : "+w"(a))
typedef float32x4_t lanes;
enum { PRODUCTS = 4 };
#define STEP(sum, a, b) sum = vfmaq_f32(sum, a, b)
#endif

static void * work(void * nothing) {
    lanes sums[CHAINS] = { 0 }, a = { 0 }, b = { 0 };
    HIDE(a);
    HIDE(b);
    for (int round = 0; round < ROUNDS; round++) {
#pragma clang loop unroll(full)
        for (int chain = 0; chain < CHAINS; chain++) {
            HIDE(a);
            STEP(sums[chain], a, b);
            HIDE(sums[chain]);
        }
    }
    return nothing;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec / 1e9;
}

int main(int argc, char ** argv) {
    const int threads = argc > 1 ? atoi(argv[1]) : 1;
    pthread_t others[1024];
    if (threads < 1 || threads > 1024) {
        return 2;
    }
    double best = 0;
    for (int turn = 0; turn < 3; turn++) {
        const double begun = now();
        for (int i = 1; i < threads; i++) {
            pthread_create(&others[i], NULL, work, NULL);
        }
        work(NULL);
        for (int i = 1; i < threads; i++) {
            pthread_join(others[i], NULL);
        }
        const double rate = (double)PRODUCTS * CHAINS * ROUNDS * threads / (now() - begun);
        best = rate > best ? rate : best;
    }
    printf("%s\n%.0f\n", NAME, best);
    return 0;
}
