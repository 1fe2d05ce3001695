// The way to GPUs that a program was compiled with: native/vulkan or native/metal has it.
#pragma once

#include "ggml-backend.h"
#include "system/sandbox.h"

#include <string>
#include <vector>

// What the drivers are, by their files and versions, as a text: with another text they may compute
// otherwise. Loads none of them.
std::string gpu_drivers();

// What drivers are started for. What a device computes with is unpacked only where one computes.
enum class gpu_duty { LISTS, COMPUTES };

// Brings the drivers into this process. The devices that they have of these numbers, or all that
// upstream would use; ggml is not told of them. There is one at least. Throws std::runtime_error
// with what is in the way, in a few words.
ggml_backend_reg_t start_gpu_drivers(const std::vector<int> & numbers, gpu_duty duty);

// The number of one of those devices.
int number_of_gpu(size_t device);

// What they take of the sandbox.
void name_gpu_drivers(named & names);
