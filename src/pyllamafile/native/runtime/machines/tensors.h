// The weights that workers were sent are kept on their machine, so that they are sent once.
#pragma once

#include <string>

// Before the sandbox: makes the folder, if there can be one that is this user's alone. Without it
// nothing is kept. Returns whether there is one.
bool keep_tensors_in(const std::string & folder);

// Before the sandbox: this machine may have the same weights itself, under this name (weights.h).
// Then those of their tensors that have the digest which is asked for are read from there. Where
// there are none, or none that make sense, nothing is.
void tensors_are_in(const std::string & weights);
