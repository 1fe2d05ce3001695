// What llama.cpp's Metal sources take of Apple's dispatch; bridge.m has it with threads.
#pragma once

#include <stddef.h>
#include <stdint.h>

typedef struct queue * dispatch_queue_t;
typedef struct group * dispatch_group_t;
typedef struct semaphore * dispatch_semaphore_t;
typedef void (^dispatch_block_t)(void);

#define DISPATCH_TIME_FOREVER (~0ull)
#define DISPATCH_QUEUE_CONCURRENT ((void *)1)
enum { QOS_CLASS_USER_INITIATED = 0x19, QOS_CLASS_DEFAULT = 0x15 };

dispatch_queue_t dispatch_queue_create(const char * label, void * attributes);
dispatch_queue_t dispatch_get_global_queue(intptr_t identifier, uintptr_t flags);
void dispatch_apply(size_t iterations, dispatch_queue_t queue, void (^block)(size_t));
dispatch_group_t dispatch_group_create(void);
void dispatch_group_async(dispatch_group_t group, dispatch_queue_t queue, dispatch_block_t block);
intptr_t dispatch_group_wait(dispatch_group_t group, uint64_t timeout);
dispatch_semaphore_t dispatch_semaphore_create(intptr_t value);
intptr_t dispatch_semaphore_signal(dispatch_semaphore_t semaphore);
intptr_t dispatch_semaphore_wait(dispatch_semaphore_t semaphore, uint64_t timeout);
void dispatch_release(void * object);
