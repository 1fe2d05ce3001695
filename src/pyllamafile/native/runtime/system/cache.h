// The folder that programs are unpacked into.
#pragma once

#include <string>

// Where states are kept (states.h): beside the folder that the program was unpacked into, or else
// where it would be. Empty if there is no place.
std::string state_folder_of(const std::string & program);

// Removes all states, and from the folder of the running program what llamafiles unpacked there
// before and what is not running now, but not the program itself; says what it did. Returns the
// exit code.
int clean_cache(const std::string & program);
