#include "manifest.h"
#include "weights.h"

#include <nlohmann/json.hpp>

#include <filesystem>

namespace fs = std::filesystem;

namespace {

// NAME-00001-of-00003.gguf is known by the parts that begin with NAME-; another name by itself.
std::string common_name(const std::string & name) {
    const size_t of = name.rfind("-of-");
    return of == std::string::npos || of < 6 || name[of - 6] != '-' ? name : name.substr(0, of - 5);
}

std::string by_digests(const container & zip, const std::string & member) {
    const nlohmann::json all = manifest_of(zip);
    const std::string stem = common_name(member);
    std::string out;
    for (const entry & each : zip.entries) {
        if (stem == member ? each.name != member : each.name.rfind(stem, 0) != 0) {
            continue;
        }
        const nlohmann::json::json_pointer at =
            nlohmann::json::json_pointer() / "entries" / each.name / "sha256";
        if (!all.is_object() || !all.contains(at) || !all.at(at).is_string()) {
            return "";
        }
        out += (out.empty() ? "" : " ") + all.at(at).get<std::string>();
    }
    return out;
}

} // namespace

std::string identity_of_weights(const std::string & name) {
    weights found;
    if (!find_weights(name, found).empty()) {
        return "";
    }
    container zip;
    std::string digests;
    if (!found.member.empty() && read_container(found.path, zip)) {
        digests = by_digests(zip, found.member);
    }
    if (!digests.empty()) {
        return digests;
    }
    std::error_code error;
    const fs::path path = fs::absolute(fs::u8path(found.path), error);
    const auto size = fs::file_size(path, error);
    const auto date = fs::last_write_time(path, error).time_since_epoch().count();
    return error ? ""
                 : path.u8string() + " " + found.member + " " + std::to_string(size) + " " +
                       std::to_string((long long)date);
}
