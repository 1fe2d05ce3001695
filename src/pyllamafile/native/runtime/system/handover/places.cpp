#include "system/handover/places.h"

#include "gpu/child.h"
#include "system/files.h"
#include "system/handover/system.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#ifdef _WIN32
#include "system/wide.h"
#include <process.h>
#define getpid _getpid
#else
#include <unistd.h>
#endif

namespace fs = std::filesystem;

namespace {

const int PATIENCE = 60; // seconds that a program has for --probe

fs::path set_path(const std::string & variable) {
#ifdef _WIN32 // where a path may have letters that the other text of a variable can't have
    const wchar_t * value = _wgetenv(wide(variable).c_str());
    return value != nullptr ? value : L"";
#else
    const char * value = getenv(variable.c_str());
    return value != nullptr ? value : "";
#endif
}

// Who sets this means it.
fs::path only_place() {
    const fs::path given = set_path("PYLLAMAFILE_CACHE");
    std::error_code error;
    return given.empty() ? fs::path() : fs::absolute(given, error);
}

struct place {
    fs::path path;
    bool shared; // with others, who may have made a link to something that is trusted
};

// The best is first.
std::vector<place> places() {
    std::vector<place> out;
    for (const fs::path & each : places_of_user()) {
        out.push_back({ each, false });
    }
    if (only_place().empty()) {
        for (const fs::path & each : shared_places(set_path)) {
            out.push_back({ each, true });
        }
    }
    return out;
}

// Where a program is in a place; empty where the place is not trusted.
fs::path path_in(const place & where, const std::string & sha256) {
    const fs::path run = trusted_run(where.path);
    const bool trusted = !run.empty() && (!where.shared || run == where.path / "run");
    return trusted ? run / (sha256 + END_OF_PROGRAM) : fs::path();
}

// What another process writes at the same time has another name.
fs::path draft_of(const fs::path & program) {
    const auto now = std::chrono::steady_clock::now().time_since_epoch().count();
    return fs::path(program) += "." + std::to_string(getpid()) + "." + std::to_string(now);
}

bool is_written(const fs::path & draft, const std::string & bytes) {
    FILE * file = open_own(draft.u8string(), true);
    const bool complete =
        file != nullptr && fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
    return file != nullptr && fclose(file) == 0 && complete;
}

// False where this place lets no programs run.
bool runs(const fs::path & draft) {
    try {
        const child_end trial = run_for(PATIENCE, { draft.u8string(), "--probe" });
        if (trial.late || !trial.crash.empty() || trial.code != 0) {
            throw does_not_run("it " + (trial.late ? "did not answer"
                                        : trial.crash.empty()
                                            ? "ended with " + std::to_string(trial.code)
                                            : "ended with " + trial.crash));
        }
        return true;
    } catch (const std::system_error & error) {
        const std::string why = why_no_program_starts(error);
        if (!why.empty()) {
            throw does_not_run(why);
        }
        if (!lets_none_run(error)) {
            throw std::runtime_error(std::string("can't be started: ") + error.what());
        }
        return false;
    }
}

// A draft, which goes if it gets no other name.
struct draft {
    const fs::path path;

    ~draft() {
        std::error_code error;
        fs::remove(path, error);
    }
};

// Empty where the place takes no programs, or lets none run.
fs::path put_into(const place & where, const std::string & sha256, const std::string & bytes) {
    if (!make_folder((where.path / "run").u8string()).empty()) {
        return {};
    }
    const fs::path path = path_in(where, sha256);
    if (path.empty()) {
        return {};
    }
    const signals_wait until_the_draft_is_gone;
    const draft made = { draft_of(path) };
    if (!is_written(made.path, bytes) || !make_program(made.path) || !runs(made.path)) {
        return {};
    }
    const bool put = put_in_place(made.path.u8string(), path.u8string());
    // Another process may have been faster.
    return put || is_program(path, sha256, bytes.size()) ? path : fs::path();
}

} // namespace

std::vector<fs::path> places_of_user() {
    const fs::path only = only_place();
    return only.empty() ? usual_places(set_path) : std::vector<fs::path>{ only };
}

fs::path find_unpacked(const std::string & sha256, uint64_t size) {
    for (const place & each : places()) {
        const fs::path path = path_in(each, sha256);
        if (!path.empty() && is_program(path, sha256, size)) {
            return path;
        }
    }
    return {};
}

fs::path put_unpacked(const std::string & sha256, const std::string & bytes) {
    for (const place & each : places()) {
        const fs::path path = put_into(each, sha256, bytes);
        if (!path.empty()) {
            return path;
        }
    }
    throw std::runtime_error("can't be written to the cache");
}
