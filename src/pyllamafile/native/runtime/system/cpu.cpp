#include "system/cpu.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// Every level is a build of ggml's kernels for one instruction set. The best that the processor
// and the operating system have is chosen before anything else happens, so that nothing that
// they lack is ever executed. Upstream's own detection loads libraries, which a static program
// can't; __builtin_cpu_supports answers 0 to everything under zig 0.17.1.

#if defined(__x86_64__)

#include <cpuid.h>

namespace {

// Registers of CPUID and what to look for in them (Intel SDM volume 2A, CPUID).
struct bits {
    unsigned leaf;
    unsigned subleaf;
    unsigned ebx;
    unsigned ecx;
    unsigned edx;
    unsigned eax;
};

constexpr unsigned bit(int number) {
    return 1u << number;
}

const bits V2 = {
    1, 0, 0, bit(9) | bit(19) | bit(20) | bit(23), 0, 0
}; // SSSE3 SSE4.1 SSE4.2 POPCNT
const bits V3_1 = { 1, 0, 0, bit(12) | bit(27) | bit(28) | bit(29), 0, 0 }; // FMA OSXSAVE AVX F16C
const bits V3_7 = { 7, 0, bit(5) | bit(8), 0, 0, 0 };                       // AVX2 BMI2
// AVX512 F DQ CD BW VL; VNNI
const bits AVX512 = { 7, 0, bit(16) | bit(17) | bit(28) | bit(30) | bit(31), bit(11), 0, 0 };
const bits VNNI = { 7, 1, 0, 0, 0, bit(4) }; // AVX-VNNI, which is AVX2's
const bits BF16 = { 7, 1, 0, 0, 0, bit(5) };

bool has(const bits & wanted) {
    unsigned a = 0, b = 0, c = 0, d = 0;
    return __get_cpuid_count(wanted.leaf, wanted.subleaf, &a, &b, &c, &d) &&
           (a & wanted.eax) == wanted.eax && (b & wanted.ebx) == wanted.ebx &&
           (c & wanted.ecx) == wanted.ecx && (d & wanted.edx) == wanted.edx;
}

// Which registers the operating system saves (Intel SDM volume 1, 13.3); asked only when OSXSAVE
// is there.
bool saves(unsigned wanted) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & wanted) == wanted;
}

const unsigned YMM = bit(1) | bit(2);
const unsigned ZMM = YMM | bit(5) | bit(6) | bit(7);

bool has_v2() {
    return has(V2);
}

bool has_v3() {
    return has_v2() && has(V3_1) && saves(YMM) && has(V3_7);
}

// These are not for Macs.
[[maybe_unused]] bool has_avxvnni() {
    return has_v3() && has(VNNI);
}

[[maybe_unused]] bool has_avx512() {
    return has_v3() && saves(ZMM) && has(AVX512);
}

[[maybe_unused]] bool has_avx512bf16() {
    return has_avx512() && has(BF16);
}

const char NEEDED[] = "SSE4.2 is needed (Intel since 2008, AMD since 2011)";

} // namespace

#elif defined(__aarch64__)

// No instruction asks an arm64 processor what it can do; every system has its own answer. In
// each of the four ways, has_features() is FEAT_DotProd and FEAT_FP16, has_matrices() FEAT_I8MM.

#if defined(__APPLE__)

#include <sys/sysctl.h>

namespace {

// developer.apple.com, "Determining Instruction Set Characteristics"
bool has(const char * feature) {
    int value = 0;
    size_t size = sizeof(value);
    return sysctlbyname(feature, &value, &size, nullptr, 0) == 0 && value != 0;
}

bool has_features() {
    return has("hw.optional.arm.FEAT_DotProd") && has("hw.optional.arm.FEAT_FP16");
}

bool has_matrices() {
    return has("hw.optional.arm.FEAT_I8MM");
}

} // namespace

#elif defined(_WIN32)

#include <windows.h>

namespace {

// Windows before 11 24H2 does not know the last two, and so gets the kernels that run anywhere.
bool has_features() {
    return IsProcessorFeaturePresent(PF_ARM_V82_DP_INSTRUCTIONS_AVAILABLE) &&
           IsProcessorFeaturePresent(PF_ARM_V82_FP16_INSTRUCTIONS_AVAILABLE);
}

bool has_matrices() {
    return IsProcessorFeaturePresent(PF_ARM_V82_I8MM_INSTRUCTIONS_AVAILABLE);
}

} // namespace

