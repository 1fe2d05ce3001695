#include "system/system.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#ifdef _WIN32
// clang-format off
#include <windows.h>
#include <shellapi.h>
// clang-format on
#include <fcntl.h>
#include <io.h>

#include "system/wide.h"
#elif defined(__linux__)
#include <limits.h>
#elif defined(__FreeBSD__) || defined(__NetBSD__)
// clang-format off
#include <sys/types.h>
#include <sys/sysctl.h>
// clang-format on
#include <limits.h>
#endif

#ifndef _WIN32
#include <signal.h>
#include <unistd.h>
#endif

bool flushed() {
    errno = 0;
    if (fflush(stdout) == 0 && ferror(stdout) == 0) {
        return true;
    }
    fprintf(stderr, "error: standard output can't be written%s%s\n", errno != 0 ? ": " : "",
            errno != 0 ? strerror(errno) : "");
    return false;
}

void set_variable(const char * name, const std::string & value) {
#ifdef _WIN32
    _putenv_s(name, value.c_str());
#else
    setenv(name, value.c_str(), 1);
#endif
}

void unset_variable(const char * name) {
#ifdef _WIN32
    _putenv_s(name, "");
#else
    unsetenv(name);
#endif
}

#ifdef _WIN32

void prepare_signals() {}

// Output is bytes: what is generated ends its lines with LF, as on every other system. Input
// stays text, because what Windows pipes into a program ends them with CR LF.
void prepare_streams() {
    SetConsoleOutputCP(CP_UTF8);
    _setmode(_fileno(stdout), _O_BINARY);
    _setmode(_fileno(stderr), _O_BINARY);
}

static bool waits = false;

void window_waits() {
    DWORD attached[2];
    if (GetConsoleProcessList(attached, 2) != 1) {
        return; // a shell is in it, too, or there is none
    }
    waits = true;
    atexit([] {
        if (waits && _isatty(_fileno(stdin))) {
            fputs("\nPress Enter to close this window.\n", stderr);
            getchar();
        }
    });
}

void window_may_close() {
    waits = false;
}

// What main() gets is in the code page of the system where the manifest has no effect.
arguments command_line(int, char **) {
    arguments out;
    int count = 0;
    LPWSTR * words = CommandLineToArgvW(GetCommandLineW(), &count);
    for (int i = 1; i < count; i++) {
        out.emplace_back(utf8(words[i]), origin::user);
    }
    LocalFree(words);
    return out;
}

std::string own_path() {
    return utf8(own_path_wide());
}

#else

void prepare_streams() {}

void window_waits() {}

void window_may_close() {}

void end_at_once(int signal) {
    _exit(128 + signal);
}

void prepare_signals() {
    if (getpid() == 1) {
        signal(SIGINT, end_at_once);
        signal(SIGTERM, end_at_once);
    }
}

arguments command_line(int argc, char ** argv) {
    arguments out;
    for (int i = 1; i < argc; i++) {
        out.emplace_back(argv[i], origin::user);
    }
    return out;
}

// OpenBSD can't tell, and on macOS nobody asks who couldn't do without: the launch script starts
// the program by its whole path there.
std::string own_path() {
#ifdef __linux__
    char path[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", path, sizeof(path));
    return std::string(path, length > 0 ? (size_t)length : 0);
#elif defined(__FreeBSD__) || defined(__NetBSD__)
#ifdef __FreeBSD__
    const int name[] = { CTL_KERN, KERN_PROC, KERN_PROC_PATHNAME, -1 }; // -1 is this process
#else
    const int name[] = { CTL_KERN, KERN_PROC_ARGS, -1, KERN_PROC_PATHNAME };
#endif
    char path[PATH_MAX];
    size_t size = sizeof(path);
    return sysctl(name, 4, path, &size, nullptr, 0) == 0 ? path : "";
#else
    return {};
#endif
}

#endif
