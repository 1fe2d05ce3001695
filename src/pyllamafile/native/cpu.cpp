// Refuses a processor that lacks the kernels' instructions, before any of them runs.

#if defined(__x86_64__)

#include <cpuid.h>
#include <cstdint>
#include <cstdio>
#include <cstdlib>

// Bits of CPUID and XCR0 (Intel SDM volume 2A, CPUID; volume 1, 13.3).
static const uint32_t LEAF1_ECX_FMA = 1u << 12, LEAF1_ECX_SSE42 = 1u << 20,
                      LEAF1_ECX_OSXSAVE = 1u << 27, LEAF1_ECX_AVX = 1u << 28,
                      LEAF1_ECX_F16C = 1u << 29;
static const uint32_t LEAF7_EBX_AVX2 = 1u << 5, LEAF7_EBX_BMI2 = 1u << 8;
static const uint32_t XCR0_SSE_AND_AVX = 6;

static uint32_t xcr0() {
    uint32_t low;
    uint32_t high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

static bool has_v3() {
    const uint32_t leaf1 =
        LEAF1_ECX_FMA | LEAF1_ECX_SSE42 | LEAF1_ECX_OSXSAVE | LEAF1_ECX_AVX | LEAF1_ECX_F16C;
    const uint32_t leaf7 = LEAF7_EBX_AVX2 | LEAF7_EBX_BMI2;
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & leaf1) != leaf1) {
        return false;
    }
    if ((xcr0() & XCR0_SSE_AND_AVX) != XCR0_SSE_AND_AVX) {
        return false; // the processor has AVX, the operating system doesn't save its registers
    }
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & leaf7) == leaf7;
}

// Static initialisers of the kernels use their instructions too, so this runs before those:
// 101 is the first priority that a program may use.
__attribute__((constructor(101))) static void check_cpu() {
    if (!has_v3()) {
        fputs("error: this processor is too old: AVX2, FMA, F16C and BMI2 are needed (Intel since "
              "2013, AMD since 2015)\n",
              stderr);
        _Exit(1);
    }
}

#endif
