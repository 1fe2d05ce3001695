// The kernels of a runtime's levels, for programs that measure one of them (kernels.py links them).
#pragma once

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#define LEVEL(name) ggml_backend_reg_t ggml_backend_cpu_reg##name();
extern "C" {
#include "levels.inc"
}
#undef LEVEL

using kernels = ggml_backend_reg_t (*)();
#define LEVEL(name) { #name, ggml_backend_cpu_reg##name },
const std::map<std::string, kernels> LEVELS = {
#include "levels.inc"
};
#undef LEVEL

// Between -1 and 1.
inline std::vector<float> numbers(int64_t count, uint32_t seed) {
    std::vector<float> out((size_t)count);
    for (float & number : out) {
        seed = seed * 1664525u + 1013904223u;
        number = (float)(int32_t)seed / 2147483648.0f;
    }
    return out;
}

// How long a graph takes: the least of all times in so many milliseconds.
inline double least_microseconds(ggml_backend_t backend, ggml_cgraph * graph, int milliseconds) {
    using clock = std::chrono::steady_clock;
    const auto end = clock::now() + std::chrono::milliseconds(milliseconds);
    double least = 1e30;
    do {
        const auto start = clock::now();
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
            fprintf(stderr, "it can't be computed\n");
            exit(1);
        }
        const std::chrono::duration<double, std::micro> took = clock::now() - start;
        least = std::min(least, took.count());
    } while (clock::now() < end);
    return least;
}
