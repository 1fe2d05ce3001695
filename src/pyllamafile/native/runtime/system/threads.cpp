#include "system/threads.h"

#ifdef __linux__

#include "system/groups.h"

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

} // namespace

// "0-3,8-11" (the kernel's admin-guide/cputopology.rst).
int processors() {
    std::ifstream online("/sys/devices/system/cpu/online");
    int found = 0, first = 0, last = 0;
    for (char separator = ','; separator == ',' && online >> first; found += last - first + 1) {
        last = first;
        separator = '\0';
        if (online >> separator && separator == '-') {
            online >> last;
            online >> separator;
        }
    }
    return found;
}

int threads_to_use(int upstreams) {
    cpu_set_t set;
    const int affinity = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 0;
    for (const int allowed : { affinity, (int)std::ceil(least_of_groups("cpu", quota)) }) {
        if (allowed > 0) {
            upstreams = std::min(upstreams, allowed);
        }
    }
    return upstreams;
}

#elif defined(_WIN32)

// clang-format off
#include <windows.h>
// clang-format on

#include <algorithm>
#include <vector>

// Upstream takes half of the logical processors when it is compiled by MinGW. These are the cores
// of the fastest kind: efficiency cores would be waited for.
int threads_to_use(int upstreams) {
    DWORD size = 0;
    GetLogicalProcessorInformationEx(RelationProcessorCore, nullptr, &size);
    std::vector<char> memory(size);
    const auto at = [&](DWORD offset) {
        return (SYSTEM_LOGICAL_PROCESSOR_INFORMATION_EX *)(memory.data() + offset);
    };
    if (size == 0 || !GetLogicalProcessorInformationEx(RelationProcessorCore, at(0), &size)) {
        return upstreams;
    }
    int cores = 0;
    BYTE best = 0;
    for (DWORD offset = 0; offset < size; offset += at(offset)->Size) {
        const BYTE kind = at(offset)->Processor.EfficiencyClass;
        cores = kind > best ? 1 : cores + (kind == best);
        best = std::max(best, kind);
    }
    return cores > 0 ? cores : upstreams;
}

#elif defined(__FreeBSD__)

// clang-format off
#include <sys/types.h>
#include <sys/sysctl.h>
// clang-format on

int threads_to_use(int upstreams) {
    int cores = 0;
    size_t size = sizeof(cores);
    const bool known = sysctlbyname("kern.smp.cores", &cores, &size, nullptr, 0) == 0;
    return known && cores > 0 ? cores : upstreams;
}

#elif defined(__OpenBSD__)

#include <unistd.h>

// Of two threads of a core one is offline, unless the administrator says otherwise (hw.smt).
int threads_to_use(int upstreams) {
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : upstreams;
}

#else

int threads_to_use(int upstreams) {
    return upstreams;
}

#endif

#ifndef __linux__

#include <thread>

int processors() {
    return (int)std::thread::hardware_concurrency();
}

#endif
