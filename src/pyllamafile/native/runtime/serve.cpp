#include "serve.h"

#include "seams/ui.h"
#include "system/system.h"
#include "web/addresses.h"
#include "web/guard.h"
#include "web/qr.h"

#include <cpp-httplib/httplib.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <signal.h>
#include <thread>

#ifdef _WIN32
#include "windows-seams.h"
#include <io.h>
#undef SetConsoleCtrlHandler
#else
#include <fcntl.h>
#include <spawn.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>
extern char ** environ;
#endif

extern std::string ui_prefix; // for ui.cpp

namespace {

const int FIRST_PORT = 8080;
const int LAST_PORT = 8180;

// Why the server could not listen there: 0 if it could, or the system's error. Port 0 becomes one
// that is free.
int listen_error(const std::string & host, int & port) {
    addrinfo hints = {};
    addrinfo * found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE;
    if (getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
        return EADDRNOTAVAIL;
    }
    const socket_t socket = ::socket(found->ai_family, found->ai_socktype, found->ai_protocol);
    int error = 0;
    if (socket != INVALID_SOCKET) {
#ifndef _WIN32
        // as upstream's server does: a port that somebody listens on is taken, one in TIME_WAIT
        // isn't (on Windows it isn't anyway, and this would take the port away from others)
        httplib::set_socket_opt(socket, SOL_SOCKET, SO_REUSEADDR, 1);
#endif
        if (bind(socket, found->ai_addr, (socklen_t)found->ai_addrlen) != 0) {
#ifdef _WIN32
            const int code = WSAGetLastError(); // WSAEACCES: somebody has it exclusively
            error = code == WSAEADDRINUSE || code == WSAEACCES ? EADDRINUSE : EADDRNOTAVAIL;
#else
            error = errno;
#endif
        } else if (port == 0) {
            sockaddr_storage bound;
            socklen_t size = sizeof(bound);
            getsockname(socket, (sockaddr *)&bound, &size);
            port = ntohs(((const sockaddr_in *)&bound)->sin_port); // IPv6 has it there, too
        }
        httplib::detail::close_socket(socket);
    }
    freeaddrinfo(found);
    return error;
}

// As strerror says it, which on Windows knows no names of sockets' errors.
const char * reason(int error) {
    return error == EADDRINUSE      ? "Address already in use"
           : error == EADDRNOTAVAIL ? "Address not available"
                                    : strerror(error);
}

// The same for a Unix socket. One that a killed server left behind is removed; one that somebody
// listens on is not, nor any other file.
int socket_error(const std::string & path) {
#ifdef _WIN32
    (void)path;
    return 0;
#else
    sockaddr_un name = {};
    name.sun_family = AF_UNIX;
    if (path.size() >= sizeof(name.sun_path)) {
        return ENAMETOOLONG;
    }
    memcpy(name.sun_path, path.c_str(), path.size());
    const int socket = ::socket(AF_UNIX, SOCK_STREAM, 0);
    int error = bind(socket, (const sockaddr *)&name, sizeof(name)) == 0 ? 0 : errno;
    if (error == EADDRINUSE) {
        struct stat status;
        if (lstat(path.c_str(), &status) != 0 || !S_ISSOCK(status.st_mode)) {
            error = EEXIST;
        } else if (connect(socket, (const sockaddr *)&name, sizeof(name)) != 0) {
            error = errno == ECONNREFUSED ? 0 : errno;
        }
    }
    close(socket);
    if (error == 0) {
        unlink(path.c_str());
    }
    return error;
#endif
}

// Says why there will be no server, and what to do about it.
int refuse(const std::string & where, const char * why, const char * hint = "") {
    fprintf(stderr, "error: can't listen on %s: %s%s\n", where.c_str(), why, hint);
    return 1;
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

// A page that leads to another. A browser gets the path of this one, for every user may see what
// programs are started with, and the address may have the key in it.
std::string write_way(const std::string & url) {
    std::error_code ignored;
    const std::string folder = std::filesystem::temp_directory_path(ignored).string();
    const std::string text =
        "<!doctype html><meta http-equiv=\"refresh\" content=\"0;url=" + url + "\">";
#ifdef _WIN32
    const std::string path =
        folder + "llamafile-" + std::to_string(GetCurrentProcessId()) + ".html";
    FILE * file = fopen(path.c_str(), "wb");
#else
    std::string path = folder + "/llamafile-XXXXXX.html";
    const int descriptor = mkstemps(&path[0], 5);
    FILE * file = descriptor < 0 ? nullptr : fdopen(descriptor, "wb");
#endif
    if (file == nullptr) {
        return "";
    }
    fputs(text.c_str(), file);
    fclose(file);
    return path;
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
    std::string host; // as a client reaches it; the path of a Unix socket if it ends in .sock
    int port;
    std::string prefix; // empty, or /…
    std::string key;    // one that was made, for the address to open; or empty
    bool everywhere;    // other machines reach it, too

    bool is_socket() const {
        return host.size() > 5 && host.compare(host.size() - 5, 5, ".sock") == 0;
    }

    std::string url() const {
        return is_socket() ? "unix:" + host : url_at(host);
    }

    std::string url_at(const std::string & host) const {
        const bool literal = host.find(':') != std::string::npos; // IPv6, RFC 3986 section 3.2.2
        return "http://" + (literal ? "[" + host + "]" : host) + ":" + std::to_string(port) +
               prefix + "/" + (key.empty() ? "" : "#key=" + key);
    }
};

// Upstream answers Ctrl-C by waiting until every client has had its answer. Nobody who presses
// it wants that, so the program ends shortly after, clients or not.
const int GRACE_MS = 500;

#ifdef _WIN32

PHANDLER_ROUTINE upstreams_handler = nullptr;
std::atomic<int> interrupted{ 0 };

// Closing the window and Ctrl-Break end a program on Windows anyway.
BOOL WINAPI on_interrupt(DWORD event) {
    if (event == CTRL_C_EVENT) {
        interrupted = SIGINT;
    }
    return upstreams_handler(event);
}

// Upstream's handler came through windows-seams.h, and ours is in its place.
bool take_over_signals() {
    return true;
}

#else

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
    if (action.sa_handler == SIG_DFL || action.sa_handler == SIG_IGN ||
        action.sa_handler == end_at_once) {
        return false;
    }
    upstreams_handler = action.sa_handler;
    action.sa_handler = on_interrupt;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    return true;
}

#endif

bool is_terminal() {
#ifdef _WIN32
    return _isatty(_fileno(stdout)) != 0;
#else
    return isatty(fileno(stdout)) != 0;
#endif
}

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
        clean_up();
    }

  private:
    bool is_ready() {
        httplib::Client client(at.host, at.port);
        if (at.is_socket()) {
            client.set_address_family(AF_UNIX);
        }
        client.set_connection_timeout(1, 0);
        const auto answer = client.Get(at.prefix + "/health");
        return answer && answer->status != 503; // which says that the model is being loaded
    }

    void clean_up() {
        if (at.is_socket()) {
            remove(at.host.c_str());
        }
        if (!way.empty()) {
            remove(way.c_str());
        }
        fflush(stdout);
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
        while (!ended && !take_over_signals()) {
            pause_ms(1);
        }
        printf("%s is ready: %s (Ctrl-C ends it)\n", model.c_str(), at.url().c_str());
        if (at.everywhere) {
            for (const std::string & address : machine_addresses()) {
                printf("  from other machines: %s\n", at.url_at(address).c_str());
            }
            if (is_terminal() && !machine_addresses().empty()) {
                fputs(qr_code(at.url_at(machine_addresses().front())).c_str(), stdout);
            }
        }
        fflush(stdout);
        if (browser && !at.is_socket() && has_desktop()) {
            way = at.key.empty() ? "" : write_way(at.url());
            open_browser(way.empty() ? at.url() : way);
        }
        while (!ended && !interrupted) {
            pause_ms(50);
        }
        for (int waited = 0; !ended && waited < GRACE_MS; waited += 10) {
            pause_ms(10);
        }
        if (!ended) {
            clean_up();
            _exit(128 + interrupted);
        }
    }

    const address at;
    const std::string model;
    const bool browser;
    std::string way; // the page that leads the browser here
    std::atomic<bool> ended{ false };
    std::thread thread; // last, so that all it uses is there
};

} // namespace

