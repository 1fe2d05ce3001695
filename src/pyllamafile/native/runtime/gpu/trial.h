// Whether a GPU computes what the processor does. To be asked in a process of its own: a driver may
// end it, or never answer.
#pragma once

#include "ggml-backend.h"

#include <functional>
#include <string>
#include <vector>

struct verdict {
    std::string what;    // "mul_mat q4_K", "attention"
    double error;        // normalised mean square error; negative where the device can't do it
    double milliseconds; // of the second time, when shaders are compiled
    bool is_right() const;
    bool is_wrong() const;
};

// Matrices that a model multiplies with.
struct gpu_work {
    ggml_type type;
    int64_t columns, rows; // of each
    uint64_t bytes;        // of all
};

// Multiplies a matrix of each type, and takes a step of attention, on a device. Says of each what
// came of it before the next, which the device may not survive. Throws std::runtime_error in a few
// words where it fails.
void try_gpu(ggml_backend_dev_t device, const std::vector<ggml_type> & types,
             const std::function<void(const verdict &)> & say);

// How often a processor, with so many threads, does a part of that work while a device does it
// once: below 1 where the device is faster. Throws the same.
double slowness_of(ggml_backend_dev_t device, ggml_backend_dev_t processor, int threads,
                   const gpu_work & work);
