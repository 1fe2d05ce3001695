#include "number.h"

#include "ggml-vulkan/ggml-vulkan-common.h" // upstream's, with what its own sources share

size_t vulkan_number(size_t device) {
    return vk_instance.device_indices.at(device);
}
