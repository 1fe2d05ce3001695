// Windows on arm64 runs the amd64 program by emulation; the native one in the same file is faster.
#pragma once

#include "container.h"

#include <optional>

// Whether the processor is another than this program was made for.
bool is_emulated();

// Runs the program that a llamafile has for `target`, with this program's command line, and
// returns its exit code; nothing where there is no such program, or it can't be unpacked or
// started: then this one does the work. It is kept in the user's cache under its SHA-256, and
// ends when this one does.
std::optional<int> hand_over(const container & llamafile, const std::string & target);
