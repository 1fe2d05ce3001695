#include "gpu/devices.h"

#include <cstdlib>
#include <cstring>
#include <filesystem>

#ifdef _WIN32
#include "system/wide.h"
#endif

namespace fs = std::filesystem;

const char * const NAMED_GPUS = "GGML_VK_VISIBLE_DEVICES";

namespace {

// What a driver makes, or the system has it as; with a star, anything that begins so.
#if defined(__linux__)
const char * const SIGNS[] = { "/dev/dri/renderD*", "/dev/nvidiactl", "/dev/dxg" };
#elif defined(_WIN32)
const char * const SIGNS[] = { "vulkan-1.dll" }; // among the system's libraries
#elif defined(__APPLE__)
const char * const SIGNS[] = { "/System/Library/Frameworks/Metal.framework" };
#else // FreeBSD has NVIDIA's driver, with and without drm
const char * const SIGNS[] = { "/dev/dri/*", "/dev/nvidiactl" };
#endif

fs::path beside_system(const char * name) {
#ifdef _WIN32
    wchar_t folder[MAX_PATH];
    return GetSystemDirectoryW(folder, MAX_PATH) != 0 ? fs::path(folder) / name : fs::path();
#else
    return name;
#endif
}

bool is_there(const char * sign) {
    std::error_code error;
    const fs::path path = beside_system(sign);
    const char * star = strchr(sign, '*');
    if (star == nullptr) {
        return fs::exists(path, error);
    }
    const std::string start = fs::path(std::string(sign, star)).filename().u8string();
    for (const auto & each : fs::directory_iterator(path.parent_path(), error)) {
        if (each.path().filename().u8string().rfind(start, 0) == 0) {
            return true;
        }
    }
    return false;
}

} // namespace

std::string no_gpu_because() {
    if (getenv(NAMED_GPUS) != nullptr) {
        return "";
    }
    std::string all;
    const size_t count = sizeof(SIGNS) / sizeof(SIGNS[0]);
    for (size_t i = 0; i < count; i++) {
        if (is_there(SIGNS[i])) {
            return "";
        }
        all += i == 0 ? "" : i + 1 == count ? " or " : ", ";
        all += SIGNS[i];
    }
    return "this machine has no GPU: there is no " + all;
}
