// What the systems do each in their own way: the command line, the standard streams, and where
// the program's own file is.
#pragma once

#include "arguments.h"

#include <string>

// Makes the standard streams alike everywhere; called before anything is printed.
void prepare_streams();

// Whether all that was printed got where it should; says so if it didn't.
bool flushed();

// The arguments behind the program's name, in UTF-8.
arguments command_line(int argc, char ** argv);

// The path of the running program, or empty where the system can't tell.
std::string own_path();
