// Included before ggml-cpu.c, whose threads wait for each other by spinning. Where somebody else
// wants the processors, whoever spins keeps away the thread that is waited for, and generation
// becomes twenty times slower. So a thread that has waited for a while lets others go first.
#pragma once

#ifdef _WIN32
__declspec(dllimport) int __stdcall SwitchToThread(void);
#else
#include <sched.h>
#endif

// `pause` is upstream's way to spin, one turn of it.
static inline void relax_patiently(void (*pause)(void)) {
    enum { PAUSES = 128 }; // microseconds: more than two threads are mostly apart
    static __thread unsigned pauses;
    pause();
    if (++pauses % PAUSES == 0) {
#ifdef _WIN32
        SwitchToThread();
#else
        sched_yield();
#endif
    }
}
