#include "gpu/backend.h"

#include "container.h"
#include "gpu/choice.h"
#include "gpu/devices.h"
#include "loader.h"
#include "number.h"
#include "own.h"
#include "shaders.h"
#include "system/system.h"

#include <cstdlib>
#include <stdexcept>

extern "C" ggml_backend_reg_t ggml_backend_vk_reg(); // upstream's

int number_of_gpu(size_t device) {
    return (int)vulkan_number(device);
}

ggml_backend_reg_t start_gpu_drivers(const std::vector<int> & numbers) {
    // Layers that draw over games, or record them, are nothing for who computes.
    const char * const LAYERS = "VK_LOADER_LAYERS_DISABLE";
    if (getenv(LAYERS) == nullptr) {
        set_variable(LAYERS, "~implicit~");
    }
    const container * own = own_contents(GPU_VARIABLE);
    for (const std::string & problem :
         { open_vulkan_loader(), fill_shaders(own != nullptr ? *own : own_container) }) {
        if (!problem.empty()) {
            throw std::runtime_error(problem);
        }
    }
    std::string named;
    for (const int number : numbers) {
        named += (named.empty() ? "" : ",") + std::to_string(number);
    }
    if (!named.empty()) {
        set_variable(NAMED_GPUS, named);
    }
    const ggml_backend_reg_t out = ggml_backend_vk_reg();
    if (out == nullptr || ggml_backend_reg_dev_count(out) == 0) {
        throw std::runtime_error("no Vulkan driver has a GPU that computes");
    }
    return out;
}
