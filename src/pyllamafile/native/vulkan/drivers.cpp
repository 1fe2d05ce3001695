// What there is of Vulkan's drivers: the loader, the manifests that it looks for, the libraries
// that these name, and what the system has.

#include "drivers.h"

#include "gpu/backend.h"
#include "loader.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdlib>
#include <fstream>

namespace fs = std::filesystem;

namespace {

const uint64_t LONGEST = 1 << 16; // bytes of a manifest

// Behind all links, for libraries have their version in the name of the file.
bool note(const fs::path & file, std::string & out) {
    std::error_code error;
    const fs::path path = fs::canonical(file, error);
    const uint64_t size = error ? 0 : fs::file_size(path, error);
    if (error) {
        return false;
    }
    const auto date = fs::last_write_time(path, error).time_since_epoch().count();
    out +=
        path.u8string() + " " + std::to_string(size) + " " + std::to_string((long long)date) + "\n";
    return true;
}

void note_library(const fs::path & name, const fs::path & manifest, std::string & out) {
    if (name.has_parent_path()) {
        note(manifest.parent_path() / name, out); // an absolute name stays as it is
        return;
    }
    for (const fs::path & folder : library_folders()) {
        if (note(folder / name, out)) {
            return;
        }
    }
}

// The library that a manifest names; empty if it names none.
fs::path library_of(const fs::path & manifest) {
    std::error_code error;
    if (fs::file_size(manifest, error) > LONGEST || error) {
        return {};
    }
    std::ifstream file(manifest);
    const nlohmann::json all = nlohmann::json::parse(file, nullptr, false);
    const nlohmann::json::json_pointer library("/ICD/library_path");
    const bool names = all.is_object() && all.contains(library) && all.at(library).is_string();
    return names ? fs::u8path(all.at(library).get<std::string>()) : fs::path();
}

std::vector<fs::path> manifests_in(const fs::path & place) {
    std::error_code error;
    if (!fs::is_directory(place, error)) {
        return { place };
    }
    std::vector<fs::path> out;
    for (const auto & each : fs::directory_iterator(place, error)) {
        if (each.path().extension() == ".json") {
            out.push_back(each.path());
        }
    }
    std::sort(out.begin(), out.end());
    return out;
}

// In the order of the loader's; which drivers it takes then depends on these variables as well.
std::vector<fs::path> places() {
    for (const char * variable : { "VK_DRIVER_FILES", "VK_ICD_FILENAMES" }) {
        std::vector<fs::path> out = paths_in(variable, "");
        if (!out.empty()) {
            return out;
        }
    }
    std::vector<fs::path> out = paths_in("VK_ADD_DRIVER_FILES", "");
    for (const fs::path & each : usual_manifests()) {
        out.push_back(each);
    }
    return out;
}

struct driver {
    fs::path manifest, library; // as the manifest names it; empty if it doesn't
};

// Those that there are. A process reads them once.
const std::vector<driver> & drivers() {
    static const std::vector<driver> found = [] {
        std::vector<driver> out;
        std::error_code error;
        for (const fs::path & place : places()) {
            for (const fs::path & each : manifests_in(place)) {
                if (fs::is_regular_file(each, error)) {
                    out.push_back({ each, library_of(each) });
                }
            }
        }
        return out;
    }();
    return found;
}

} // namespace

std::vector<fs::path> paths_in(const char * variable, const std::string & otherwise) {
    const char * value = getenv(variable);
    std::string rest = value != nullptr && *value != '\0' ? value : otherwise;
    std::vector<fs::path> out;
    while (!rest.empty()) {
        const size_t to = std::min(rest.find(SEPARATOR), rest.size());
        if (to > 0) {
            out.push_back(fs::u8path(rest.substr(0, to)));
        }
        rest.erase(0, to + 1);
    }
    return out;
}

std::string gpu_drivers() {
    std::string out;
    note_library(VULKAN_LOADER, "", out);
    for (const driver & each : drivers()) {
        note(each.manifest, out);
        if (!each.library.empty()) {
            note_library(each.library, each.manifest, out);
        }
    }
    return out + system_of_drivers();
}

std::vector<fs::path> driver_folders() {
    std::vector<fs::path> out;
    for (const driver & each : drivers()) {
        const bool bare = !each.manifest.has_parent_path();
        out.push_back(bare ? "." : each.manifest.parent_path());
        if (each.library.has_parent_path()) {
            out.push_back((out.back() / each.library).parent_path()); // if absolute, as it is
        }
    }
    return out;
}
