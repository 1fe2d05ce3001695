#include "system/handover/system.h"

#include <cerrno>
#include <csignal>
#include <cstring>
#include <ctime>
#include <fcntl.h>
#include <stdexcept>
#include <sys/stat.h>
#include <unistd.h>

namespace fs = std::filesystem;

namespace {

const time_t MIDDLE_OF_1980 = 331257600; // 1980-07-01: in every time zone in that year

sigset_t as_before; // the signals that were held back, before signals_wait held more

bool is_written_by_user_alone(const struct stat & it) {
    return it.st_uid == geteuid() && (it.st_mode & S_IRWXU) == S_IRWXU &&
           (it.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

// Nobody else can put another folder in place of what is in this one. A group of the user's own is
// nobody else.
bool keeps_its_entries(const struct stat & it) {
    const bool ours = it.st_uid == geteuid();
    const mode_t others = it.st_mode & (S_IWGRP | S_IWOTH);
    return ((ours || it.st_uid == 0) && (others == 0 || (it.st_mode & S_ISVTX) != 0)) ||
           (ours && (others & S_IWOTH) == 0 && it.st_uid == it.st_gid);
}

} // namespace

const char * const END_OF_PROGRAM = "";

bool is_emulated() {
    return false;
}

std::vector<fs::path> usual_places(variables set) {
    std::vector<fs::path> out;
    const fs::path cache = set("XDG_CACHE_HOME"), home = set("HOME");
    if (cache.is_absolute()) {
        out.push_back(cache / "pyllamafile");
    }
    struct stat it; // of another user after sudo
    if (home.is_absolute() && stat(home.c_str(), &it) == 0 && it.st_uid == geteuid()) {
        out.push_back(home / ".cache" / "pyllamafile");
    }
    return out;
}

std::vector<fs::path> shared_places(variables set) {
    std::vector<fs::path> out;
    for (const fs::path & each : { set("TMPDIR"), fs::path("/var/tmp"), fs::path("/tmp") }) {
        std::error_code error;
        const fs::path folder = each.is_absolute() ? fs::canonical(each, error) : fs::path();
        const fs::path place = folder / ("pyllamafile-" + std::to_string(geteuid()));
        if (!folder.empty() && !error && !fs::is_symlink(place, error)) {
            out.push_back(place);
        }
    }
    return out;
}

fs::path trusted_run(const fs::path & place) {
    std::error_code error;
    const fs::path run = fs::canonical(place / "run", error);
    struct stat folder, above;
    const bool trusted = !error && lstat(run.c_str(), &folder) == 0 && S_ISDIR(folder.st_mode) &&
                         lstat(run.parent_path().c_str(), &above) == 0 &&
                         is_written_by_user_alone(folder) && keeps_its_entries(above);
    return trusted ? run : fs::path();
}

bool is_program(const fs::path & path, const std::string &, uint64_t size) {
    struct stat it;
    if (lstat(path.c_str(), &it) != 0 || !S_ISREG(it.st_mode) || !is_written_by_user_alone(it) ||
        (uint64_t)it.st_size != size) {
        return false;
    }
    const struct tm * date = localtime(&it.st_mtime);
    return date != nullptr && date->tm_year == 80;
}

bool make_program(const fs::path & draft) {
    const struct timespec dates[2] = { { 0, UTIME_OMIT }, { MIDDLE_OF_1980, 0 } };
    return chmod(draft.c_str(), 0700) == 0 && utimensat(AT_FDCWD, draft.c_str(), dates, 0) == 0;
}

// Programs for GPUs are linked with glibc on Linux, and elsewhere with the library that all are.
std::string no_gpu_program_because() {
#ifdef __linux__
#ifdef __x86_64__
    const char * const linker = "/lib64/ld-linux-x86-64.so.2";
#else
    const char * const linker = "/lib/ld-linux-aarch64.so.1";
#endif
    return access(linker, X_OK) == 0 ? "" : std::string("it takes glibc: there is no ") + linker;
#else
    return "";
#endif
}

std::string why_no_program_starts(const std::system_error & error) {
    switch (error.code().value()) {
    case ENOENT:
        return "its dynamic linker is missing";
    case ENOEXEC:
#ifdef __linux__
    case ELIBBAD:
#endif
        return error.what();
    default: // such as too many processes, which pass
        return "";
    }
}

bool lets_none_run(const std::system_error & error) {
    return error.code().value() == EACCES || error.code().value() == EPERM;
}

signals_wait::signals_wait() {
    sigset_t held;
    sigemptyset(&held);
    for (const int each : { SIGHUP, SIGINT, SIGTERM }) {
        sigaddset(&held, each);
    }
    sigprocmask(SIG_BLOCK, &held, &as_before);
}

signals_wait::~signals_wait() {
    sigprocmask(SIG_SETMASK, &as_before, nullptr);
}

int become(const fs::path & program, const started & here) {
    std::vector<const char *> argv = { program.c_str(), "--llamafile",
                                       here.llamafile.path.c_str() };
    for (const word & each : here.user) {
        argv.push_back(each.c_str());
    }
    argv.push_back(nullptr);
    execv(argv[0], const_cast<char * const *>(argv.data()));
    throw std::runtime_error(std::string("can't be started: ") + strerror(errno));
}
