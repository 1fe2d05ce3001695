#include "drivers.h"

#include "gpu/backend.h"

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <sys/utsname.h>

namespace fs = std::filesystem;

namespace {

const char * const LIBRARIES[] = {
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/usr/lib64",
    "/usr/lib",
    "/lib64",
    "/lib",
    "/usr/local/lib",
    "/usr/X11R6/lib",
    "/usr/X11R7/lib",
    "/usr/pkg/lib",
    "/run/opengl-driver/lib",
    "/usr/lib/wsl/lib",
};

// A line of the kernel's, such as a version; nothing where there is none.
std::string line_of(const std::string & path) {
    std::string out;
    std::ifstream file(path);
    std::getline(file, out);
    return out;
}

} // namespace

const char SEPARATOR = ':';

std::vector<fs::path> usual_manifests() {
    const char * home = getenv("HOME");
    const std::string own = home != nullptr ? home : "";
    const std::pair<const char *, std::string> folders[] = {
        { "XDG_CONFIG_HOME", own + "/.config" },
        { "XDG_CONFIG_DIRS", "/etc/xdg" },
        { "", "/etc:/usr/local/etc" },
        { "XDG_DATA_HOME", own + "/.local/share" },
        { "XDG_DATA_DIRS", "/usr/local/share:/usr/share:/usr/pkg/share" },
        { "", "/usr/X11R6/share:/usr/X11R7/share" },
    };
    std::vector<fs::path> out;
    for (const auto & each : folders) {
        for (const fs::path & part : paths_in(each.first, each.second)) {
            out.push_back(part / "vulkan" / "icd.d");
        }
    }
    return out;
}

std::vector<fs::path> library_folders() {
    std::vector<fs::path> out = paths_in("LD_LIBRARY_PATH", "");
    out.insert(out.end(), std::begin(LIBRARIES), std::end(LIBRARIES));
    return out;
}

std::string system_of_drivers() {
    utsname system = {};
    uname(&system); // its own drivers are of that version
    std::string out = std::string(system.release) + "\n" + line_of("/sys/module/nvidia/version");
    std::error_code error;
    std::vector<std::string> devices;
    for (const char * folder : { "/dev/dri", "/sys/class/drm" }) {
        for (const auto & each : fs::directory_iterator(folder, error)) {
            const std::string path = each.path().string();
            devices.push_back(path + " " + line_of(path + "/device/vendor") + " " +
                              line_of(path + "/device/device"));
        }
    }
    std::sort(devices.begin(), devices.end());
    for (const std::string & each : devices) {
        out += "\n" + each;
    }
    return out + "\n";
}

// For drivers elsewhere than where most systems have them.
void name_gpu_drivers(named & names) {
    names.gpu = true;
    for (const auto & all : { driver_folders(), paths_in("LD_LIBRARY_PATH", "") }) {
        for (const fs::path & each : all) {
            names.drivers.push_back(each.u8string());
        }
    }
}
