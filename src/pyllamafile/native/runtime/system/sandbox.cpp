#include "system/sandbox.h"

#include "system/sandbox/system.h"

#include <cstdio>
#include <cstdlib>

// clang-format off
static const permissions TABLE[] = {
    //                                           reads         writes        network            starts drives
    { duty::PRINTS,    "--version, --licenses",  files::NAMED, files::NAMED, network::NONE,     false, false },
    { duty::COMPUTES,  "-p, and the tools",      files::NAMED, files::NAMED, network::NONE,     false, true },
    { duty::SERVES,    "the server of a model",  files::NAMED, files::NAMED, network::LISTENS,  false, true },
    { duty::ROUTES,    "the server of several",  files::NAMED, files::NAMED, network::ROUTES,   true,  true },
    // It reads and writes what somebody types, and never sees the weights: a process beside it does.
    { duty::CONVERSES, "--chat at the terminal", files::ALL,   files::ALL,   network::CONNECTS, false, false },
    { duty::ASKS,      "--server-base",          files::ALL,   files::ALL,   network::ANYWHERE, false, false },
    { duty::QUESTIONS, "--ask",                  files::NAMED, files::NAMED, network::CONNECTS, false, false },
    // It has conversations or states, in a folder that is all it may use (system/split-off.h).
    { duty::KEEPS,     "the server's keepers",   files::NAMED, files::NAMED, network::NONE,     false, false },
    // It computes for another machine, which it knows by standard input and output alone.
    { duty::WORKS,     "a worker of --on",       files::NAMED, files::NAMED, network::NONE,     false, false },
};
// clang-format on

namespace {

const char * const HANDED_DOWN = "PYLLAMAFILE_SANDBOX"; // to the router's processes

bool wanted = false, says_it = false;
named names;
const permissions * held = nullptr;
std::string line = "sandbox: off";

void say() {
    if (says_it) {
        fprintf(stderr, "%s\n", line.c_str());
    }
}

} // namespace

const permissions & permissions_of(duty what) {
    return TABLE[(int)what];
}

void sandbox_names(const named & of_command_line, bool aloud) {
    names = of_command_line;
    wanted = true;
    says_it = aloud;
}

void sandbox_is_off(const std::string & why, bool aloud) {
    line = "sandbox: off (" + why + ")";
    says_it = aloud;
    say();
#ifdef _WIN32
    _putenv_s(HANDED_DOWN, "off");
#else
    setenv(HANDED_DOWN, "off", 1);
#endif
}

bool sandbox_was_off() {
    return getenv(HANDED_DOWN) != nullptr;
}

void enter_sandbox(duty what, const std::vector<int> & ports,
                   const std::vector<std::string> & sockets) {
    if (wanted && held == nullptr) {
        names.ports = ports;
        names.sockets = sockets;
        held = &permissions_of(what);
        line = "sandbox: " + confine(*held, names);
        say();
    }
}

void tighten_sandbox() {
    if (held != nullptr && held->net == network::LISTENS) {
        confine_further(names);
    }
}

std::string sandbox_line() {
    return line;
}
