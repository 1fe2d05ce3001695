// What Metal's kernels compute, in C++; and what our Metal counts.
#pragma once

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { CONSTANTS = 2048, BUFFERS = 32 };

// One dispatch of a kernel.
struct call {
    const char * name;
    int constants[CONSTANTS]; // the function's, by index
    const void * arguments;   // what is at index 0
    size_t size;              // of that
    char * buffers[BUFFERS];  // what is at the others
    unsigned long groups[3];
};

// Computes it, or ends the program if there is no such kernel.
void kernel_run(const struct call * call);

// Prints which were computed.
void kernel_report(void);

struct counts {
    long objects;         // of Metal, that nobody has released
    long residency_sets;  // that were made
    long allocations;     // that were in one when it was committed, all together
    long requests;        // of residency
    long ends;            // of residency
    long command_buffers; // that were completed
};
extern struct counts counts;

#ifdef __cplusplus
}
#endif
