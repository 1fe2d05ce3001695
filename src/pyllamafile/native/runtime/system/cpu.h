// Which of the builds of the kernels this processor gets.
#pragma once

#include "ggml-backend.h"

#include <vector>

struct level {
    const char * name;
    bool (*is_here)();
    ggml_backend_reg_t (*kernels)();
};

// The name of the level in use, for example "v3".
const char * cpu_level();

// Those that this processor has, the lowest first.
std::vector<level> cpu_levels();