#elif defined(__NetBSD__)

#include <aarch64/armreg.h>
#include <sys/sysctl.h>

namespace {

// Whether a field of four bits in an ID register (Arm Architecture Reference Manual, D19) is at
// least 1 on every processor; 15 in PFR0 says that there is no such thing.
bool everywhere(uint64_t aarch64_sysctl_cpu_id::*reg, int shift) {
    bool found = false;
    for (int cpu = 0;; cpu++) {
        char name[40];
        aarch64_sysctl_cpu_id id = {};
        size_t size = sizeof(id);
        snprintf(name, sizeof(name), "machdep.cpu%d.cpu_id", cpu);
        if (sysctlbyname(name, &id, &size, nullptr, 0) != 0) {
            return found;
        }
        const unsigned field = (id.*reg >> shift) & 15;
        if (field == 0 || field == 15) {
            return false;
        }
        found = true;
    }
}

bool has_features() {
    using id = aarch64_sysctl_cpu_id;
    return everywhere(&id::ac_aa64isar0, 44) && everywhere(&id::ac_aa64pfr0, 16) &&
           everywhere(&id::ac_aa64pfr0, 20);
}

bool has_matrices() {
    return everywhere(&aarch64_sysctl_cpu_id::ac_aa64isar1, 52);
}

} // namespace

#else // Linux, FreeBSD, OpenBSD

#include <sys/auxv.h>

namespace {

// Bits of the auxiliary vector (linux/arch/arm64/include/uapi/asm/hwcap.h; the BSDs took them
// over): what the kernel offers is what both the processor and the kernel have.
const unsigned long FPHP = 1ul << 9, ASIMDHP = 1ul << 10, ASIMDDP = 1ul << 20; // AT_HWCAP
const unsigned long I8MM = 1ul << 13;                                          // AT_HWCAP2

bool has_all(int type, unsigned long wanted) {
#ifdef __linux__
    const unsigned long value = getauxval(type);
#else
    unsigned long value = 0;
    elf_aux_info(type, &value, sizeof(value));
#endif
    return (value & wanted) == wanted;
}

bool has_features() {
    return has_all(AT_HWCAP, FPHP | ASIMDHP | ASIMDDP);
}

bool has_matrices() {
    return has_all(AT_HWCAP2, I8MM);
}

} // namespace

#endif

namespace {

#ifndef __APPLE__
bool has_v8() {
    return true; // every arm64 has it
}
#endif

bool has_dotprod() {
    return has_features();
}

bool has_i8mm() {
    return has_features() && has_matrices();
}

const char NEEDED[] = "ARMv8 is needed";

} // namespace

#endif

#include "levels.h"

namespace {

const level * chosen = nullptr;

// PYLLAMAFILE_CPU=v3 asks for a lower level, for tests and bug reports.
const level * asked_for(const char * name) {
    for (const level & candidate : LEVELS) {
        if (strcmp(candidate.name, name) == 0 && candidate.is_here()) {
            return &candidate;
        }
    }
    fprintf(stderr,
            "error: PYLLAMAFILE_CPU=%s is not a level that this processor has; it has:", name);
    for (const level & candidate : LEVELS) {
        if (candidate.is_here()) {
            fprintf(stderr, " %s", candidate.name);
        }
    }
    fputs("\n", stderr);
    _Exit(1);
}

// 101 is the first priority that a program may use: static initialisers come after it.
__attribute__((constructor(101))) void choose_level() {
    for (const level & candidate : LEVELS) {
        if (candidate.is_here()) {
            chosen = &candidate;
        }
    }
    if (chosen == nullptr) {
        fprintf(stderr, "error: this processor is too old: %s\n", NEEDED);
        _Exit(1);
    }
    const char * name = getenv("PYLLAMAFILE_CPU");
    if (name != nullptr && name[0] != '\0') {
        chosen = asked_for(name);
    }
}

} // namespace

const char * cpu_level() {
    return chosen->name;
}

std::vector<level> cpu_levels() {
    std::vector<level> out;
    for (const level & candidate : LEVELS) {
        if (candidate.is_here()) {
            out.push_back(candidate);
        }
    }
    return out;
}

// What ggml's registry calls in place of ggml_backend_cpu_reg (CMakeLists.txt renames it there).
extern "C" ggml_backend_reg_t chosen_cpu_reg() {
    return chosen->kernels();
}
