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

void note_manifest(const fs::path & path, std::string & out) {
    std::error_code error;
    if (!note(path, out) || fs::file_size(path, error) > LONGEST) {
        return;
    }
    std::ifstream file(path);
    const nlohmann::json all = nlohmann::json::parse(file, nullptr, false);
    const nlohmann::json::json_pointer library("/ICD/library_path");
    if (all.is_object() && all.contains(library) && all.at(library).is_string()) {
        note_library(fs::u8path(all.at(library).get<std::string>()), path, out);
    }
}

void note_manifests(const fs::path & place, std::string & out) {
    std::error_code error;
    if (!fs::is_directory(place, error)) {
        note_manifest(place, out);
        return;
    }
    std::vector<fs::path> all;
    for (const auto & each : fs::directory_iterator(place, error)) {
        if (each.path().extension() == ".json") {
            all.push_back(each.path());
        }
    }
    std::sort(all.begin(), all.end());
    for (const fs::path & each : all) {
        note_manifest(each, out);
    }
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
    for (const fs::path & place : places()) {
        note_manifests(place, out);
    }
    return out + system_of_drivers();
}
