// Thread-local variables for OpenBSD, which has none: for every access to one, the compiler calls
// the function below.
//
// The one that zig's compiler-rt has ends a program on a processor that watches jumps, for it
// hands out the address of a function without OpenBSD's mark that one may be jumped to.

#include <pthread.h>

#include <atomic>
#include <cstdlib>
#include <cstring>

namespace {

// What the compiler makes of a variable (LLVM, LowerEmuTLS.cpp).
struct variable {
    size_t size;
    size_t alignment;
    std::atomic<size_t> number; // from 1; 0 until the first access
    const void * initial;       // null for zeros
};

// A thread's copies of the variables, by number - 1.
struct copies {
    int rounds; // of destructors that it has seen
    size_t count;
    void ** pointers;
};

pthread_once_t once = PTHREAD_ONCE_INIT;
pthread_mutex_t numbering = PTHREAD_MUTEX_INITIALIZER;
pthread_key_t key;
size_t numbers;

void * or_abort(void * memory) {
    if (memory == nullptr) {
        abort();
    }
    return memory;
}

// Other destructors may still ask for variables, so these go in the last round.
void release(void * memory) {
    auto * own = static_cast<copies *>(memory);
    if (++own->rounds < PTHREAD_DESTRUCTOR_ITERATIONS) {
        pthread_setspecific(key, own);
        return;
    }
    for (size_t i = 0; i < own->count; i++) {
        free(own->pointers[i]);
    }
    free(own->pointers);
    free(own);
}

void make_key() {
    if (pthread_key_create(&key, release) != 0) {
        abort();
    }
}

size_t number_of(variable & v) {
    size_t number = v.number.load(std::memory_order_acquire);
    if (number == 0) {
        pthread_once(&once, make_key);
        pthread_mutex_lock(&numbering);
        number = v.number.load(std::memory_order_relaxed);
        if (number == 0) {
            number = ++numbers;
            v.number.store(number, std::memory_order_release);
        }
        pthread_mutex_unlock(&numbering);
    }
    return number;
}

void * new_copy(const variable & v) {
    void * copy = nullptr;
    const size_t alignment = v.alignment < sizeof(void *) ? sizeof(void *) : v.alignment;
    if (posix_memalign(&copy, alignment, v.size) != 0) {
        abort();
    }
    return v.initial ? memcpy(copy, v.initial, v.size) : memset(copy, 0, v.size);
}

} // namespace

extern "C" void * __emutls_get_address(variable * v) {
    const size_t number = number_of(*v);
    auto * own = static_cast<copies *>(pthread_getspecific(key));
    if (own == nullptr) {
        own = static_cast<copies *>(or_abort(calloc(1, sizeof(copies))));
        pthread_setspecific(key, own);
    }
    if (own->count < number) {
        own->pointers =
            static_cast<void **>(or_abort(realloc(own->pointers, number * sizeof(void *))));
        memset(own->pointers + own->count, 0, (number - own->count) * sizeof(void *));
        own->count = number;
    }
    void *& copy = own->pointers[number - 1];
    if (copy == nullptr) {
        copy = new_copy(*v);
    }
    return copy;
}
