// Flags of Mozilla's llamafile 0.6 to 0.10 that llama.cpp doesn't have, or has in another form: a
// file that was made for it starts.
#pragma once

#include "flags.h"

// How many values each takes.
std::map<std::string, size_t> former_flags();

// Gives a value to what took none, and one to what took two. Whoever counts values comes later.
void complete_former(arguments & args, const flag_table & flags);

// Puts what llama.cpp has in their place, and leaves out, with a line, what has no effect any more.
// `tool`: llama_example, or less than zero for one with a table of its own.
void translate_former(arguments & args, const flag_table & flags, int tool);
