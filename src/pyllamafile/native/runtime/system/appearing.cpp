#include "seams/appearing.h"

#include "system/files.h"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <stdexcept>

#ifdef _WIN32
#include <process.h>
#else
#include <unistd.h>
#endif

namespace fs = std::filesystem;

namespace {

volatile sig_atomic_t interrupted = 0;

#ifdef _WIN32

// In a thread of its own; a file that is open can't be removed.
void interrupt(int number) {
    interrupted = 1;
    signal(number, interrupt);
}

void watch(const std::string &) {
    signal(SIGINT, interrupt);
    signal(SIGBREAK, interrupt);
}

int process() {
    return _getpid();
}

#else

// What a signal handler may look at: never freed, for it may come at any time.
struct draft {
    char * path;
    draft * next;
};
std::atomic<draft *> drafts{ nullptr };

void end(int number) {
    for (const draft * each = drafts; each != nullptr; each = each->next) {
        unlink(each->path);
    }
    signal(number, SIG_DFL);
    raise(number);
    _exit(128 + number); // process 1 ends on no signal
}

void watch(const std::string & path) {
    drafts = new draft{ strdup(path.c_str()), drafts };
    for (const int number : { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGXFSZ }) {
        struct sigaction action = {};
        action.sa_handler = end;
        action.sa_flags = SA_NODEFER; // the signal ends the process
        struct sigaction before;
        if (sigaction(number, nullptr, &before) == 0 && before.sa_handler != SIG_IGN) {
            sigaction(number, &action, nullptr);
        }
    }
}

int process() {
    return getpid();
}

#endif

} // namespace

appearing_files::~appearing_files() {
    for (const file & each : files) {
        std::error_code ignored;
        fs::remove(fs::u8path(each.draft), ignored);
    }
}

std::string appearing_files::draft_of(const std::string & path) {
    std::error_code error;
    const fs::path given = fs::u8path(path);
    const auto status = fs::status(given, error);
    if (fs::exists(status) && !fs::is_regular_file(status)) {
        return path;
    }
    const fs::path linked = fs::canonical(given, error);
    const bool is_link = fs::is_symlink(fs::symlink_status(given, error)) && !linked.empty();
    const std::string real = is_link ? linked.u8string() : path;
    files.push_back({ real + "." + std::to_string(process()) + ".draft", real });
    watch(files.back().draft);
    return files.back().draft;
}

void appearing_files::appear() {
    for (const file & each : files) {
        if (!put_in_place(each.draft, each.path)) {
            throw std::runtime_error(each.path + " can't be written: " + strerror(errno));
        }
    }
    files.clear();
}

void appearing_files::go_on() const {
    if (interrupted) {
        throw std::runtime_error("interrupted");
    }
}
