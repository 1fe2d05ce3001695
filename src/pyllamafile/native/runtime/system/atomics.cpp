// What clang calls for atomics on an arm64 processor that may lack LSE (Armv8.0, a Raspberry Pi 4):
// AAPCS64 has no such functions, libgcc made them up ("outline atomics"), and compiler-rt has them,
// too. For OpenBSD they are here, since zig's compiler-rt lacks the marks of its jump protection
// (CMakeLists.txt). Written in C they would call themselves. A pair of load-acquire and
// store-release serves every order: a stronger one than asked for is never wrong.

#include <stdint.h>

#define FETCH(name, bytes, type, width, suffix, compute)                                           \
    extern "C" type __aarch64_##name##bytes##_acq_rel(type operand, type * place) {                \
        uint64_t before, after;                                                                    \
        uint32_t failed;                                                                           \
        __asm__ volatile("1: ldaxr" suffix " %" width "0, [%4]\n"                                  \
                         "   " compute "\n"                                                        \
                         "   stlxr" suffix " %w2, %" width "1, [%4]\n"                             \
                         "   cbnz %w2, 1b"                                                         \
                         : "=&r"(before), "=&r"(after), "=&r"(failed)                              \
                         : "r"((uint64_t)operand), "r"(place)                                      \
                         : "memory");                                                              \
        return (type)before;                                                                       \
    }                                                                                              \
    ORDERS(name, bytes, (type, type *), type)

#define COMPARE(bytes, type, width, suffix)                                                        \
    extern "C" type __aarch64_cas##bytes##_acq_rel(type expected, type desired, type * place) {    \
        uint64_t before;                                                                           \
        uint32_t failed;                                                                           \
        __asm__ volatile("1: ldaxr" suffix " %" width "0, [%4]\n"                                  \
                         "   cmp %" width "0, %" width "2\n"                                       \
                         "   b.ne 2f\n"                                                            \
                         "   stlxr" suffix " %w1, %" width "3, [%4]\n"                             \
                         "   cbnz %w1, 1b\n"                                                       \
                         "2:"                                                                      \
                         : "=&r"(before), "=&r"(failed)                                            \
                         : "r"((uint64_t)expected), "r"((uint64_t)desired), "r"(place)             \
                         : "memory", "cc");                                                        \
        return (type)before;                                                                       \
    }                                                                                              \
    ORDERS(cas, bytes, (type, type, type *), type)

#define ORDERS(name, bytes, parameters, type)                                                      \
    ORDER(name, bytes, relax, parameters, type)                                                    \
    ORDER(name, bytes, acq, parameters, type)                                                      \
    ORDER(name, bytes, rel, parameters, type)

#define ORDER(name, bytes, order, parameters, type)                                                \
    extern "C" type __aarch64_##name##bytes##_##order parameters                                   \
        __attribute__((alias("__aarch64_" #name #bytes "_acq_rel")));

// ldclr clears the bits of its operand (Arm ARM, C6.2, LDCLR).
#define SIZE(bytes, type, width, suffix)                                                           \
    COMPARE(bytes, type, width, suffix)                                                            \
    FETCH(swp, bytes, type, width, suffix, "mov %1, %3")                                           \
    FETCH(ldadd, bytes, type, width, suffix, "add %1, %0, %3")                                     \
    FETCH(ldclr, bytes, type, width, suffix, "bic %1, %0, %3")                                     \
    FETCH(ldeor, bytes, type, width, suffix, "eor %1, %0, %3")                                     \
    FETCH(ldset, bytes, type, width, suffix, "orr %1, %0, %3")

SIZE(1, uint8_t, "w", "b")
SIZE(2, uint16_t, "w", "h")
SIZE(4, uint32_t, "w", "")
SIZE(8, uint64_t, "", "")
