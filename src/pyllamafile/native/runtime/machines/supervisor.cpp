#include "machines/supervisor.h"

#ifdef _WIN32

std::optional<int> outlive_machines(machines asked, const container & llamafile,
                                    const weights & model, attempt & out) {
    out.shares = start_workers(asked, llamafile, model);
    return std::nullopt;
}

void end_with_supervisor() {}

#else

#include "system/split-off.h"

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <fcntl.h>
#include <numeric>
#include <poll.h>
#include <stdexcept>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

namespace {

const int SIGNALS[] = { SIGINT, SIGTERM, SIGHUP };

int supervisor = -1; // in the server: a pipe that ends when the process does

volatile sig_atomic_t told_to_end = 0;
volatile pid_t server = 0;

void pass_on(int signal) {
    told_to_end = signal;
    if (server > 0) {
        kill(server, signal);
    }
}

// While there is one of these, a signal that ends this process is for the server.
class passing_on {
  public:
    passing_on() {
        struct sigaction action = {};
        action.sa_handler = pass_on;
        for (size_t i = 0; i < std::size(SIGNALS); i++) {
            sigaction(SIGNALS[i], nullptr, &before[i]);
            if (before[i].sa_handler != SIG_IGN) {
                sigaction(SIGNALS[i], &action, nullptr);
            }
        }
    }
    ~passing_on() {
        for (size_t i = 0; i < std::size(SIGNALS); i++) {
            sigaction(SIGNALS[i], &before[i], nullptr);
        }
    }
    passing_on(const passing_on &) = delete;
    passing_on & operator=(const passing_on &) = delete;

  private:
    struct sigaction before[std::size(SIGNALS)];
};

[[noreturn]] void fail() {
    throw std::runtime_error(std::string("the server can't be started: ") + strerror(errno));
}

// A pipe that nothing is written to: who reads it waits for the end of all that have the other end.
struct tube {
    tube() {
        int ends[2];
        if (pipe(ends) != 0) {
            fail();
        }
        fcntl(reader = ends[0], F_SETFD, FD_CLOEXEC);
        fcntl(writer = ends[1], F_SETFD, FD_CLOEXEC);
    }
    int reader, writer;
};

const int PATIENCE_MS = 5000; // with what the server has split off: it removes its socket

// Splits the server off, and waits for its end. Returns nothing in the server.
std::optional<int> serve_once() {
    const tube to_server, from_server;
    fflush(nullptr);
    server = 0;
    int status = 0;
    pid_t child;
    {
        const passing_on handlers;
        child = fork_with_log();
        if (child > 0) {
            server = child;
            if (told_to_end != 0) { // before anybody knew whom to tell
                kill(child, told_to_end);
            }
            leave_to_others();
            close(from_server.writer);
            while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
            }
            server = 0;
        }
    }
    if (child < 0) {
        fail();
    }
    if (child == 0) {
        close(to_server.writer);
        close(from_server.reader);
        supervisor = to_server.reader;
        if (told_to_end != 0) {
            raise(told_to_end);
        }
        return std::nullopt;
    }
    pollfd all = { from_server.reader, POLLIN, 0 };
    poll(&all, 1, PATIENCE_MS);
    for (const int end : { to_server.reader, to_server.writer, from_server.reader }) {
        close(end);
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

void leave_out(machines & asked, size_t which) {
    asked.names.erase(asked.names.begin() + (ptrdiff_t)which);
    if (!asked.shares.empty()) {
        asked.shares.erase(asked.shares.begin() + (ptrdiff_t)which + 1);
    }
    const auto others = asked.shares.empty() ? asked.shares.end() : asked.shares.begin() + 1;
    if (std::accumulate(others, asked.shares.end(), 0.0) <= 0) {
        asked.shares.clear();
    }
    asked.upstreams.clear(); // they counted the machines
}

// Says who goes on. Throws if these have no room for the weights.
void check_room(const machines & asked, uint64_t bytes) {
    const double free = memory_of_all();
    if (free > 0 && free < (double)bytes) {
        char text[200];
        snprintf(text, sizeof(text),
                 "the weights have %.1f GB, and the machines that are left have %.1f GB of memory "
                 "free",
                 (double)bytes / 1e9, free / 1e9);
        throw std::runtime_error(text);
    }
    std::string others;
    for (const std::string & name : asked.names) {
        others += (others.empty() ? "" : ", ") + name;
    }
    fprintf(stderr, "note: the model is loaded again, by this machine %s\n",
            others.empty() ? "alone" : ("and " + others).c_str());
}

} // namespace

std::optional<int> outlive_machines(machines asked, const container & llamafile,
                                    const weights & model, attempt & out) {
    for (;; out.again = true) {
        try {
            out.shares = asked.names.empty() ? arguments() : start_workers(asked, llamafile, model);
        } catch (const machine_failed & problem) {
            if (!out.again) {
                throw;
            }
            fprintf(stderr, "error: %s\n", problem.what());
            end_workers();
            leave_out(asked, problem.which);
            continue;
        }
        if (out.again) {
            check_room(asked, model.size);
        }
        const std::optional<int> code = serve_once();
        if (!code) {
            return code;
        }
        const std::vector<size_t> lost = lost_workers();
        if (lost.empty() || told_to_end != 0) {
            return code;
        }
        end_workers();
        for (size_t i = lost.size(); i-- > 0;) {
            leave_out(asked, lost[i]);
        }
    }
}

void end_with_supervisor() {
    if (supervisor < 0) {
        return;
    }
    std::thread([] {
        char byte;
        while (read(supervisor, &byte, 1) < 0 && errno == EINTR) {
        }
        _exit(1);
    }).detach();
}

#endif
