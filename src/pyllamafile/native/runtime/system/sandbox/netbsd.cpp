// NetBSD has nothing that a program can confine itself with.

#include "system/sandbox/system.h"

std::string confine(const permissions &, const named &) {
    return "none (NetBSD has nothing for it)";
}

void confine_further(const named &) {}

bool sandbox_confines_files() {
    return false;
}
