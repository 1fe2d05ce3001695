// This process's own llamafile, as far as it is wanted. What an option leaves out of it is left out
// in the processes that this one starts as well.
#pragma once

#include "container.h"

extern container own_container; // main.cpp; a process of the router knows its path alone

// Its directory, which a process of the router reads for that; null if there is no such file, or if
// the variable has left out what is asked for.
const container * own_contents(const char * variable);

// From here on, own_contents has nothing for this variable.
void leave_out(const char * variable);
