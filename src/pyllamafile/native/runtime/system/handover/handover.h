// Another program in the file may do the work better than this one: it is unpacked once, and this
// process becomes it.
#pragma once

#include "arguments.h"
#include "container.h"
#include "gpu/choice.h"

#include <functional>
#include <optional>
#include <string>

struct started {
    const container & llamafile;
    const std::string & program; // this one's own
    const arguments & user;      // behind the file
    bool told;                   // which file it is for: by its first two arguments
    std::function<gpu_use()> use_of_gpu;
};

// Hands over to the first program of the table that is wanted, with this one's command line.
// Nothing where none is wanted or in the file, or where it can't be unpacked or started, which a
// line says: then this program does the work. On Windows the other one is a child, which ends when
// this one does: its exit code. Throws std::runtime_error where only that program could do what is
// asked for.
std::optional<int> hand_over(const started & here);
