// Included before ggml-cpu.c, whose threads wait for each other by spinning. Where somebody else
// wants the processors, whoever spins keeps away the thread that is waited for. Yielding is no way
// out: on Linux 6.18, whoever yields waits for others to have their whole share, and answers were
// thirty times slower beside two busy programs. So a thread that has waited for a while sleeps, and
// the last one of them wakes it.
#pragma once

#include "ggml.h"

#include <stdatomic.h>
#include <stdbool.h>

#ifdef _WIN32
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>
static SRWLOCK relax_mutex = SRWLOCK_INIT;
static CONDITION_VARIABLE relax_woken = CONDITION_VARIABLE_INIT;
static inline void relax_lock(void) {
    AcquireSRWLockExclusive(&relax_mutex);
}
static inline void relax_unlock(void) {
    ReleaseSRWLockExclusive(&relax_mutex);
}
static inline void relax_sleep(void) {
    SleepConditionVariableSRW(&relax_woken, &relax_mutex, INFINITE, 0);
}
static inline void relax_wake(void) {
    WakeAllConditionVariable(&relax_woken);
}
#else
#include <pthread.h>
static pthread_mutex_t relax_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t relax_woken = PTHREAD_COND_INITIALIZER;
static inline void relax_lock(void) {
    pthread_mutex_lock(&relax_mutex);
}
static inline void relax_unlock(void) {
    pthread_mutex_unlock(&relax_mutex);
}
static inline void relax_sleep(void) {
    pthread_cond_wait(&relax_woken, &relax_mutex);
}
static inline void relax_wake(void) {
    pthread_cond_broadcast(&relax_woken);
}
#endif

enum {
    RELAX_BARRIER = 50, // microseconds: threads are mostly less apart
    RELAX_LEAST = 3,    // microseconds: what it takes to be woken
    RELAX_WORK = 2000,  // microseconds: what is done between two tokens
    RELAX_PAUSES = 64,  // between two looks at the clock
};

static atomic_int relax_sleeping;

// Whether a thread that has paused `pauses` times has waited for `limit` microseconds. `began` is 0
// at first: most waits end before anybody looks at the clock.
static inline bool relax_is_over(uint64_t pauses, int64_t * began, int64_t limit) {
    if (pauses % RELAX_PAUSES != 0) {
        return false;
    }
    const int64_t now = ggml_time_us();
    if (*began == 0) {
        *began = now;
    }
    return now - *began >= limit;
}

// How long to spin at a barrier the next time. Who has waited longer than threads are apart spins
// half as long: the other one may wait for this very processor. Who slept for a moment only would
// have done better to spin on, and else would never do so again on a machine with many processors.
static inline int64_t relax_patience(int64_t patience, bool slept, int64_t waited) {
    const int64_t next = !slept                   ? patience * 2
                         : waited < RELAX_BARRIER ? patience + 1
                                                  : patience / 2;
    return next < RELAX_LEAST ? RELAX_LEAST : next > RELAX_BARRIER ? RELAX_BARRIER : next;
}

// Waits until `count` isn't `was`. `pause` is upstream's way to spin, one turn of it.
static inline void relax_while(atomic_int * count, int was, void (*pause)(void)) {
    static __thread int64_t patience = RELAX_BARRIER;
    int64_t began = 0;
    bool slept = false;
    for (uint64_t i = 1; atomic_load_explicit(count, memory_order_relaxed) == was; i++) {
        pause();
        if (relax_is_over(i, &began, patience)) {
            relax_lock();
            atomic_fetch_add(&relax_sleeping, 1);
            while (atomic_load(count) == was) {
                relax_sleep();
            }
            atomic_fetch_sub(&relax_sleeping, 1);
            relax_unlock();
            slept = true;
        }
    }
    patience = relax_patience(patience, slept, slept ? ggml_time_us() - began : 0);
}

// After a count has changed. The counter of sleepers and the count are changed and read in one
// order by all threads, so that either the sleeper sees the count or we see the sleeper.
static inline void relax_wake_sleepers(void) {
    if (atomic_load(&relax_sleeping) > 0) {
        relax_lock(); // a sleeper that has read the count sleeps, or it reads it after this
        relax_unlock();
        relax_wake();
    }
}
