// A Metal over the processor, as far as llama.cpp asks for one. It knows nothing of our Metal.h:
// selectors, numbers and sizes are written down here again, as Metal's documentation has them, and
// whatever comes otherwise ends the program.
#import <Block.h>
#import <Foundation/Foundation.h>

#include "kernels.h"

#include <pthread.h>
#include <unistd.h>

#define ASSERT(condition)                                                                          \
    ((condition) ? (void)0                                                                         \
                 : (fprintf(stderr, "our Metal, line %d: %s\n", __LINE__, #condition), _exit(1)))

struct counts counts;

// Whether this is what is to go wrong.
static BOOL fails(const char * what) {
    const char * said = getenv("METAL_FAILS");
    return said && strcmp(said, what) == 0;
}

static NSError * error(NSString * text) {
    NSDictionary * said = [NSDictionary dictionaryWithObject:text forKey:NSLocalizedDescriptionKey];
    return [NSError errorWithDomain:@"Metal" code:8 userInfo:said];
}

typedef struct {
    NSUInteger width, height, depth;
} Size;

typedef void (^Work)(void);

// Whoever does not release one is found.
@interface Counted : NSObject
@end

@implementation Counted
- (id)init {
    __atomic_add_fetch(&counts.objects, 1, __ATOMIC_RELAXED);
    return [super init];
}
- (void)dealloc {
    __atomic_sub_fetch(&counts.objects, 1, __ATOMIC_RELAXED);
    [super dealloc];
}
@end

// Memory

@interface CPUBuffer : Counted {
  @public
    char * bytes;
    NSUInteger size;
    BOOL isOwn;
}
@end

@implementation CPUBuffer
- (void)dealloc {
    if (isOwn) {
        free(bytes);
    }
    [super dealloc];
}
@end

@interface MTLResidencySetDescriptor : Counted {
  @public
    NSString * label;
    NSUInteger capacity;
}
@end

@implementation MTLResidencySetDescriptor
- (void)setLabel:(NSString *)text {
    ASSERT(!label);
    label = [text copy];
}
- (void)setInitialCapacity:(NSUInteger)number {
    capacity = number;
}
- (void)dealloc {
    [label release];
    [super dealloc];
}
@end

@interface CPUResidencySet : Counted {
    NSMutableArray * pending;
    NSUInteger committed;
    BOOL isRequested;
}
@end

@implementation CPUResidencySet
- (id)init {
    pending = [NSMutableArray new];
    counts.residency_sets++;
    return [super init];
}
- (void)dealloc {
    ASSERT(committed == 0 && !isRequested);
    [pending release];
    [super dealloc];
}
- (void)addAllocation:(CPUBuffer *)buffer {
    ASSERT([buffer isKindOfClass:[CPUBuffer class]]);
    [pending addObject:buffer];
}
- (void)removeAllAllocations {
    [pending removeAllObjects];
}
- (void)commit {
    committed = [pending count];
    counts.allocations += committed;
}
- (void)requestResidency {
    ASSERT(committed > 0);
    isRequested = YES;
    __atomic_add_fetch(&counts.requests, 1, __ATOMIC_RELAXED);
}
- (void)endResidency {
    isRequested = NO;
    counts.ends++;
}
@end

// Programs

@interface MTLCompileOptions : Counted {
  @public
    NSDictionary * macros;
}
@end

@implementation MTLCompileOptions
- (void)setPreprocessorMacros:(NSDictionary *)dictionary {
    macros = [dictionary copy];
}
- (void)dealloc {
    [macros release];
    [super dealloc];
}
@end

@interface MTLFunctionConstantValues : Counted {
  @public
    int values[CONSTANTS];
}
@end

@implementation MTLFunctionConstantValues
- (void)setConstantValue:(const void *)value type:(NSUInteger)type atIndex:(NSUInteger)index {
    enum { INT = 29, SHORT = 37, BOOLEAN = 53 };
    ASSERT(type == INT || type == SHORT || type == BOOLEAN);
    ASSERT(index < CONSTANTS);
    values[index] = type == INT     ? *(const int *)value
                    : type == SHORT ? *(const short *)value
                                    : *(const unsigned char *)value;
}
@end

@interface CPUFunction : Counted {
  @public
    NSString * name;
    int constants[CONSTANTS];
}
@end

@implementation CPUFunction
- (void)dealloc {
    [name release];
    [super dealloc];
}
@end

@interface CPUPipeline : Counted {
  @public
    CPUFunction * function;
}
@end

@implementation CPUPipeline
- (void)dealloc {
    [function release];
    [super dealloc];
}
- (NSUInteger)maxTotalThreadsPerThreadgroup {
    return 1024;
}
- (NSUInteger)threadExecutionWidth {
    return 32;
}
@end

// Has the functions whose names stand in the text, which nobody compiles.
@interface CPULibrary : Counted {
    NSMutableSet * names;
}
@end

@implementation CPULibrary
- (id)initWithSource:(NSString *)source {
    names = [NSMutableSet new];
    for (NSString * before in @[ @"host_name(\"", @"kernel void " ]) {
        NSArray * parts = [source componentsSeparatedByString:before];
        for (NSUInteger i = 1; i < [parts count]; i++) {
            NSScanner * scanner = [NSScanner scannerWithString:[parts objectAtIndex:i]];
            NSString * name = nil;
            [scanner setCharactersToBeSkipped:nil];
            [scanner scanUpToCharactersFromSet:[NSCharacterSet
                                                   characterSetWithCharactersInString:@"\"(<"]
                                    intoString:&name];
            [names addObject:name];
        }
    }
    return [super init];
}
- (void)dealloc {
    [names release];
    [super dealloc];
}
- (NSArray *)functionNames {
    return [names allObjects];
}
- (CPUFunction *)newFunctionWithName:(NSString *)name {
    if (![names containsObject:name]) {
        return nil;
    }
    CPUFunction * function = [CPUFunction new];
    function->name = [name copy];
    return function;
}
- (CPUFunction *)newFunctionWithName:(NSString *)name
                      constantValues:(MTLFunctionConstantValues *)values
                               error:(NSError **)error {
    CPUFunction * function = [self newFunctionWithName:name];
    if (function) {
        memcpy(function->constants, values->values, sizeof values->values);
    }
    return function;
}
@end

// Commands

@interface CPUEvent : Counted {
  @public
    uint64_t value;
}
@end

@implementation CPUEvent
- (BOOL)waitUntilSignaledValue:(uint64_t)number timeoutMS:(uint64_t)milliseconds {
    return value >= number;
}
@end

@class CPUCommands;

// Its command buffers are computed in the order in which they were enqueued, whoever commits first.
@interface CPUQueue : Counted {
  @public
    NSMutableArray * order;
    pthread_mutex_t mutex;
}
- (void)compute;
@end

@interface CPUCommands : Counted {
  @public
    CPUQueue * queue;
    NSMutableArray * work; // blocks, as pointers
    NSMutableArray * handlers;
    NSMutableArray * buffers; // kept until it is computed
    NSUInteger status;
    BOOL isEncoding;
}
- (void)add:(Work)block;
@end

enum { NOT_ENQUEUED, ENQUEUED, COMMITTED, COMPLETED = 4, FAILED = 5 };

@interface CPUEncoder : Counted {
    CPUCommands * commands;
    CPUPipeline * pipeline;
    struct call call;
    char arguments[4096];
    int depth; // of debug groups
}
@end

@implementation CPUEncoder
- (id)initWithCommands:(CPUCommands *)owner {
    ASSERT(!owner->isEncoding);
    owner->isEncoding = YES;
    commands = owner;
    return [super init];
}
- (void)endEncoding {
    ASSERT(commands->isEncoding && depth == 0);
    commands->isEncoding = NO;
}
- (void)pushDebugGroup:(NSString *)name {
    ASSERT([name isKindOfClass:[NSString class]]);
    depth++;
}
- (void)popDebugGroup {
    depth--;
}
- (void)copyFromBuffer:(CPUBuffer *)source
          sourceOffset:(NSUInteger)from
              toBuffer:(CPUBuffer *)destination
     destinationOffset:(NSUInteger)to
                  size:(NSUInteger)size {
    ASSERT(size <= source->size && from <= source->size - size);
    ASSERT(size <= destination->size && to <= destination->size - size);
    [commands->buffers addObject:source];
    [commands->buffers addObject:destination];
    char *in = source->bytes + from, *out = destination->bytes + to;
    [commands add:^{
      memcpy(out, in, size);
    }];
}
- (void)fillBuffer:(CPUBuffer *)buffer range:(NSRange)range value:(uint8_t)value {
    ASSERT(range.length <= buffer->size && range.location <= buffer->size - range.length);
    [commands->buffers addObject:buffer];
    char * out = buffer->bytes + range.location;
    [commands add:^{
      memset(out, value, range.length);
    }];
}
- (void)setComputePipelineState:(CPUPipeline *)state {
    ASSERT([state isKindOfClass:[CPUPipeline class]]);
    pipeline = state;
}
- (void)setBytes:(const void *)bytes length:(NSUInteger)length atIndex:(NSUInteger)index {
    ASSERT(index == 0 && length <= sizeof arguments);
    memcpy(arguments, bytes, length);
    call.size = length;
}
- (void)setBuffer:(CPUBuffer *)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index {
    ASSERT(index > 0 && index < BUFFERS);
    ASSERT([buffer isKindOfClass:[CPUBuffer class]] && offset <= buffer->size);
    [commands->buffers addObject:buffer];
    call.buffers[index] = buffer->bytes + offset;
}
- (void)setThreadgroupMemoryLength:(NSUInteger)length atIndex:(NSUInteger)index {
    ASSERT(length <= 32768 && length % 16 == 0 && index == 0);
}
- (void)memoryBarrierWithScope:(NSUInteger)scope {
    enum { BUFFERS_ALONE = 1 };
    ASSERT(scope == BUFFERS_ALONE);
}
- (void)dispatchThreadgroups:(Size)groups threadsPerThreadgroup:(Size)threads {
    ASSERT(groups.width && groups.height && groups.depth);
    ASSERT(threads.width * threads.height * threads.depth - 1 < 1024);
    struct copy {
        struct call call;
        char arguments[4096];
    } * copy = malloc(sizeof *copy);
    copy->call = call;
    copy->call.name = [pipeline->function->name UTF8String];
    copy->call.groups[0] = groups.width;
    copy->call.groups[1] = groups.height;
    copy->call.groups[2] = groups.depth;
    copy->call.arguments = memcpy(copy->arguments, arguments, sizeof arguments);
    memcpy(copy->call.constants, pipeline->function->constants, sizeof copy->call.constants);
    [commands add:^{
      kernel_run(&copy->call);
      free(copy);
    }];
}
@end

@implementation CPUCommands
- (id)initWithQueue:(CPUQueue *)owner {
    queue = owner;
    work = [NSMutableArray new];
    handlers = [NSMutableArray new];
    buffers = [NSMutableArray new];
    return [super init];
}
- (void)dealloc {
    [work release];
    [handlers release];
    [buffers release];
    [super dealloc];
}
- (void)add:(Work)block {
    ASSERT(status < COMMITTED);
    [work addObject:[NSValue valueWithPointer:Block_copy(block)]];
}
- (CPUEncoder *)blitCommandEncoder {
    return [[[CPUEncoder alloc] initWithCommands:self] autorelease];
}
- (CPUEncoder *)computeCommandEncoder {
    return [self blitCommandEncoder];
}
- (CPUEncoder *)computeCommandEncoderWithDispatchType:(NSUInteger)type {
    enum { SERIAL, CONCURRENT };
    ASSERT(type == CONCURRENT);
    return [self blitCommandEncoder];
}
- (void)encodeSignalEvent:(CPUEvent *)event value:(uint64_t)value {
    [buffers addObject:event];
    [self add:^{
      event->value = value;
    }];
}
- (void)encodeWaitForEvent:(CPUEvent *)event value:(uint64_t)value {
    [buffers addObject:event];
    [self add:^{
      ASSERT(event->value >= value);
    }];
}
- (void)addCompletedHandler:(void (^)(CPUCommands *))block {
    [handlers addObject:[NSValue valueWithPointer:Block_copy(block)]];
}
- (void)enqueue {
    pthread_mutex_lock(&queue->mutex);
    ASSERT(status == NOT_ENQUEUED);
    status = ENQUEUED;
    [queue->order addObject:self];
    pthread_mutex_unlock(&queue->mutex);
}
- (void)commit {
    ASSERT(!isEncoding && status < COMMITTED);
    if (status == NOT_ENQUEUED) {
        [self enqueue];
    }
    pthread_mutex_lock(&queue->mutex);
    status = COMMITTED;
    [queue compute];
    pthread_mutex_unlock(&queue->mutex);
}
- (void)compute {
    if (fails("crash")) {
        abort();
    }
    while (fails("hang")) {
        pause();
    }
    for (NSValue * each in work) {
        Work block = [each pointerValue];
        block();
        Block_release(block);
    }
    [work removeAllObjects];
    [buffers removeAllObjects];
    status = fails("command") ? FAILED : COMPLETED;
    counts.command_buffers++;
    for (NSValue * each in handlers) {
        void (^block)(CPUCommands *) = [each pointerValue];
        block(self);
        Block_release(block);
    }
    [handlers removeAllObjects];
}
- (void)waitUntilCompleted {
    // What was committed is computed, unless something before it never was.
    ASSERT(status >= COMPLETED);
}
- (NSUInteger)status {
    return status;
}
- (NSError *)error {
    return status == FAILED ? error(@"out of memory") : nil;
}
@end

@implementation CPUQueue
- (id)init {
    order = [NSMutableArray new];
    pthread_mutex_init(&mutex, NULL);
    return [super init];
}
- (void)dealloc {
    ASSERT([order count] == 0);
    [order release];
    [super dealloc];
}
- (void)compute {
    while ([order count] && ((CPUCommands *)[order objectAtIndex:0])->status == COMMITTED) {
        [[order objectAtIndex:0] compute];
        [order removeObjectAtIndex:0];
    }
}
- (CPUCommands *)commandBuffer {
    return [[[CPUCommands alloc] initWithQueue:self] autorelease];
}
- (CPUCommands *)commandBufferWithUnretainedReferences {
    return [self commandBuffer];
}
@end

// The device: an M1, as it was when it had the first residency sets

@interface CPUDevice : NSObject
@end

@implementation CPUDevice
- (NSString *)name {
    return @"Apple M1";
}
- (BOOL)supportsFamily:(NSInteger)family {
    enum { APPLE_1 = 1001, APPLE_7 = 1007, COMMON_1 = 3001, COMMON_3 = 3003, METAL_3 = 5001 };
    return (family >= APPLE_1 && family <= APPLE_7) || (family >= COMMON_1 && family <= COMMON_3) ||
           family == METAL_3;
}
- (BOOL)hasUnifiedMemory {
    return YES;
}
- (NSUInteger)location {
    return 0; // built in
}
- (NSUInteger)maxBufferLength {
    return 1ul << 32;
}
- (NSUInteger)maxThreadgroupMemoryLength {
    return 32768;
}
- (uint64_t)recommendedMaxWorkingSetSize {
    return 1ul << 33;
}
- (NSUInteger)currentAllocatedSize {
    return 0;
}
- (CPUQueue *)newCommandQueue {
    return [CPUQueue new];
}
- (CPUEvent *)newSharedEvent {
    return [CPUEvent new];
}
- (CPUBuffer *)buffer:(char *)bytes size:(NSUInteger)size isOwn:(BOOL)isOwn {
    if (fails("memory") && size > 4096) {
        return nil;
    }
    CPUBuffer * buffer = [CPUBuffer new];
    buffer->bytes = bytes;
    buffer->size = size;
    buffer->isOwn = isOwn;
    return buffer;
}
- (CPUBuffer *)newBufferWithLength:(NSUInteger)length options:(NSUInteger)options {
    enum { PRIVATE = 32 };
    ASSERT(options == PRIVATE);
    return [self buffer:calloc(1, length) size:length isOwn:YES];
}
- (CPUBuffer *)newBufferWithBytes:(const void *)bytes
                           length:(NSUInteger)length
                          options:(NSUInteger)options {
    ASSERT(options == 0);
    return [self buffer:memcpy(malloc(length), bytes, length) size:length isOwn:YES];
}
- (CPUBuffer *)newBufferWithBytesNoCopy:(void *)bytes
                                 length:(NSUInteger)length
                                options:(NSUInteger)options
                            deallocator:(void (^)(void *, NSUInteger))deallocator {
    ASSERT(options == 0 && !deallocator);
    return [self buffer:bytes size:length isOwn:NO];
}
- (CPUResidencySet *)newResidencySetWithDescriptor:(MTLResidencySetDescriptor *)descriptor
                                             error:(NSError **)error {
    ASSERT([descriptor->label isEqualToString:@"ggml_metal"] && descriptor->capacity == 1);
    *error = nil;
    return [CPUResidencySet new];
}
- (CPULibrary *)newLibraryWithSource:(NSString *)source
                             options:(MTLCompileOptions *)options
                               error:(NSError **)said {
    NSString * embedded = [options->macros objectForKey:@"GGML_METAL_EMBED_LIBRARY"];
    ASSERT([embedded isEqualToString:@"1"]);
    if (fails("kernels")) {
        *said = error(@"program_source:1:1: error: what is this?");
        return nil;
    }
    return [[CPULibrary alloc] initWithSource:source];
}
- (CPUPipeline *)newComputePipelineStateWithFunction:(CPUFunction *)function
                                               error:(NSError **)error {
    CPUPipeline * pipeline = [CPUPipeline new];
    pipeline->function = [function retain];
    return pipeline;
}
@end

// A trace for Apple's tools: when it begins and ends

@interface CPUCaptureScope : Counted {
  @public
    int begun, ended;
}
@end

@implementation CPUCaptureScope
- (void)beginScope {
    begun++;
}
- (void)endScope {
    ASSERT(++ended == begun);
}
@end

@interface MTLCaptureDescriptor : Counted {
  @public
    CPUCaptureScope * scope;
    NSURL * url;
    NSInteger destination;
}
@end

@implementation MTLCaptureDescriptor
- (void)setCaptureObject:(CPUCaptureScope *)object {
    ASSERT([object isKindOfClass:[CPUCaptureScope class]]);
    scope = [object retain];
}
- (void)setDestination:(NSInteger)number {
    destination = number;
}
- (void)setOutputURL:(NSURL *)object {
    url = [object copy];
}
- (void)dealloc {
    [scope release];
    [url release];
    [super dealloc];
}
@end

@interface MTLCaptureManager : NSObject {
    BOOL isCapturing;
}
@end

@implementation MTLCaptureManager
+ (MTLCaptureManager *)sharedCaptureManager {
    static MTLCaptureManager * only;
    return only ? only : (only = [MTLCaptureManager new]);
}
- (CPUCaptureScope *)newCaptureScopeWithDevice:(CPUDevice *)device {
    ASSERT([device isKindOfClass:[CPUDevice class]]);
    return [CPUCaptureScope new];
}
- (BOOL)startCaptureWithDescriptor:(MTLCaptureDescriptor *)descriptor error:(NSError **)error {
    enum { DOCUMENT = 2 };
    ASSERT(descriptor->destination == DOCUMENT && descriptor->scope && [descriptor->url isFileURL]);
    ASSERT(!isCapturing);
    return isCapturing = YES;
}
- (void)stopCapture {
    ASSERT(isCapturing);
    isCapturing = NO;
}
@end

static CPUDevice * device(void) {
    static CPUDevice * only;
    return only ? only : (only = [CPUDevice new]);
}

CPUDevice * MTLCreateSystemDefaultDevice(void) {
    return fails("device") ? nil : [device() retain];
}

NSArray * MTLCopyAllDevices(void) {
    return [[NSArray arrayWithObject:device()] retain];
}
