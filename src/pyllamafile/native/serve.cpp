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
#include <spawn.h>
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

// Waits for the server in the background; upstream has no call for "ready".
class announcer {
  public:
    announcer(const address & at, const std::string & model, bool browser)
        : at(at), model(model), browser(browser), thread([this] { wait(); }) {}

    ~announcer() {
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

    void wait() {
        for (int tries = 0; !ended; tries++) {
            if (is_ready()) {
                printf("%s is ready: %s (Ctrl-C ends it)\n", model.c_str(), at.url().c_str());
                fflush(stdout);
                if (browser && has_desktop()) {
                    open_browser(at.url());
                }
                return;
            }
            if (tries == 40) { // two seconds
                printf("loading %s ...\n", model.c_str());
                fflush(stdout);
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        }
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
    const announcer waiting(at, model, browser);
    return run(args);
}
