// OpenBSD: unveil(2) for files, pledge(2) for all else. They hold for every thread. A program that
// the router starts begins with neither, and confines itself as this one does.

#include "system/sandbox/system.h"

#include <cerrno>
#include <cstring>
#include <fcntl.h>
#include <unistd.h>

namespace {

const char * const SYSTEM[] = {
    "/dev/random",    "/dev/urandom",        "/dev/zero",     "/etc/hosts",
    "/etc/localtime", "/etc/resolv.conf",    "/etc/services", "/usr/share/locale",
    "/usr/share/nls", "/usr/share/zoneinfo",
};
const char * const DEVICES[] = { "/dev/null", "/dev/tty" };
// Where drivers of GPUs are, what they read, and what they are the drivers of.
const char * const DRIVERS[] = {
    "/etc/vulkan",    "/usr/X11R6/lib",   "/usr/X11R6/share", "/usr/lib",
    "/usr/local/lib", "/usr/local/share", "/usr/share/misc",  "/var/run/ld.so.hints",
};
const char * const GPUS[] = { "/dev/dri", "/dev/drm0" };

std::string folder_of(const std::string & path) {
    const std::string folder = path.substr(0, path.rfind('/') + 1);
    return folder.empty() ? "." : folder;
}

// False if one of them failed for another reason than that there is no such file.
bool show(const permissions & may, const named & names) {
    bool fine = true;
    const auto add = [&](const std::string & path, const char * rights) {
        fine = (unveil(path.c_str(), rights) == 0 || errno == ENOENT || errno == ENOTDIR) && fine;
    };
    for (const char * path : SYSTEM) {
        add(path, "r");
    }
    for (const char * path : DEVICES) {
        add(path, "rw");
    }
    for (const std::string & path : names.reads) {
        add(path, "r");
    }
    for (const std::string & path : names.writes) {
        add(path, "rwc");
    }
    for (const std::string & path : names.sockets) {
        add(folder_of(path), "rwc");
    }
    if (has_driver(may, names)) {
        for (const char * path : DRIVERS) {
            add(path, "r");
        }
        for (const std::string & path : names.drivers) {
            add(path, "r");
        }
        for (const char * path : GPUS) {
            add(path, "rw");
        }
    }
    if (may.starts) {
        add(names.program, "rx");
        add("/usr/libexec/ld.so", "r"); // the kernel reads it for a program that starts
    }
    return unveil(nullptr, nullptr) == 0 && fine;
}

// What is refused is an error ("error"); without that word it would end the program. Without
// "prot_exec" no memory becomes executable, and no library is loaded.
std::string promises(const permissions & may, const named & names) {
    std::string out = "error stdio rpath tty vminfo";
    if (may.writes == files::ALL || !names.writes.empty() || !names.sockets.empty()) {
        out += " wpath cpath flock";
    }
    if (may.net != network::NONE) {
        out += " inet"; // who may answer may also connect: pledge knows no difference
    }
    if (may.net == network::ANYWHERE) {
        out += " dns";
    }
    if (!names.sockets.empty()) {
        out += " unix";
    }
    if (has_driver(may, names)) {
        out += " drm prot_exec wpath"; // which files it may write, unveil says
    }
    return out + (may.starts ? " proc exec" : "");
}

} // namespace

std::string confine(const permissions & may, const named & names) {
    const bool unveiled = may.reads == files::NAMED && show(may, names);
    if (pledge(promises(may, names).c_str(), nullptr) != 0) {
        return std::string("none (pledge: ") + strerror(errno) + ")";
    }
    return unveiled || may.reads == files::ALL ? "pledge, unveil" : "pledge (unveil failed)";
}

void confine_further(const named & names) {
    permissions less = permissions_of(duty::SERVES);
    named bound = names;
    bound.sockets.clear(); // answers go through what is open
    std::string left = promises(less, bound);
    if (!names.sockets.empty()) {
        left += " unix";
    }
    pledge(left.c_str(), nullptr);
}

bool sandbox_confines_files() {
    return true;
}
