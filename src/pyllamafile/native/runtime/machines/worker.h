// A worker: this program on another machine, started there by ssh, where --on (machines.h) sent it.
#pragma once

#include "arguments.h"

#include <string>

// What only machines.cpp starts the program with: to be told where it is, and to work.
extern const char WHERE[];
extern const char WORK[];

// Computes for the program at the other end of standard input and output, confined, until they end.
// First it says in a line how much memory there is. Returns the exit code. `program`: its own.
int work(const std::string & program);
