// Pages of memory, as ggml's Metal device takes them from Mach.
#pragma once

#include <stdlib.h>

typedef int kern_return_t;
typedef int vm_map_t;
typedef unsigned long vm_address_t;

#define KERN_SUCCESS 0
#define VM_FLAGS_ANYWHERE 1
#define mach_task_self() 0

static inline kern_return_t vm_allocate(vm_map_t task, vm_address_t * at, size_t size, int flags) {
    (void)task, (void)flags;
    return posix_memalign((void **)at, 4096, size);
}

static inline kern_return_t vm_deallocate(vm_map_t task, vm_address_t at, size_t size) {
    (void)task, (void)size;
    free((void *)at);
    return KERN_SUCCESS;
}
