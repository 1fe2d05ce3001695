#include "system/handover/handover.h"

#include "gpu/devices.h"
#include "gpu/findings.h"
#include "manifest.h"
#include "system/handover/places.h"
#include "system/handover/system.h"
#include "system/handover/unpack.h"

#include <cstdio>
#include <cstring>
#include <new>
#include <stdexcept>

namespace {

struct row {
    const char * from; // the target of the program that hands over; null for every one
    bool (*is_wanted)(const started & here);
    std::optional<packed_program> (*find)(const started & here); // may throw, as put_unpacked does
    // With this program.
    void (*goes_on)(const started & here, const std::runtime_error & problem);
};

// The native program is faster.

bool runs_by_emulation(const started & here) {
    return !here.told && is_emulated();
}

std::optional<packed_program> for_windows_arm64(const started & here) {
    return find_program(here.llamafile, "windows-arm64");
}

void goes_on_emulated(const started & here, const std::runtime_error & problem) {
    fprintf(stderr,
            "warning: %s: its program for windows-arm64 %s; this one goes on, more slowly\n",
            here.llamafile.path.c_str(), problem.what());
}

// A static program can't load drivers, and few people have use for the code that asks them.

std::string place_of(const started & here) {
    const auto program = find_gpu_program(here.llamafile, RUNTIME_TARGET);
    return program ? place_of_refusal(here.program, program->sha256) : "";
}

// Nobody unpacks it again within a day to hear the same, but who needs it.
bool was_refused(const started & here) {
    gpu_findings before;
    if (chosen_gpus() == gpus::NEEDED || !recall_findings(place_of(here), before)) {
        return false;
    }
    say_no_gpu(before.problem);
    return true;
}

// It alone knows what was found of them, and nobody unpacks it for that.
bool was_unpacked(const started & here) {
    const auto program = find_gpu_program(here.llamafile, RUNTIME_TARGET);
    return program && !find_unpacked(program->sha256, program->size).empty();
}

bool could_use_gpu(const started & here) {
    if (here.llamafile.find(gpu_entry(RUNTIME_TARGET)) == nullptr || !no_gpu_because().empty()) {
        return false;
    }
    const gpu_use use = here.use_of_gpu();
    return use == gpu_use::TELLS ? was_unpacked(here)
                                 : use == gpu_use::COMPUTES && !was_refused(here);
}

std::optional<packed_program> with_gpu(const started & here) {
    const std::string missing = no_gpu_program_because();
    if (!missing.empty()) {
        throw std::runtime_error("does not run here: " + missing);
    }
    return find_gpu_program(here.llamafile, RUNTIME_TARGET);
}

void goes_on_without_gpu(const started & here, const std::runtime_error & problem) {
    gpu_findings found;
    found.problem = std::string("this file's program for it ") + problem.what();
    if (dynamic_cast<const does_not_run *>(&problem) != nullptr) {
        keep_findings(place_of(here), found);
    }
    say_no_gpu(found.problem);
}

const row ROWS[] = {
    { "windows-amd64", runs_by_emulation, for_windows_arm64, goes_on_emulated },
#ifndef RUNTIME_HAS_GPU
    { nullptr, could_use_gpu, with_gpu, goes_on_without_gpu },
#endif
};

// Its content was checked when it was unpacked; only the user could have changed it since.
std::filesystem::path path_of(const packed_program & program, const started & here) {
    const auto found = find_unpacked(program.sha256, program.size);
    if (!found.empty()) {
        return found;
    }
    const std::string bytes = unpacked(here.llamafile, program, here.program);
    if (bytes.empty()) {
        throw std::runtime_error("is damaged");
    }
    return put_unpacked(program.sha256, bytes);
}

} // namespace

std::optional<int> hand_over(const started & here) {
    for (const row & each : ROWS) {
        const bool applies = each.from == nullptr || strcmp(each.from, RUNTIME_TARGET) == 0;
        if (!applies || !each.is_wanted(here)) {
            continue;
        }
        try {
            if (const auto program = each.find(here)) {
                return become(path_of(*program, here), here);
            }
        } catch (const std::runtime_error & problem) {
            each.goes_on(here, problem);
        } catch (const std::bad_alloc &) {
            each.goes_on(here, std::runtime_error("can't be unpacked: there is no memory"));
        }
    }
    return {};
}
