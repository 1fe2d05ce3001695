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
#elif defined(__linux__)
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <pthread.h>
#endif

// A thread sleeps, but not if `count` is no longer `was`, until somebody has changed that and wakes
// all who do. Where the system knows addresses, they wake at once, and else one behind the other.
#if defined(_WIN32)
static inline void relax_sleep(atomic_int * count, int was) {
    WaitOnAddress(count, &was, sizeof(was), INFINITE);
}
static inline void relax_wake(atomic_int * count) {
    WakeByAddressAll(count);
}
#elif defined(__linux__)
static inline void relax_sleep(atomic_int * count, int was) {
    syscall(SYS_futex, count, FUTEX_WAIT_PRIVATE, was, NULL);
}
static inline void relax_wake(atomic_int * count) {
    syscall(SYS_futex, count, FUTEX_WAKE_PRIVATE, INT_MAX);
}
#else
static pthread_mutex_t relax_mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t relax_woken = PTHREAD_COND_INITIALIZER;
static inline void relax_sleep(atomic_int * count, int was) {
    pthread_mutex_lock(&relax_mutex);
    if (atomic_load(count) == was) {
        pthread_cond_wait(&relax_woken, &relax_mutex);
    }
    pthread_mutex_unlock(&relax_mutex);
}
static inline void relax_wake(atomic_int * count) {
    (void)count;
    pthread_mutex_lock(&relax_mutex); // who has read the count sleeps, or reads it after this
    pthread_mutex_unlock(&relax_mutex);
    pthread_cond_broadcast(&relax_woken);
}
#endif

enum {
    // Microseconds.
    RELAX_BARRIER = 50, // threads are mostly less apart
    RELAX_LEAST = 3,    // what it takes to be woken
    RELAX_APART = 10,   // those that are woken together, one from the other
    RELAX_WORK = 2000,  // what is done between two tokens

    RELAX_PAUSES = 64, // between two looks at the clock
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

// How long one of so many threads spins at a barrier the next time. Who has waited longer than they
// are apart spins half as long: the other one may wait for this very processor. Who slept for a
// moment only would have done better to spin on. And whoever is woken first, of many, spins until
// the last of them comes, or all of them would sleep at every barrier from then on.
static inline int64_t relax_patience(int64_t patience, bool slept, int64_t waited, int threads) {
    const int64_t woken = RELAX_APART * (int64_t)(threads - 2);
    const int64_t least = woken > RELAX_LEAST ? woken : RELAX_LEAST;
    const int64_t most = woken > RELAX_BARRIER ? woken : RELAX_BARRIER;
    const int64_t next = !slept ? patience * 2 : waited < most ? patience + 1 : patience / 2;
    return next < least ? least : next > most ? most : next;
}

// Waits until `count` isn't `was`. `pause` is upstream's way to spin, one turn of it.
static inline void relax_while(atomic_int * count, int was, int threads, void (*pause)(void)) {
    static __thread int64_t patience = RELAX_BARRIER;
    int64_t began = 0;
    bool slept = false;
    for (uint64_t i = 1; atomic_load_explicit(count, memory_order_relaxed) == was; i++) {
        pause();
        if (relax_is_over(i, &began, patience)) {
            atomic_fetch_add(&relax_sleeping, 1);
            while (atomic_load(count) == was) {
                relax_sleep(count, was);
            }
            atomic_fetch_sub(&relax_sleeping, 1);
            slept = true;
        }
    }
    patience = relax_patience(patience, slept, slept ? ggml_time_us() - began : 0, threads);
}

// After a count has changed. The counter of sleepers and the count are changed and read in one
// order by all threads, so that either the sleeper sees the count or we see the sleeper.
static inline void relax_wake_sleepers(atomic_int * count) {
    if (atomic_load(&relax_sleeping) > 0) {
        relax_wake(count);
    }
}
