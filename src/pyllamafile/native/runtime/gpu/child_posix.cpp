#include "child.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <system_error>
#include <unistd.h>

#if defined(__linux__)
#include <sys/prctl.h>
#elif defined(__FreeBSD__)
#include <sys/procctl.h>
#endif

extern char ** environ;

namespace {

double now() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

// A process that a driver holds up in the kernel can't be ended, so nobody waits for it. Of one
// that somebody else has waited for it is not known how it ended, which is no good end.
bool ends_before(pid_t process, double deadline, int & status) {
    const int FAILED = 1 << 8;
    for (pid_t found; (found = waitpid(process, &status, WNOHANG)) != process;) {
        if (found < 0) {
            status = FAILED;
            return true;
        }
        if (now() > deadline) {
            return false;
        }
        poll(nullptr, 0, 5);
    }
    return true;
}

void read_what_is_there(int from, std::string & into) {
    char buffer[1024];
    ssize_t n;
    for (size_t left = MOST_AT_ONCE; left > 0 && (n = read(from, buffer, sizeof(buffer))) > 0;) {
        into.append(buffer, into.size() < MOST_SAID ? (size_t)n : 0);
        left -= std::min(left, (size_t)n);
    }
}

std::string name_of_signal(int number) {
    const std::pair<int, const char *> known[] = {
        { SIGSEGV, "SIGSEGV" }, { SIGABRT, "SIGABRT" }, { SIGBUS, "SIGBUS" }, { SIGILL, "SIGILL" },
        { SIGFPE, "SIGFPE" },   { SIGKILL, "SIGKILL" }, { SIGSYS, "SIGSYS" },
    };
    for (const auto & each : known) {
        if (each.first == number) {
            return each.second;
        }
    }
    return "signal " + std::to_string(number);
}

} // namespace

child_end run_for(int seconds, const std::vector<std::string> & words) {
    int ends[2];
    if (pipe(ends) != 0) {
        throw std::system_error(errno, std::generic_category());
    }
    for (const int end : ends) {
        fcntl(end, F_SETFD, FD_CLOEXEC);
    }
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    posix_spawn_file_actions_t streams;
    posix_spawn_file_actions_init(&streams);
    posix_spawn_file_actions_addopen(&streams, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&streams, ends[1], 1);
    posix_spawn_file_actions_addopen(&streams, 2, "/dev/null", O_WRONLY, 0);
    std::vector<char *> argv;
    for (const std::string & word : words) {
        argv.push_back(const_cast<char *>(word.c_str()));
    }
    argv.push_back(nullptr);
    pid_t process = 0;
    signal(SIGCHLD, SIG_DFL); // who started this one may ignore it, and then no child's end is told
    const int error = posix_spawn(&process, argv[0], &streams, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&streams);
    close(ends[1]);
    if (error != 0) {
        close(ends[0]);
        throw std::system_error(error, std::generic_category());
    }
    child_end out;
    int status = 0;
    // Not until the pipe's end: whoever the driver has started may have it, too.
    const double deadline = now() + seconds;
    while (!ends_before(process, std::min(deadline, now() + 0.05), status)) {
        read_what_is_there(ends[0], out.said);
        if (now() > deadline) {
            out.late = true;
            kill(process, SIGKILL);
            ends_before(process, now() + 2, status);
            break;
        }
    }
    read_what_is_there(ends[0], out.said);
    close(ends[0]);
    if (!out.late) {
        out.crash = WIFSIGNALED(status) ? name_of_signal(WTERMSIG(status)) : "";
        out.code = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    }
    return out;
}

void end_with_parent() {
#if defined(__linux__)
    prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0);
#elif defined(__FreeBSD__)
    int number = SIGKILL;
    procctl(P_PID, 0, PROC_PDEATHSIG_CTL, &number);
#endif
}
