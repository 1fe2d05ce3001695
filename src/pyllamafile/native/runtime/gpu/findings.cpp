#include "findings.h"

#include "build-info.h"
#include "system/cache.h"
#include "system/files.h"
#include "system/identity.h"

#include <hash/hash.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <set>
#include <sstream>
#include <thread>

#ifndef _WIN32
extern char ** environ;
#endif

namespace fs = std::filesystem;

namespace {

const std::string MARK = "gpu: ";
const size_t LONGEST = 1 << 16; // bytes of a file of findings
const size_t MOST = 64;         // files
const int MOST_DRAFTS = 8;
const std::chrono::hours WORTH_ANOTHER_TRY(24);

std::string line(const std::string & what, const std::string & text) {
    std::string out = MARK + what + " " + text;
    std::replace(out.begin(), out.end(), '\n', ' ');
    return out + "\n";
}

// What a driver, the loader or ggml goes by.
std::string variables() {
    std::set<std::string> out;
    for (char ** each = environ; *each != nullptr; each++) {
        for (const char * start : { "GGML_", "VK_", "MESA_", "DRI_PRIME", "RADV_", "AMD_", "ANV_",
                                    "INTEL_", "NVK_", "__NV_", "MTL_" }) {
            if (strncmp(*each, start, strlen(start)) == 0) {
                out.insert(*each);
            }
        }
    }
    std::string all;
    for (const std::string & each : out) {
        all += each + "\n";
    }
    return all;
}

std::string digest_of(const std::string & text) {
    return hash_sha256_hex(text.data(), text.size());
}

std::string digest_of_drivers(const std::string & program, const std::string & drivers) {
    std::error_code error;
    const fs::path own = fs::u8path(program);
    std::ostringstream all;
    all << RUNTIME_VERSION << "\n"
        << llama_commit() << "\n"
        << fs::file_size(own, error) << "\n"
        << (long long)fs::last_write_time(own, error).time_since_epoch().count() << "\n"
        << std::thread::hardware_concurrency() << "\n"
        << variables() << drivers;
    return digest_of(all.str());
}

bool has_refusal(const gpu_findings & found) {
    return !found.problem.empty() ||
           std::any_of(found.devices.begin(), found.devices.end(),
                       [](const gpu_finding & each) { return !each.wrong.empty(); });
}

// Those of other drivers and engines, which nobody looks at any more.
void make_room(const std::string & folder) {
    std::vector<used_file> all = files_by_use(folder, is_finding);
    for (size_t i = 0; i + MOST < all.size(); i++) {
        std::error_code error;
        fs::remove(all[i].path, error);
    }
}

} // namespace

gpu_finding * gpu_findings::of(int number) {
    for (gpu_finding & each : devices) {
        if (each.number == number) {
            return &each;
        }
    }
    return nullptr;
}

std::string line_of_device(int number, const std::string & name) {
    return line("device", std::to_string(number) + " " + name);
}

std::string line_of_trying(int number) {
    return line("trying", std::to_string(number));
}

std::string line_of_right(int number, double slowness) {
    char text[32];
    snprintf(text, sizeof(text), "%d %.3g", number, slowness);
    return line("right", text);
}

std::string line_of_wrong(int number, const std::string & why) {
    return line("wrong", std::to_string(number) + " " + why);
}

std::string line_of_problem(const std::string & why) {
    return line("problem", why);
}

void read_findings(const std::string & lines, gpu_findings & found) {
    found.trying = -1;
    std::istringstream in(lines);
    for (std::string each; std::getline(in, each);) {
        if (each.rfind(MARK, 0) != 0) {
            continue;
        }
        std::istringstream words(each.substr(MARK.size()));
        std::string what;
        int number = -1;
        words >> what;
        if (what == "problem") {
            std::getline(words >> std::ws, found.problem);
            continue;
        }
        words >> number;
        gpu_finding * device = found.of(number);
        if (what == "device" && device == nullptr) {
            found.devices.push_back({ number, "", "" });
            std::getline(words >> std::ws, found.devices.back().name);
        } else if (what == "trying") {
            found.trying = number;
        } else if (device != nullptr && (what == "right" || what == "wrong")) {
            device->tried = true;
            found.trying = -1;
            if (what == "right") {
                words >> device->slowness;
            } else {
                std::getline(words >> std::ws, device->wrong);
            }
        }
    }
}

std::string place_of_findings(const std::string & program, const std::string & drivers,
                              const std::string & work) {
    const std::string folder = gpu_folder_of(program);
    return folder.empty() ? ""
                          : folder + "/" + digest_of_drivers(program, drivers) + "." +
                                digest_of(work) + GPU_RECORD;
}

std::string place_of_refusal(const std::string & program, const std::string & sha256) {
    const std::string folder = gpu_folder_of(program);
    return folder.empty() ? ""
                          : folder + "/" + sha256 + "." + digest_of(system_name()) + GPU_RECORD;
}

bool recall_findings(const std::string & place, gpu_findings & found) {
    if (place.empty() || !is_own_folder(fs::u8path(place).parent_path().u8string())) {
        return false;
    }
    FILE * file = open_own(place, false);
    if (file == nullptr) {
        return false;
    }
    std::string text(LONGEST, '\0');
    text.resize(fread(text.data(), 1, text.size(), file));
    fclose(file);
    read_findings(text, found);
    std::error_code error;
    const auto age =
        fs::file_time_type::clock::now() - fs::last_write_time(fs::u8path(place), error);
    return !error && !(found.devices.empty() && found.problem.empty()) &&
           !(has_refusal(found) && age > WORTH_ANOTHER_TRY);
}

void keep_findings(const std::string & place, const gpu_findings & found) {
    const std::string folder = place.empty() ? "" : fs::u8path(place).parent_path().u8string();
    if (!have_own_folder(folder)) {
        return;
    }
    std::string text = found.problem.empty() ? "" : line_of_problem(found.problem);
    for (const gpu_finding & each : found.devices) {
        text += line_of_device(each.number, each.name);
        text += each.wrong.empty() ? line_of_right(each.number, each.slowness)
                                   : line_of_wrong(each.number, each.wrong);
    }
    std::string draft;
    FILE * file = nullptr;
    for (int i = 0; file == nullptr && i < MOST_DRAFTS; i++) { // of others that write the same one
        draft = place + "." + std::to_string(i);
        remove_old_draft(fs::u8path(draft));
        file = open_own(draft, true);
    }
    if (file == nullptr) {
        return;
    }
    const bool whole = fwrite(text.data(), 1, text.size(), file) == text.size();
    if (fclose(file) != 0 || !whole || !put_in_place(draft, place)) {
        std::error_code error;
        fs::remove(fs::u8path(draft), error);
    }
    make_room(folder);
}

gpu_findings last_findings(const std::string & program, const std::string & drivers) {
    const std::string folder = gpu_folder_of(program);
    const std::string digest = digest_of_drivers(program, drivers);
    gpu_findings out;
    if (is_own_folder(folder)) {
        const std::vector<used_file> all = files_by_use(folder, [&](const std::string & name) {
            return is_finding(name) && name.compare(0, digest.size(), digest) == 0;
        });
        if (!all.empty()) {
            recall_findings(all.back().path.u8string(), out);
        }
    }
    return out;
}
