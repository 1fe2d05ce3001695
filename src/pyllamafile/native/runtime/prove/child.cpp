#include "prove/child.h"

#include "system/system.h"

#include <sheredom/subprocess.h>

#include <chrono>
#include <csignal>
#include <cstdlib>

#ifndef _WIN32
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>
#endif

namespace {

const double PATIENCE = 60; // seconds that a process at a terminal has

double now() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

std::string in_one_line(const std::string & text) {
    const size_t most = 300;
    std::string out;
    for (const char c : text.size() > most ? text.substr(text.size() - most) : text) {
        out += c == '\n' || c == '\r' || c == '\t' ? ' ' : c;
    }
    return out;
}

} // namespace

std::string ended::said() const {
    return !started ? "it could not be started"
           : late   ? "it did not end in time: " + in_one_line(out + err)
                    : "it ended with " + std::to_string(code) + ": " + in_one_line(out + err);
}

child::child(const std::vector<std::string> & words, bool merged, double seconds)
    : process(std::make_unique<subprocess_s>()), began(now()), patience(seconds) {
#ifndef _WIN32
    signal(SIGPIPE, [](int) {}); // of a handler a child inherits nothing
#endif
    std::vector<const char *> argv;
    for (const std::string & word : words) {
        argv.push_back(word.c_str());
    }
    argv.push_back(nullptr);
    const int options = subprocess_option_inherit_environment | subprocess_option_no_window |
                        (merged ? subprocess_option_combined_stdout_stderr : 0);
    result.started = subprocess_create(argv.data(), options, process.get()) == 0;
    if (!result.started) {
        return;
    }
    reading = merged ? 1 : 2;
    readers.emplace_back([this] { read(subprocess_stdout(process.get()), result.out); });
    if (!merged) {
        readers.emplace_back([this] { read(subprocess_stderr(process.get()), result.err); });
    }
}

child::~child() {
    if (!readers.empty()) { // nobody asked for its end: a server that Ctrl-C can't be sent to
        subprocess_terminate(process.get());
    }
    end();
}

void child::read(FILE * from, std::string & into) {
    // by character: where a pipe has less than was asked for, fread waits for the rest
    for (int c; (c = fgetc(from)) != EOF;) {
        const std::lock_guard<std::mutex> lock(mutex);
        into += (char)c;
        if (c == '\n') {
            changed.notify_all();
        }
    }
    const std::lock_guard<std::mutex> lock(mutex);
    reading--;
    changed.notify_all();
}

void child::write(const std::string & text) {
    if (result.started && process->stdin_file != nullptr) {
        fwrite(text.data(), 1, text.size(), process->stdin_file);
        fclose(process->stdin_file);
        process->stdin_file = nullptr;
    }
}

std::string child::line_with(const std::string & text) {
    std::string found;
    std::unique_lock<std::mutex> lock(mutex);
    changed.wait_for(lock, std::chrono::duration<double>(patience), [&] {
        const size_t at = result.out.find(text);
        const size_t to = result.out.find('\n', at);
        if (at != std::string::npos && to != std::string::npos) {
            const size_t from = result.out.rfind('\n', at);
            found = result.out.substr(from + 1, to - from - 1);
        }
        return !found.empty() || reading == 0;
    });
    return found;
}

bool child::interrupt() {
#ifdef _WIN32
    return false;
#else
    return result.started && kill(process->child, SIGINT) == 0;
#endif
}

ended child::end() {
    if (readers.empty()) {
        return result;
    }
    write("");
    const auto in_time = [&] {
        std::unique_lock<std::mutex> lock(mutex);
        return changed.wait_until(lock,
                                  std::chrono::steady_clock::now() +
                                      std::chrono::duration_cast<std::chrono::nanoseconds>(
                                          std::chrono::duration<double>(began + patience - now())),
                                  [&] { return reading == 0; });
    };
    result.late = !in_time();
    if (result.late) {
        subprocess_terminate(process.get());
    }
    for (std::thread & reader : readers) {
        reader.join();
    }
    readers.clear();
    subprocess_join(process.get(), &result.code);
    result.seconds = now() - began;
    subprocess_destroy(process.get());
    return result;
}

ended run_child(const std::vector<std::string> & words, const std::string & input, bool merged,
                double seconds) {
    child started(words, merged, seconds);
    started.write(input);
    return started.end();
}

variable::variable(const char * name, const std::string & value) : name(name) {
    const char * old = getenv(name);
    before = old != nullptr ? old : "";
    set_variable(name, value);
}

// One that was not there is empty now, which is none to any reader of ours.
variable::~variable() {
    set_variable(name, before);
}

#ifdef _WIN32

ended run_at_terminal(const std::vector<std::string> &, const std::string &, const std::string &) {
    return {};
}

#else

ended run_at_terminal(const std::vector<std::string> & words, const std::string & prompt,
                      const std::string & typed) {
    ended result;
    const double began = now();
    const int terminal = posix_openpt(O_RDWR | O_NOCTTY);
    const char * name = nullptr;
    if (terminal < 0 || grantpt(terminal) != 0 || unlockpt(terminal) != 0 ||
        (name = ptsname(terminal)) == nullptr) {
        if (terminal >= 0) {
            close(terminal);
        }
        return result;
    }
    std::vector<char *> argv;
    for (const std::string & word : words) {
        argv.push_back(const_cast<char *>(word.c_str()));
    }
    argv.push_back(nullptr);
    const std::string path = name;
    const pid_t process = fork();
    if (process == 0) {
        setsid();
        const int own = open(path.c_str(), O_RDWR);
        if (own >= 0) {
            ioctl(own, TIOCSCTTY, 0);
            for (int stream = 0; stream < 3; stream++) {
                dup2(own, stream);
            }
            close(terminal);
            execv(argv[0], argv.data());
        }
        _exit(127);
    }
    result.started = process > 0;
    bool answered = false;
    while (result.started) {
        pollfd waiting = { terminal, POLLIN, 0 };
        const double left = began + PATIENCE - now();
        if (left <= 0 || poll(&waiting, 1, (int)(left * 1000) + 1) <= 0) {
            result.late = true;
            kill(process, SIGKILL);
            break;
        }
        char buffer[1024];
        const ssize_t n = ::read(terminal, buffer, sizeof(buffer));
        if (n <= 0) {
            break; // nobody has it any more
        }
        result.out.append(buffer, (size_t)n);
        if (!answered && result.out.find(prompt) != std::string::npos) {
            answered = true;
            (void)!::write(terminal, typed.data(), typed.size());
        }
    }
    int status = 0;
    if (result.started && waitpid(process, &status, 0) == process) {
        result.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
    close(terminal);
    result.seconds = now() - began;
    return result;
}

#endif
