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
#include <future>
#include <stdexcept>

extern "C" ggml_backend_reg_t ggml_backend_vk_reg(); // upstream's

int number_of_gpu(size_t device) {
    return (int)vulkan_number(device);
}

ggml_backend_reg_t start_gpu_drivers(const std::vector<int> & numbers, gpu_duty duty) {
    // Layers that draw over games, or record them, are nothing for who computes.
    const char * const LAYERS = "VK_LOADER_LAYERS_DISABLE";
    if (getenv(LAYERS) == nullptr) {
        set_variable(LAYERS, "~implicit~");
    }
    const std::string & problem = open_vulkan_loader();
    if (!problem.empty()) {
        throw std::runtime_error(problem);
    }
    std::string named;
    for (const int number : numbers) {
        named += (named.empty() ? "" : ",") + std::to_string(number);
    }
    if (!named.empty()) {
        set_variable(NAMED_GPUS, named);
    }
    std::future<std::string> filled;
    if (duty == gpu_duty::COMPUTES) { // while the drivers start, which takes as long
        const container * own = own_contents(GPU_VARIABLE);
        const container & file = own != nullptr ? *own : own_container;
        filled = std::async(std::launch::async, [&file] { return fill_shaders(file); });
    }
    const ggml_backend_reg_t out = ggml_backend_vk_reg();
    const std::string lacking = filled.valid() ? filled.get() : "";
    if (!lacking.empty()) {
        throw std::runtime_error(lacking);
    }
    if (out == nullptr || ggml_backend_reg_dev_count(out) == 0) {
        throw std::runtime_error("no Vulkan driver has a GPU that computes");
    }
    return out;
}
