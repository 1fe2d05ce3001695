// What each system does for sandbox.cpp: a file beside this one for each of them.
#pragma once

#include "system/sandbox.h"

// Whether it has the driver of a GPU: somebody else's library, which compiles for that GPU, and may
// do so for the processor.
inline bool has_driver(const permissions & may, const named & names) {
    return may.drives && names.gpu;
}

// Confines this process; returns by what, and what is missing.
std::string confine(const permissions & may, const named & names);

#ifdef _WIN32
// Lets a process of a low level of integrity write to a folder and below it. Does nothing where the
// file system has no such levels, and so needs nothing.
void open_to_low_integrity(const std::string & folder);
#endif

// Called of several threads, holds for all of them: no new sockets, and no new names for them.
void confine_further(const named & names);
