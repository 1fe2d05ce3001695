// A worker: this program on another machine, started there by ssh, where --on (machines.h) sent it.
#pragma once

#include "arguments.h"

#include <string>

// What only machines.cpp starts the program with: to be told where it is, and to work.
extern const char WHERE[];
extern const char WORK[];

// How a worker is told of a file. ~ stands for the home of whoever it is there; of the letters, no
// shell makes anything else.
std::string in_hex(const std::string & path);

// Computes for the program at the other end of standard input and output, confined, until they end.
// First it says in a line how much memory there is, and how fast it computes with weights of a type
// (speed.h), if it is told of one. Returns the exit code. `program`: its own; `weights`: in_hex, of
// those that the other has; it may be that they are here as well.
int work(const std::string & program, const std::string & type, const std::string & weights);
