#include "shaders.h"

#include "ggml-vulkan-shaders.hpp"

#include <cstring>
#include <memory>
#include <zstd.h>

const char * const SHADERS = "gpu/shaders.zst";

namespace {

// The format is specified in building/shaders.py.
const char MAGIC[8] = { 's', 'p', 'i', 'r', 'v', 0, 0, 1 };
const uint64_t MOST = 256 << 20; // bytes that they may take

// Of words, for so SPIR-V is aligned; the tables point into it.
std::unique_ptr<uint32_t[]> blob;

uint32_t word(const char * at) {
    uint32_t out;
    memcpy(&out, at, sizeof(out));
    return out;
}

// Points the tables at the modules. False where the blob is not one of these very modules: then
// they are of another llama.cpp, or damaged, and the tables stay as they were.
bool point_into(const char * bytes, uint64_t size) {
    const uint64_t head = sizeof(MAGIC) + 8;
    if (size < head || memcmp(bytes, MAGIC, sizeof(MAGIC)) != 0 ||
        word(bytes + 8) != SHADER_MODULES) {
        return false;
    }
    const uint64_t names = word(bytes + 12);
    if (names > size - head || size - head - names < 4 * SHADER_MODULES) {
        return false;
    }
    const char * sizes = bytes + head;
    const char * name = sizes + 4 * SHADER_MODULES;
    const char * modules = name + names;
    for (const shader_module & module : shader_modules) {
        const size_t length = strlen(module.name) + 1;
        if (length > (size_t)(modules - name) || memcmp(name, module.name, length) != 0) {
            return false;
        }
        name += length;
    }
    uint64_t at = (uint64_t)(modules - bytes);
    if (modules - name > 3 || at % 4 != 0) {
        return false;
    }
    uint64_t end = at;
    for (size_t i = 0; i < SHADER_MODULES; i++) {
        const uint32_t length = word(sizes + 4 * i);
        if (length == 0 || length % 4 != 0) {
            return false;
        }
        end += length;
    }
    if (end != size) {
        return false;
    }
    for (size_t i = 0; i < SHADER_MODULES; i++) {
        shader_modules[i].data = (const unsigned char *)bytes + at;
        shader_modules[i].size = word(sizes + 4 * i);
        at += shader_modules[i].size;
    }
    return true;
}

} // namespace

std::string fill_shaders(const container & llamafile) {
    const entry * member = llamafile.find(SHADERS);
    if (member == nullptr) {
        return "this file was built without shaders";
    }
    const std::string packed = llamafile.content(*member);
    const uint64_t size = ZSTD_getFrameContentSize(packed.data(), packed.size());
    if (packed.empty() || size > MOST) { // what is no frame says so by huge numbers
        return "its shaders are damaged";
    }
    blob.reset(new uint32_t[size / 4 + 1]); // zeros in them would take time
    char * bytes = (char *)blob.get();
    if (ZSTD_decompress(bytes, size, packed.data(), packed.size()) != size) {
        return "its shaders are damaged";
    }
    if (!point_into(bytes, size)) {
        return "its shaders are another llama.cpp's";
    }
    fill_shader_arrays();
    return "";
}
