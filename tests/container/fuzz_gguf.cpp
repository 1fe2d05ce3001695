// libFuzzer's bytes as a GGUF: what our reader of headers takes, upstream's may read.

#include "ggml.h"
#include "gguf.h"
#include "weights.h"

#include <cstdio>
#include <cstdlib>
#include <string>
#include <unistd.h>

#define STB_IMAGE_IMPLEMENTATION
#include "stb_image.h"

// What reading a header never calls, and would need all of ggml's backends.
extern "C" {
void ggml_backend_tensor_memset() {
    abort();
}
void ggml_backend_tensor_set() {
    abort();
}
void ggml_backend_tensor_get() {
    abort();
}
void ggml_backend_buffer_get_usage() {
    abort();
}
}

container own_container; // as main.cpp has it: none

static void silent(ggml_log_level, const char *, void *) {}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static const std::string path = "/dev/shm/fuzz-gguf-" + std::to_string(getpid()) + ".gguf";
    ggml_log_set(silent, nullptr);
    FILE * file = fopen(path.c_str(), "wb");
    if (file == nullptr || fwrite(data, 1, size, file) != size || fclose(file) != 0) {
        abort();
    }
    weights found;
    if (find_weights(path, found).empty()) {
        ggml_context * tensors = nullptr;
        gguf_context * header = gguf_init_from_file(path.c_str(), { true, &tensors });
        gguf_free(header);
        ggml_free(tensors);
    }
    unlink(path.c_str());
    return 0;
}
