// macOS: a profile of rules for the kernel, as sandbox-exec(1) takes them; the last rule that fits
// counts. It holds for every thread, for programs that are started, and can be set once.

#include "system/sandbox/system.h"

#include <climits>
#include <cstdint>
#include <cstdlib>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

// In libSystem, but no longer in a header: <sandbox.h> of macOS up to 10.7 has it with this type.
extern "C" int sandbox_init(const char * profile, uint64_t flags, char ** error);
extern "C" void sandbox_free_error(char * error);

namespace {

// Where people keep what is theirs. All else has to be readable for the system's own libraries.
const char * const PRIVATE[] = { "/Users", "/Volumes", "/private/var/root", "/private/tmp",
                                 "/private/var/folders" };

// The rules are about names without links.
std::string quoted(const std::string & path) {
    char whole[PATH_MAX];
    const std::string real = realpath(path.c_str(), whole) != nullptr ? whole : path;
    std::string out = "\"";
    for (const char c : real) {
        out += c == '"' || c == '\\' ? std::string("\\") + c : std::string(1, c);
    }
    return out + "\"";
}

// A file, or a folder with all that is below it.
std::string place(const std::string & path) {
    struct stat status;
    const bool folder = stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
    return std::string(folder ? " (subpath " : " (literal ") + quoted(path) + ")";
}

std::string folder_of(const std::string & path) {
    const std::string folder = path.substr(0, path.rfind('/') + 1);
    return folder.empty() ? "." : folder;
}

std::string profile(const permissions & may, const named & names) {
    std::string out = "(version 1)(allow default)(deny lsopen)(deny appleevent-send)"
                      "(deny process-exec*)";
    if (may.starts) {
        out += "(allow process-exec*" + place(names.program) + ")";
    } else {
        out += "(deny process-fork)";
    }
    if (may.reads == files::NAMED) {
        out += "(deny file-read-data";
        for (const char * path : PRIVATE) {
            out += std::string(" (subpath \"") + path + "\")";
        }
        out += ")(allow file-read-data" + place(names.program);
        for (const std::string & path : names.reads) {
            out += place(path);
        }
        for (const std::string & path : names.writes) {
            out += place(path);
        }
        out += ")";
    }
    if (may.writes == files::NAMED) {
        out +=
            "(deny file-write*)(allow file-write* (literal \"/dev/null\") (literal \"/dev/tty\")";
        for (const std::string & path : names.writes) {
            out += place(path);
        }
        for (const std::string & path : names.sockets) {
            out += place(folder_of(path));
        }
        out += ")";
    }
    if (may.net == network::NONE) {
        out += "(deny network*)";
    } else if (may.net != network::ANYWHERE) {
        out += "(deny network-outbound)";
        for (const int port : may.net == network::LISTENS ? std::vector<int>() : names.ports) {
            out +=
                "(allow network-outbound (remote tcp \"localhost:" + std::to_string(port) + "\"))";
        }
    }
    return out;
}

} // namespace

std::string confine(const permissions & may, const named & names) {
    for (const std::string & path : names.writes) {
        // a rule about a name that is not there yet could not be made of its real one
        const int file = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC | O_NOCTTY, 0666);
        if (file >= 0) {
            close(file);
        }
    }
    char * error = nullptr;
    if (sandbox_init(profile(may, names).c_str(), 0, &error) == 0) {
        return "a profile of macOS";
    }
    // One that the router has started is in the router's, and gets no other.
    const std::string why = error != nullptr ? error : "it is in one already";
    sandbox_free_error(error);
    return "no other (" + why + ")";
}

void confine_further(const named &) {}

bool sandbox_confines_files() {
    return true;
}
