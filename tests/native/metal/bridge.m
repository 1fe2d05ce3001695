// Objective-C as a compiler for macOS makes it, on GCC's runtime and GNUstep's Foundation; and
// Apple's dispatch with threads.
#import <Block.h>
#import <Foundation/Foundation.h>
#import <objc/message.h>
#import <objc/runtime.h>

#include <pthread.h>
#include <semaphore.h>
#include <stdbool.h>

extern void *__start_objc_selrefs[], *__stop_objc_selrefs[];
static bool sent[256];

// The functions that such a compiler calls.

IMP bridge_lookup(id receiver, SEL selector) {
    for (size_t i = 0; &__start_objc_selrefs[i] < __stop_objc_selrefs; i++) {
        if (__start_objc_selrefs[i] == selector) {
            sent[i] = true;
        }
    }
    return objc_msg_lookup(receiver, selector);
}

// Says which of the messages in upstream's code were sent. Both sources may have the same.
void bridge_report(void) {
    for (size_t i = 0; &__start_objc_selrefs[i] < __stop_objc_selrefs; i++) {
        printf("%s %s\n", sent[i] ? "sent" : "unsent", sel_getName(__start_objc_selrefs[i]));
    }
}

id objc_alloc(Class class) {
    return [class alloc];
}

id objc_alloc_init(Class class) {
    return [[class alloc] init];
}

id objc_retain(id object) {
    return [object retain];
}

void objc_release(id object) {
    [object release];
}

void * objc_autoreleasePoolPush(void) {
    return [[NSAutoreleasePool alloc] init];
}

void objc_autoreleasePoolPop(void * pool) {
    [(NSAutoreleasePool *)pool drain];
}

int __objc_personality_v0(void) {
    abort(); // nobody throws
}

// A text in the program has these fields there.
@interface BridgeString : NSString {
    int flags;
    const char * text;
    long length;
}
@end

@implementation BridgeString
- (NSUInteger)length {
    return length;
}
- (unichar)characterAtIndex:(NSUInteger)index {
    return (unsigned char)text[index];
}
- (const char *)UTF8String {
    return text;
}
- (id)retain {
    return self;
}
- (oneway void)release {
}
- (id)autorelease {
    return self;
}
- (id)copyWithZone:(NSZone *)zone {
    return self;
}
@end

struct text {
    Class class;
    int flags;
    const char * text;
    long length;
};

extern void *__start_objc_classrefs[], *__stop_objc_classrefs[];
extern struct text __start_cfstring[], __stop_cfstring[];

// Does what Apple's runtime does when a program is loaded: names become selectors and classes.
void bridge_start(void) {
    [NSAutoreleasePool new]; // Apple's runtime has one for every thread
    if (__stop_objc_selrefs - __start_objc_selrefs > (ptrdiff_t)sizeof sent) {
        abort();
    }
    for (void ** each = __start_objc_selrefs; each < __stop_objc_selrefs; each++) {
        *each = (void *)sel_registerName(*each);
    }
    for (void ** each = __start_objc_classrefs; each < __stop_objc_classrefs; each++) {
        Class class = (Class)objc_getClass(*each);
        if (!class) {
            fprintf(stderr, "no class %s\n", (const char *)*each);
            exit(1);
        }
        *each = class;
    }
    for (struct text * each = __start_cfstring; each < __stop_cfstring; each++) {
        each->class = [BridgeString class];
    }
}

// dispatch

struct queue {
    int nothing;
};

struct group {
    pthread_t threads[64];
    size_t count;
};

struct queue * dispatch_queue_create(const char * label, void * attributes) {
    return calloc(1, sizeof(struct queue));
}

struct queue * dispatch_get_global_queue(intptr_t identifier, uintptr_t flags) {
    static struct queue global;
    return &global;
}

void dispatch_apply(size_t iterations, struct queue * queue, void (^block)(size_t)) {
    // The last first: whoever calls this must not rely on an order.
    while (iterations) {
        block(--iterations);
    }
}

struct group * dispatch_group_create(void) {
    return calloc(1, sizeof(struct group));
}

static void * run(void * block) {
    GSRegisterCurrentThread();
    NSAutoreleasePool * pool = [NSAutoreleasePool new];
    ((void (^)(void))block)();
    [pool drain];
    Block_release(block);
    GSUnregisterCurrentThread();
    return NULL;
}

void dispatch_group_async(struct group * group, struct queue * queue, void (^block)(void)) {
    if (group->count == 64 ||
        pthread_create(&group->threads[group->count++], NULL, run, Block_copy(block))) {
        abort();
    }
}

intptr_t dispatch_group_wait(struct group * group, uint64_t timeout) {
    while (group->count) {
        pthread_join(group->threads[--group->count], NULL);
    }
    return 0;
}

sem_t * dispatch_semaphore_create(intptr_t value) {
    sem_t * semaphore = malloc(sizeof *semaphore);
    sem_init(semaphore, 0, value);
    return semaphore;
}

intptr_t dispatch_semaphore_signal(sem_t * semaphore) {
    return sem_post(semaphore);
}

intptr_t dispatch_semaphore_wait(sem_t * semaphore, uint64_t timeout) {
    return sem_wait(semaphore);
}

void dispatch_release(void * object) {
    free(object);
}
