// The folder that programs are unpacked into.
#pragma once

#include <string>

// Removes from the folder of the running program what llamafiles unpacked there before and what
// is not running now, but not the program itself; says what it did. Returns the exit code.
int clean_cache(const std::string & program);
