// What the systems do each in their own way: the command line, the standard streams, and where
// the program's own file is.
#pragma once

#include "arguments.h"

#include <string>

// Makes the standard streams alike everywhere; called before anything is printed.
void prepare_streams();

// On Windows a double click opens a window that closes with the program, and with it what the
// program said last. After the first of these the window waits for Enter, unless the second was
// called. In a window of somebody else's, and on other systems, neither does anything.
void window_waits();
void window_may_close();

// Whether all that was printed got where it should; says so if it didn't.
bool flushed();

// A process of number 1, which a container's first one is, ends on no signal that it has no handler
// for (pid_namespaces(7)): gives it one, until the tools have theirs. No matter on Windows.
void prepare_signals();
void end_at_once(int signal);

// The arguments behind the program's name, in UTF-8.
arguments command_line(int argc, char ** argv);

// A variable of the environment, for this process and those that it starts.
void set_variable(const char * name, const std::string & value);
void unset_variable(const char * name);

// The path of the running program, or empty where the system can't tell.
std::string own_path();
