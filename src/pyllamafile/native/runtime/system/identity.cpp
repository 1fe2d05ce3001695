#include "system/identity.h"

#include <cstdint>
#include <cstring>

#ifdef _WIN32
#include "system/wide.h"
#else
// clang-format off
#include <sys/types.h>
#include <sys/utsname.h>
// clang-format on
#endif

#ifdef __x86_64__
#include <cpuid.h>
#elif defined(__linux__)
#include <fstream>
#elif !defined(_WIN32)
#include <sys/sysctl.h>
#endif

namespace {

std::string trimmed(const std::string & text) {
    const size_t first = text.find_first_not_of(" \t");
    return first == std::string::npos
               ? ""
               : text.substr(first, text.find_last_not_of(" \t") + 1 - first);
}

} // namespace

#ifdef _WIN32

namespace {

template <typename function> function of_ntdll(const char * name) {
    const HMODULE library = GetModuleHandleW(L"ntdll.dll");
    return library == nullptr ? nullptr : (function)(void (*)())GetProcAddress(library, name);
}

} // namespace

std::string system_name() {
#ifdef __x86_64__
    const std::string machine = "amd64";
#else
    const std::string machine = "arm64";
#endif
    RTL_OSVERSIONINFOW version = {};
    version.dwOSVersionInfoSize = sizeof(version);
    // GetVersionEx tells every program what its manifest wants to hear
    const auto ask = of_ntdll<LONG(WINAPI *)(RTL_OSVERSIONINFOW *)>("RtlGetVersion");
    if (ask == nullptr || ask(&version) != 0) {
        return "Windows " + machine;
    }
    const std::string stands = stand_in();
    return "Windows " + std::to_string(version.dwMajorVersion) + "." +
           std::to_string(version.dwMinorVersion) + "." + std::to_string(version.dwBuildNumber) +
           " " + machine + (stands.empty() ? "" : " (" + stands + ")");
}

std::string stand_in() {
    const auto ask = of_ntdll<const char *(__cdecl *)()>("wine_get_version");
    return ask == nullptr ? "" : std::string("Wine ") + ask();
}

#else

std::string system_name() {
    utsname name = {};
    return uname(&name) < 0 ? ""
                            : std::string(name.sysname) + " " + name.release + " " + name.machine;
}

std::string stand_in() {
    return {};
}

#endif

#ifdef __x86_64__

std::string processor_name() {
    // Intel SDM volume 2A, CPUID: three leaves of 16 characters
    uint32_t words[13] = {};
    for (unsigned leaf = 0; leaf < 3; leaf++) {
        uint32_t * at = words + 4 * leaf;
        if (!__get_cpuid(0x80000002 + leaf, at, at + 1, at + 2, at + 3)) {
            return {};
        }
    }
    return trimmed((const char *)words);
}

#elif defined(_WIN32)

std::string processor_name() {
    wchar_t name[256] = {};
    DWORD size = sizeof(name) - sizeof(name[0]);
    const bool known =
        RegGetValueW(HKEY_LOCAL_MACHINE, L"HARDWARE\\DESCRIPTION\\System\\CentralProcessor\\0",
                     L"ProcessorNameString", RRF_RT_REG_SZ, nullptr, name, &size) == ERROR_SUCCESS;
    return known ? trimmed(utf8(name)) : "";
}

#elif defined(__linux__)

std::string processor_name() {
    // Linux on arm64 has numbers: who made it (0x41 is Arm), and which one it is.
    std::ifstream file("/proc/cpuinfo");
    std::string line, out;
    while (std::getline(file, line) && !line.empty()) {
        const size_t colon = line.find(':');
        const std::string key = trimmed(line.substr(0, colon));
        if (colon != std::string::npos && (key == "CPU implementer" || key == "CPU part")) {
            out += (out.empty() ? "" : ", ") + key + " " + trimmed(line.substr(colon + 1));
        }
    }
    return out;
}

#else

std::string processor_name() {
#ifdef __APPLE__
    const char * const NAME = "machdep.cpu.brand_string";
    char text[256] = {};
    size_t size = sizeof(text) - 1;
    return sysctlbyname(NAME, text, &size, nullptr, 0) == 0 ? trimmed(text) : "";
#else
    int name[] = { CTL_HW, HW_MODEL };
    char text[256] = {};
    size_t size = sizeof(text) - 1;
    return sysctl(name, 2, text, &size, nullptr, 0) == 0 ? trimmed(text) : "";
#endif
}

#endif
