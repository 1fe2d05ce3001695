// The weights that workers were sent are kept on their machine, so that they are sent once.
#pragma once

#include <string>

// Before the sandbox: makes the folder, if there can be one that is this user's alone. Without it
// nothing is kept. Returns whether there is one.
bool keep_tensors_in(const std::string & folder);
