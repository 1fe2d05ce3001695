// Which of the devices that the Vulkan loader lists one of ggml-vulkan's is.
#pragma once

#include <cstddef>

size_t vulkan_number(size_t device);