#ifdef _WIN32
void take_over_ctrl_c(PHANDLER_ROUTINE upstreams) {
    upstreams_handler = upstreams;
    SetConsoleCtrlHandler(on_interrupt, TRUE);
}
#endif

int serve(arguments args, const flag_table & flags, const std::string & model, bool browser,
          const std::function<int(const arguments &)> & run) {
    const std::string hosts =
        value_of(args, flags, { "--host" }, "LLAMA_ARG_HOST", "127.0.0.1") + ",";
    std::vector<std::string> listens;
    for (size_t start = 0, end; (end = hosts.find(',', start)) != std::string::npos;
         start = end + 1) {
        listens.push_back(hosts.substr(start, end - start));
    }
    address at = { listens.front(), FIRST_PORT,
                   value_of(args, flags, { "--api-prefix" }, "LLAMA_ARG_API_PREFIX", ""),
                   web_settle(args, flags, listens), false };
    const std::string port = value_of(args, flags, { "--port" }, "LLAMA_ARG_PORT", "");
    while (!at.prefix.empty() && at.prefix.back() == '/') {
        at.prefix.pop_back();
    }
    if (!at.prefix.empty()) {
        at.prefix.insert(0, at.prefix.front() == '/' ? "" : "/");
        args.insert(args.end(), { "--api-prefix", at.prefix });
        ui_prefix = at.prefix;
    }
    if (at.is_socket()) {
        const int error = socket_error(at.host);
        if (error != 0) {
            return refuse(at.host, strerror(error));
        }
    } else {
        at.port = port.empty() ? FIRST_PORT : atoi(port.c_str());
        if (at.port < 0 || at.port > 65535) {
            return refuse("port " + port, "there is no such port");
        }
        int error;
        while ((error = listen_error(at.host, at.port)) == EADDRINUSE && port.empty() &&
               at.port < LAST_PORT) {
            at.port++;
        }
        if (error != 0) {
            const char * hint =
                error == EADDRINUSE ? " (leave --port out for the next free one)" : "";
            return refuse(at.host + ":" + std::to_string(at.port), reason(error), hint);
        }
        if (port.empty() && at.port != FIRST_PORT) {
            printf("port %d is taken, using %d\n", FIRST_PORT, at.port);
        }
        args.insert(args.end(), { "--port", std::to_string(at.port) });
    }
    if (at.host == "0.0.0.0" || at.host == "::") {
        at.host = "127.0.0.1";
        at.everywhere = true;
    }
    const bool gui =
        !flags.has(args, { "--no-ui", "--no-webui" }) && !llama_ui_get_assets().empty();
    const companion beside(at, gui ? model : model + " (API alone)", browser && gui);
    return run(args);
}
