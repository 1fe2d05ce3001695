// The files that a command line names, which are all that the sandbox lets a process use.
#pragma once

#include "flags.h"
#include "system/sandbox.h"

// Of the tools with flags of their own, every word may be the name of a file. What `.args` name may
// be read but not written: they are of whoever made the file, and not of whoever runs it.
named files_named(const arguments & args, const flag_table & flags, bool own_flags);

// The folder that llama-quantize writes to.
void name_output_of_quantize(const arguments & args, named & names);

// The flag that asks for what the sandbox is against, if whoever runs the file has given one:
// programs, files or servers that nobody has named. In `.args` they have no effect: what opens the
// server to the machine is taken out, with a line.
std::string asks_for_no_sandbox(arguments & args, const flag_table & flags);
