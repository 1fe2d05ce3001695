// --prove: the file is asked on this machine whether it does what it should, and reports.
#pragma once

#include "arguments.h"
#include "container.h"

#include <string>

// The flag that chooses it.
extern const char PROVE[];

// Tries everything, and prints a report, with --json behind the flag as JSON. `program` is the
// runtime's own. Returns the exit code: 0 if all holds. Throws std::runtime_error where the words
// are wrong, or the file has no model to do it with.
int prove(const container & file, const std::string & program, const arguments & words);

// A process of its: what somebody would try who has taken over the server, in its sandbox or
// without one. Nothing if the words don't ask for that.
bool is_trespasser(const arguments & words);
int trespass(const std::string & program, const arguments & words);
