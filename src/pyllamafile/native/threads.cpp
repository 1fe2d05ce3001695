#include "threads.h"

#ifdef __linux__

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sched.h>
#include <string>

namespace {

// Processors that a control group may use at once, 0 if it is not limited (the kernel's
// admin-guide/cgroup-v2.rst, cpu.max, and scheduler/sched-bwc.rst for version 1).
double quota(const std::string & folder) {
    double used = 0, period = 0;
    std::ifstream v2(folder + "/cpu.max"); // "max 100000" is not limited
    if (!(v2 >> used >> period)) {
        std::ifstream v1(folder + "/cpu.cfs_quota_us"), of(folder + "/cpu.cfs_period_us");
        if (!(v1 >> used) || !(of >> period)) { // -1 is not limited
            return 0;
        }
    }
    return used > 0 && period > 0 ? used / period : 0;
}

// The least of a group and those above it.
double least_quota(const std::string & root, std::string path) {
    double least = 0;
    for (;;) {
        const double here = quota(root + path);
        if (here > 0 && (least == 0 || here < least)) {
            least = here;
        }
        if (path.empty()) {
            return least;
        }
        path.resize(path.rfind('/') == std::string::npos ? 0 : path.rfind('/'));
    }
}

double group_quota() {
    std::ifstream groups("/proc/self/cgroup"); // ID:CONTROLLERS:PATH
    for (std::string line; std::getline(groups, line);) {
        const size_t first = line.find(':'), second = line.find(':', first + 1);
        if (second == std::string::npos) {
            continue;
        }
        const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
        const bool v1 = controllers.find(",cpu,") != std::string::npos;
        if (v1 || controllers == ",,") {
            const std::string root = v1 ? "/sys/fs/cgroup/cpu" : "/sys/fs/cgroup";
            const double least = least_quota(root, line.substr(second + 1));
            if (least > 0) {
                return least;
            }
        }
    }
    return 0;
}

} // namespace

int threads_allowed() {
    cpu_set_t set;
    int allowed = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
    const int limit = (int)std::ceil(group_quota());
    if (limit > 0) {
        allowed = allowed > 0 ? std::min(allowed, limit) : limit;
    }
    return allowed;
}

#else

int threads_allowed() {
    return 0;
}

#endif
