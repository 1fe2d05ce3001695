// Included before ggml-cpu.c, whose threads wait for each other by spinning. Where somebody else
// wants the processors, whoever spins keeps away the thread that is waited for, and generation
// becomes twenty times slower. So a thread that has waited for a while lets others go first.
#pragma once

#ifdef _WIN32
__declspec(dllimport) int __stdcall SwitchToThread(void);
#else
#include <sched.h>
#endif

static inline void upstreams_relax(void);

static inline void patient_relax(void) {
    enum { PAUSES = 128 }; // microseconds: more than two threads are mostly apart
    static __thread unsigned pauses;
    upstreams_relax();
    if (++pauses % PAUSES == 0) {
#ifdef _WIN32
        SwitchToThread();
#else
        sched_yield();
#endif
    }
}

// The definition says `ggml_thread_cpu_relax(void)`, a call `ggml_thread_cpu_relax()`.
#define ggml_thread_cpu_relax(nothing) RELAX_##nothing
#define RELAX_void upstreams_relax(void)
#define RELAX_ patient_relax()
