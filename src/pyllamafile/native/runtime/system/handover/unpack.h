// The programs that a file has beside the one that runs.
#pragma once

#include "manifest.h"

// The bytes of such a program, checked; empty where they are damaged. `own`: the path of this
// program, which the one for GPUs was compressed against.
std::string unpacked(const container & llamafile, const packed_program & program,
                     const std::string & own);
