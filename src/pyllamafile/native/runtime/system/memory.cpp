#include "system/memory.h"

#include "ggml-backend.h"

#include <algorithm>
#include <string>

#ifdef __linux__

#include "system/groups.h"

#include <fstream>

namespace {

// Bytes that a control group may hold, 0 if it is not limited (the kernel's
// admin-guide/cgroup-v2.rst, memory.max, and cgroup-v1/memory.rst, whose "unlimited" is a number
// larger than any memory).
double limit(const std::string & folder) {
    double bytes = 0;
    std::ifstream v2(folder + "/memory.max"); // "max" is not limited
    if (!(v2 >> bytes)) {
        std::ifstream v1(folder + "/memory.limit_in_bytes");
        v1 >> bytes;
    }
    return bytes;
}

double group_limit() {
    return least_of_groups("memory", limit);
}

} // namespace

#else

static double group_limit() {
    return 0;
}

#endif

// What upstream's fit.cpp asks in place of ggml_backend_dev_memory (CMakeLists.txt renames it
// there), to choose a context that fits. Upstream counts what the machine has.
extern "C" void memory_at_hand(ggml_backend_dev_t device, size_t * free, size_t * total) {
    ggml_backend_dev_memory(device, free, total);
    const double allowed = group_limit();
    if (allowed > 0 && allowed < (double)*total) {
        *total = (size_t)allowed;
        *free = std::min(*free, *total);
    }
}

double available_memory(double most) {
#ifdef __linux__
    std::ifstream info("/proc/meminfo");
    std::string name, unit;
    for (double kib; info >> name >> kib; std::getline(info, unit)) {
        if (name == "MemAvailable:") {
            return std::min(most, kib * 1024);
        }
    }
#endif
    return most;
}

double free_memory() {
    size_t free = 0, total = 0;
    memory_at_hand(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), &free, &total);
    return available_memory((double)free);
}
