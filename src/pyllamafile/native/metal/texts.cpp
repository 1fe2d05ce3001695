#include "texts.h"

#include <cstddef>
#include <zstd.h>

// building/metal.py writes what has these: the room, and what goes there.
extern "C" {
extern char kernel_texts_start[], kernel_texts_end[];
extern const char packed_kernel_texts_start[], packed_kernel_texts_end[];
}

bool unpack_kernel_texts() {
    static const bool done = [] {
        const size_t size = (size_t)(kernel_texts_end - kernel_texts_start);
        const size_t packed = (size_t)(packed_kernel_texts_end - packed_kernel_texts_start);
        return ZSTD_decompress(kernel_texts_start, size, packed_kernel_texts_start, packed) == size;
    }();
    return done;
}
