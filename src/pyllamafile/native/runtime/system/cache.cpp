#include "system/cache.h"

#include "states.h"
#include "system/files.h"
#include "system/handover/places.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <filesystem>
#include <sys/stat.h>

namespace fs = std::filesystem;

namespace {

const size_t DIGEST = 64; // hexadecimal digits of a SHA-256

// launch.sh and handover/places.cpp name a program by its digest, and a draft by something more
// behind a point. Nothing else is ours.
bool is_named_by_digest(const std::string & name) {
    return name.size() >= DIGEST && name.find_first_not_of("0123456789abcdef") >= DIGEST &&
           (name.size() == DIGEST || name[DIGEST] == '.');
}

bool is_program(const std::string & name) {
    const std::string rest = name.substr(std::min(DIGEST, name.size()));
    return is_named_by_digest(name) && (rest.empty() || rest == ".exe");
}

// Whether somebody may be writing a draft at this moment. Its name goes on with the number of the
// process that does; where that is one of another container, the last hour counts.
bool is_recent(const fs::path & path) {
#ifdef _WIN32
    std::error_code error;
    const auto written = fs::last_write_time(path, error);
    return error || fs::file_time_type::clock::now() - written < std::chrono::hours(1);
#else
    const long process = atol(path.filename().c_str() + DIGEST + 1);
    if (process > 0 && kill((pid_t)process, 0) != 0 && errno == ESRCH) {
        return false;
    }
    struct stat status; // the script sets the date of a draft, but nobody sets this time
    return stat(path.c_str(), &status) != 0 || time(nullptr) - status.st_ctime < 3600;
#endif
}

// No system lets anybody write to a program that runs (macOS does, where it does no harm: what
// runs keeps the removed file). Windows removes no such file, either.
bool is_running(const fs::path & path) {
    FILE * file = fopen(path.string().c_str(), "r+b");
    const bool busy = file == nullptr && (errno == ETXTBSY || errno == EACCES);
    if (file != nullptr) {
        fclose(file);
    }
    return busy;
}

bool was_unpacked(const fs::path & program) {
    return is_program(program.filename().u8string()) && program.parent_path().filename() == "run";
}

fs::path base_of_cache() {
    const auto all = places_of_user();
    return all.empty() ? fs::path() : all.front();
}

// If there were any.
void say_removed(const std::string & folder, int count, uint64_t bytes) {
    if (count > 0) {
        printf("%s: %d removed, %.1f MB\n", folder.c_str(), count, (double)bytes / 1e6);
    }
}

void clean_states(const std::string & folder) {
    const removed_states removed = remove_states(folder);
    say_removed(folder, removed.count, removed.bytes);
}

bool is_speed(const std::string & name) {
    const size_t end = strlen(SPEED_RECORD);
    return name.size() > end && name.compare(name.size() - end, end, SPEED_RECORD) == 0;
}

void clean_folder(const std::string & folder, bool (*is_ours)(const std::string & name)) {
    int count = 0;
    uint64_t bytes = 0;
    for (const used_file & each : files_by_use(folder, is_ours)) {
        std::error_code error;
        if (fs::remove(each.path, error)) {
            count++;
            bytes += each.size;
        }
    }
    say_removed(folder, count, bytes);
}

std::string beside_programs(const std::string & program, const char * folder) {
    const fs::path own = fs::u8path(program);
    const fs::path base = was_unpacked(own) ? own.parent_path().parent_path() : base_of_cache();
    return base.empty() ? "" : (base / folder).u8string();
}

} // namespace

std::string state_folder_of(const std::string & program) {
    return beside_programs(program, "state");
}

std::string tensor_folder_of(const std::string & program) {
    return beside_programs(program, "tensors");
}

std::string speed_folder_of(const std::string & program) {
    return beside_programs(program, "speeds");
}

std::string gpu_folder_of(const std::string & program) {
    return beside_programs(program, "gpus");
}

bool is_finding(const std::string & name) {
    const size_t end = 2 * DIGEST + 1; // of the drivers' digest, and of the work's
    return is_named_by_digest(name) && name.size() > end &&
           is_named_by_digest(name.substr(DIGEST + 1)) &&
           name.compare(end, std::string::npos, GPU_RECORD) == 0;
}

bool is_tensor(const std::string & name) {
    return is_named_by_digest(name) && name.size() == DIGEST;
}

bool is_draft_of_tensor(const std::string & name) {
    return is_named_by_digest(name) && name.size() > DIGEST;
}

int clean_cache(const std::string & program) {
    const fs::path own = fs::path(program);
    const fs::path folder = fs::u8path(beside_programs(program, "run"));
    clean_states(state_folder_of(program));
    const std::string tensors = tensor_folder_of(program);
    for (const used_file & draft : files_by_use(tensors, is_draft_of_tensor)) {
        remove_old_draft(draft.path);
    }
    clean_folder(tensors, is_tensor);
    clean_folder(speed_folder_of(program), is_speed);
    clean_folder(gpu_folder_of(program), is_finding);
    std::error_code error;
    if (!fs::is_directory(folder, error)) {
        puts("nothing to remove: this file unpacks no program");
        return 0;
    }
    int removed = 0, kept = 0;
    double bytes = 0;
    for (const auto & entry : fs::directory_iterator(folder, error)) {
        const std::string name = entry.path().filename().string();
        const bool draft = is_named_by_digest(name) && !is_program(name);
        std::error_code unknown;
        if (!is_named_by_digest(name) || name == own.filename().string() ||
            !entry.is_regular_file(unknown) || (draft && is_recent(entry.path()))) {
            continue;
        }
        const auto size = entry.file_size(unknown);
        if (is_running(entry.path()) || !fs::remove(entry.path(), unknown)) {
            kept++;
            continue;
        }
        removed++;
        bytes += unknown ? 0 : (double)size;
    }
    if (error) {
        fprintf(stderr, "error: %s: %s\n", folder.string().c_str(), error.message().c_str());
        return 1;
    }
    printf("%s: %d removed, %.1f MB; %d still running\n", folder.string().c_str(), removed,
           bytes / 1e6, kept);
    return 0;
}
