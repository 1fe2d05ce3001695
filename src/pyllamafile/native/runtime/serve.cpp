#include "serve.h"

#include "errors.h"
#include "gpu/room.h"
#include "machines/supervisor.h"
#include "own.h"
#include "seams/ready.h"
#include "seams/ui.h"
#include "states.h"
#include "system/sandbox.h"
#include "system/system.h"
#include "web/addresses.h"
#include "web/guard.h"
#include "web/keeper.h"
#include "web/qr.h"

#include <cpp-httplib/httplib.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>
#include <set>
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
#include <sys/wait.h>
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

bool is_local_socket(const std::string & host) {
    return host.size() > 5 && host.compare(host.size() - 5, 5, ".sock") == 0;
}

struct address {
    std::string host; // as a client reaches it; the path of a Unix socket if it ends in .sock
    int port;
    std::string prefix;                   // empty, or /…
    std::string key;                      // one that was made, for the address to open; or empty
    bool everywhere;                      // other machines reach it, too
    std::vector<std::string> others = {}; // where they do

    bool is_socket() const {
        return is_local_socket(host);
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

// After SIGTERM upstream hears of it when no request is running. A second Ctrl-C, which may be the
// first one passed on (machines/supervisor.h), changes nothing: the end has a time.
void on_interrupt(int signal) {
    if (interrupted == SIGINT) {
        return;
    }
    interrupted = signal;
    if (signal != SIGTERM) {
        upstreams_handler(signal);
    }
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

// Does what the server may not do once it is in the sandbox: opens the browser, and removes the
// files that it leaves. Elsewhere than on Windows it is a process that was split off before, and
// waits: for a byte, which says that the server is ready, and for the server's end.
class attendant {
  public:
    attendant(const address & at, bool browser) : url(browser ? at.url() : "") {
        way_wanted = browser && !at.key.empty();
        socket = at.is_socket() ? at.host : "";
#ifndef _WIN32
        int ends[2];
        if ((url.empty() && socket.empty()) || pipe(ends) != 0) {
            return;
        }
        // who starts programs later must not keep the server's end open
        fcntl(ends[0], F_SETFD, FD_CLOEXEC);
        fcntl(ends[1], F_SETFD, FD_CLOEXEC);
        fflush(stdout);
        child = fork();
        if (child == 0) {
            close(ends[1]);
            wait_upon(ends[0]);
        }
        close(ends[0]);
        to_it = ends[1];
#endif
    }

    void ready() {
#ifdef _WIN32
        show();
#else
        (void)!write(to_it, "", 1); // fails where nobody waits
#endif
    }

    void done() {
#ifdef _WIN32
        clean_up();
#else
        if (to_it >= 0) {
            close(to_it);
            waitpid(child, nullptr, 0);
            to_it = -1;
        }
#endif
    }

  private:
    void show() {
        if (!url.empty()) {
            way = way_wanted ? write_way(url) : "";
            open_browser(way.empty() ? url : way);
        }
    }

    void clean_up() const {
        for (const std::string & path : { socket, way }) {
            if (!path.empty()) {
                remove(path.c_str());
            }
        }
    }

#ifndef _WIN32
    [[noreturn]] void wait_upon(int server) {
        // They are the server's, whose end is waited for. Handlers, because the browser would go on
        // to ignore what is ignored here.
        for (const int number : { SIGINT, SIGTERM, SIGHUP }) {
            signal(number, [](int) {});
        }
        const int nothing = open("/dev/null", O_RDWR);
        for (int stream = 0; stream < 3; stream++) {
            dup2(nothing, stream);
        }
        char byte;
        if (read(server, &byte, 1) == 1) {
            show();
            (void)!read(server, &byte, 1);
        }
        clean_up();
        _exit(0);
    }

    pid_t child = -1;
    int to_it = -1;
#endif
    const std::string url; // for the browser
    bool way_wanted;       // it is not to be seen among the arguments of a program
    std::string way;       // the page that leads the browser there
    std::string socket;    // that the server listened on
};

// What the server says when it is ready, through ready.h.
std::mutex mutex;
std::condition_variable changed;
bool is_ready = false;
bool has_companion = false;

// Stands beside the server, and sees to its end.
class companion {
  public:
    companion(const address & at, const std::string & model, attendant & helper, int grace)
        : at(at), model(model), helper(helper), grace(grace), thread([this] { run(); }) {}

    ~companion() {
        {
            const std::lock_guard<std::mutex> lock(mutex);
            ended = true;
        }
        changed.notify_all();
        thread.join();
        clean_up();
    }

  private:
    void clean_up() {
        helper.done();
        fflush(stdout);
    }

    void wait_until_ready() {
        std::unique_lock<std::mutex> lock(mutex);
        const auto over = [this] { return is_ready || ended; };
        if (!changed.wait_for(lock, std::chrono::seconds(2), over)) {
            printf("loading %s ...\n", model.c_str());
            fflush(stdout);
            changed.wait(lock, over);
        }
    }

    void print_share_of_gpus() const {
        const gpu_share share = share_of_gpus();
        std::string names;
        for (const std::string & each : share.devices) {
            names += (names.empty() ? "" : ", ") + each;
        }
        if (share.layers > 0) {
            printf("  on %s: %d of %d layers\n", names.c_str(), share.layers, share.of);
        }
    }

    void run() {
        wait_until_ready();
        if (ended) {
            return;
        }
        while (!ended && !take_over_signals()) {
            pause_ms(1);
        }
        helper.ready();
        tighten_sandbox();
        printf("%s is ready: %s (Ctrl-C ends it)\n", model.c_str(), at.url().c_str());
        print_share_of_gpus();
        if (at.everywhere) {
            for (const std::string & address : at.others) {
                printf("  from other machines: %s\n", at.url_at(address).c_str());
            }
            if (is_terminal() && !at.others.empty()) {
                fputs(qr_code(at.url_at(at.others.front())).c_str(), stdout);
            }
        }
        fflush(stdout);
        while (!ended && !interrupted) {
            pause_ms(50);
        }
        if (interrupted == SIGTERM) {
            finish_requests();
        }
        for (int waited = 0; !ended && waited < GRACE_MS; waited += 10) {
            pause_ms(10);
        }
        if (!ended) {
            clean_up();
            _exit(interrupted == SIGTERM ? 0 : 128 + interrupted);
        }
    }

    // Takes no new requests, and ends the server once those that are running have their answers,
    // or had their time.
    void finish_requests() {
        const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(grace);
        web_close();
        while (interrupted == SIGTERM && web_running() > 0 &&
               std::chrono::steady_clock::now() < end) {
            pause_ms(10);
        }
        if (interrupted == SIGTERM) {
            upstreams_handler(SIGTERM);
        }
    }

    const address at;
    const std::string model;
    attendant & helper;
    const int grace; // seconds
    std::atomic<bool> ended{ false };
    std::thread thread; // last, so that all it uses is there
};

// Ports for the models of the router, which has to know them before it is confined.
const size_t MOST_MODELS = 64; // that are loaded at once
std::vector<int> models_ports;

std::vector<int> free_ports(size_t count) {
    std::vector<int> out;
    std::vector<socket_t> held;
    while (held.size() < count) {
        sockaddr_in name = {};
        socklen_t size = sizeof(name);
        name.sin_family = AF_INET;
        name.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        const socket_t socket = ::socket(AF_INET, SOCK_STREAM, 0);
        if (socket == INVALID_SOCKET) {
            break;
        }
        held.push_back(socket);
        if (bind(socket, (const sockaddr *)&name, size) == 0 &&
            getsockname(socket, (sockaddr *)&name, &size) == 0) {
            out.push_back(ntohs(name.sin_port));
        }
    }
    for (const socket_t socket : held) {
        httplib::detail::close_socket(socket);
    }
    return out;
}

} // namespace

void server_is_ready() {
    say_all_errors();
    if (!has_companion) {
        tighten_sandbox();
        return;
    }
    {
        const std::lock_guard<std::mutex> lock(mutex);
        is_ready = true;
    }
    changed.notify_all();
}

// In turn, so that one that was just given back is not given away at once.
int port_for_model(int (*upstreams)()) {
    static size_t next = 0;
    for (size_t tries = 0; tries < models_ports.size(); tries++) {
        int port = models_ports[next++ % models_ports.size()];
        if (listen_error("127.0.0.1", port) == 0) {
            return port;
        }
    }
    return upstreams();
}

#ifdef _WIN32
void take_over_ctrl_c(PHANDLER_ROUTINE upstreams) {
    upstreams_handler = upstreams;
    SetConsoleCtrlHandler(on_interrupt, TRUE);
}
#endif

int serve(const invocation & asked, const std::function<int(const arguments &)> & run) {
    arguments args = asked.args;
    const flag_table & flags = asked.flags;
    const std::string hosts = flags.value(args, { "--host" }, "LLAMA_ARG_HOST", "127.0.0.1") + ",";
    std::vector<std::string> listens;
    for (size_t start = 0, end; (end = hosts.find(',', start)) != std::string::npos;
         start = end + 1) {
        listens.push_back(hosts.substr(start, end - start));
    }
    address at = { listens.front(), FIRST_PORT,
                   flags.value(args, { "--api-prefix" }, "LLAMA_ARG_API_PREFIX"),
                   web_settle(args, flags, listens), false };
    const std::string port = flags.value(args, { "--port" }, "LLAMA_ARG_PORT");
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
        at.others = machine_addresses();
    }
    attempt with;
    if (!asked.machines.names.empty()) {
        if (const auto code =
                outlive_machines(asked.machines, own_container, asked.weights, with)) {
            return *code;
        }
        args.insert(args.end(), with.shares.begin(), with.shares.end());
    }
    const bool gui =
        !flags.has(args, { "--no-ui", "--no-webui" }) && !llama_ui_get_assets().empty();
    const chats_place kept = settle_chats(args, flags, listens, asked.model);
    if (gui) {
        start_keeper(kept); // first, so that the attendant's end of the server is not open in it
    }
    if (keeps_chats()) {
        web_restrict(at.prefix + "/chats", !kept.everybody);
    }
    start_states();
    attendant helper(at, asked.browser && !with.again && gui && !at.is_socket() && has_desktop());
    std::vector<int> ports = { at.port };
    std::vector<std::string> sockets;
    for (const std::string & host : listens) {
        if (is_local_socket(host)) {
            sockets.push_back(host);
        }
    }
    if (const char * vertex = getenv("AIP_HTTP_PORT")) {
        ports.push_back(atoi(vertex)); // where upstream listens instead in Google's cloud
    }
    if (asked.routes) {
        models_ports = free_ports(MOST_MODELS);
        ports.insert(ports.end(), models_ports.begin(), models_ports.end());
    }
    enter_sandbox(asked.routes ? duty::ROUTES : duty::SERVES, ports, sockets);
    end_with_supervisor();
    has_companion = true;
    const companion beside(at, gui ? asked.model : asked.model + " (API alone)", helper,
                           asked.grace);
    const int code = run(args);
    if (code == 0) {
        window_may_close(); // somebody ended it
    }
    return code;
}
