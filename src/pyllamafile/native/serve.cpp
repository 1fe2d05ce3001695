#include "serve.h"

#include <cpp-httplib/httplib.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>

#ifdef _WIN32
#include <shellapi.h>
#else
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <unistd.h>
extern char ** environ;
#endif

namespace {

const int FIRST_PORT = 8080;
const int LAST_PORT = 8180;

// Whether the server could listen there.
bool is_free(const std::string & host, int port) {
    addrinfo hints = {};
    addrinfo * found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
        return true; // upstream says what is wrong with the host
    }
    const socket_t socket = ::socket(found->ai_family, found->ai_socktype, found->ai_protocol);
    bool free = true;
    if (socket != INVALID_SOCKET) {
        // as upstream's server does: a port that somebody listens on is taken, one in TIME_WAIT
        // isn't
        httplib::set_socket_opt(socket, SOL_SOCKET, SO_REUSEADDR, 1);
        free = bind(socket, found->ai_addr, (socklen_t)found->ai_addrlen) == 0;
        httplib::detail::close_socket(socket);
    }
    freeaddrinfo(found);
    return free;
}

std::string value_of(const arguments & args, const flag_table & flags,
                     std::initializer_list<const char *> names, const char * variable,
                     const std::string & otherwise) {
    const size_t at = flags.find(args, names);
    if (at + 1 < args.size()) {
        return args[at + 1];
    }
    const char * value = getenv(variable);
    return value != nullptr ? value : otherwise;
}

bool has_desktop() {
#if defined(_WIN32) || defined(__APPLE__)
    return getenv("SSH_CONNECTION") == nullptr;
#else
    return getenv("DISPLAY") != nullptr || getenv("WAYLAND_DISPLAY") != nullptr;
#endif
}

void open_browser(const std::string & url) {
#ifdef _WIN32
    ShellExecuteA(nullptr, "open", url.c_str(), nullptr, nullptr, SW_SHOWNORMAL);
#else
#ifdef __APPLE__
    const char * program = "open";
#else
    const char * program = "xdg-open";
#endif
    posix_spawn_file_actions_t quiet;
    posix_spawn_file_actions_init(&quiet);
    posix_spawn_file_actions_addopen(&quiet, 1, "/dev/null", O_WRONLY, 0);
    posix_spawn_file_actions_adddup2(&quiet, 1, 2);
    char * const argv[] = { const_cast<char *>(program), const_cast<char *>(url.c_str()), nullptr };
    pid_t child;
    posix_spawnp(&child, program, &quiet, nullptr, argv, environ);
    posix_spawn_file_actions_destroy(&quiet);
#endif
}

struct address {
    std::string host; // as a client reaches it
    int port;
    std::string prefix;

    std::string url() const {
        const bool literal = host.find(':') != std::string::npos; // IPv6, RFC 3986 section 3.2.2
        return "http://" + (literal ? "[" + host + "]" : host) + ":" + std::to_string(port) +
               prefix + "/";
    }
};

#ifndef _WIN32
// Upstream answers Ctrl-C by waiting until every client has had its answer. Nobody who presses
// it wants that, so the program ends shortly after, clients or not.
const int GRACE_MS = 500;

void (*upstreams_handler)(int) = nullptr;
volatile sig_atomic_t interrupted = 0;

void on_interrupt(int signal) {
    interrupted = signal;
    upstreams_handler(signal);
}

// Upstream sets its handler at about the time when it is ready, and on both signals at once.
bool take_over_signals() {
    struct sigaction action = {};
    sigaction(SIGINT, nullptr, &action);
    if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN) {
        return false;
    }
    upstreams_handler = action.sa_handler;
    action.sa_handler = on_interrupt;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    return true;
}
#endif

void pause_ms(int milliseconds) {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

// Stands beside the server, which has no call for "ready", and sees to its end.
class companion {
  public:
    companion(const address & at, const std::string & model, bool browser)
        : at(at), model(model), browser(browser), thread([this] { run(); }) {}

    ~companion() {
        ended = true;
        thread.join();
    }

  private:
    bool is_ready() {
        httplib::Client client(at.host, at.port);
        client.set_connection_timeout(1, 0);
        const auto answer = client.Get(at.prefix + "/health");
        return answer && answer->status == 200;
    }

    void run() {
        for (int tries = 0; !ended && !is_ready(); tries++) {
            if (tries == 40) { // two seconds
                printf("loading %s ...\n", model.c_str());
                fflush(stdout);
            }
            pause_ms(50);
        }
        if (ended) {
            return;
        }
#ifndef _WIN32
        while (!ended && !take_over_signals()) {
            pause_ms(1);
        }
#endif
        printf("%s is ready: %s (Ctrl-C ends it)\n", model.c_str(), at.url().c_str());
        fflush(stdout);
        if (browser && has_desktop()) {
            open_browser(at.url());
        }
#ifndef _WIN32
        while (!ended && !interrupted) {
            pause_ms(50);
        }
        for (int waited = 0; !ended && waited < GRACE_MS; waited += 10) {
            pause_ms(10);
        }
        if (!ended) {
            fflush(stdout);
            _exit(128 + interrupted);
        }
#endif
    }

    const address at;
    const std::string model;
    const bool browser;
    std::atomic<bool> ended{ false };
    std::thread thread; // last, so that all it uses is there
};

} // namespace

int serve(arguments args, const flag_table & flags, const std::string & model, bool browser,
          const std::function<int(const arguments &)> & run) {
    address at = { value_of(args, flags, { "--host" }, "LLAMA_ARG_HOST", "127.0.0.1"), FIRST_PORT,
                   value_of(args, flags, { "--api-prefix" }, "LLAMA_ARG_API_PREFIX", "") };
    const std::string port = value_of(args, flags, { "--port" }, "LLAMA_ARG_PORT", "");
    if (at.host.size() > 5 && at.host.substr(at.host.size() - 5) == ".sock") {
        return run(args); // a Unix socket: nothing that a browser could open
    }
    if (!port.empty()) {
        at.port = atoi(port.c_str());
    } else {
        while (at.port < LAST_PORT && !is_free(at.host, at.port)) {
            at.port++;
        }
        if (at.port != FIRST_PORT) {
            printf("port %d is taken, using %d\n", FIRST_PORT, at.port);
        }
        args.insert(args.end(), { "--port", std::to_string(at.port) });
    }
    if (at.host == "0.0.0.0" || at.host == "::") {
        at.host = "127.0.0.1";
    }
    const companion beside(at, model, browser);
    return run(args);
}
