// Whether a GPU computes what the processor does. To be asked in a process of its own: a driver may
// end it, or never answer.
#pragma once

#include "ggml-backend.h"

#include <string>
#include <vector>

struct verdict {
    std::string what;    // "mul_mat q4_K", "attention"
    double error;        // normalised mean square error; negative where the device can't do it
    double milliseconds; // of the second time, when shaders are compiled
    bool is_right() const;
    bool is_wrong() const;
};

// Multiplies a matrix of each type, and takes a step of attention, on a device. Throws
// std::runtime_error in a few words where it fails.
std::vector<verdict> try_gpu(ggml_backend_dev_t device, const std::vector<ggml_type> & types);
