// FreeBSD: Capsicum (capsicum(4)). In capability mode nothing can be named any more: no file, no
// program, no process, no address. What is open goes on. So it comes when the weights are loaded,
// and only to those who name nothing later.

#include "system/sandbox/system.h"

// clang-format off
#include <sys/types.h>
#include <sys/capsicum.h>
#include <sys/procctl.h>
// clang-format on

#include <unistd.h>

namespace {

// A driver opens files when it compiles for its GPU.
bool names_later(const named & names) {
    return !names.writes.empty() || names.gpu;
}

} // namespace

std::string confine(const permissions & may, const named & names) {
    int argument = PROC_NO_NEW_PRIVS_ENABLE;
    procctl(P_PID, getpid(), PROC_NO_NEW_PRIVS_CTL, &argument);
    argument = PROC_TRACE_CTL_DISABLE; // nobody looks into it with a debugger, nor its children
    procctl(P_PID, getpid(), PROC_TRACE_CTL, &argument);
    if (may.net != network::LISTENS) {
        return "none (Capsicum is for the server of one model alone)";
    }
    return names.gpu            ? "none (Capsicum lets the driver of a GPU open no file)"
           : names_later(names) ? "none (Capsicum lets nothing be written by its name)"
                                : "Capsicum, when the weights are loaded";
}

void confine_further(const named & names) {
    if (!names_later(names)) {
        cap_enter();
    }
}

bool sandbox_confines_files() {
    return false;
}
