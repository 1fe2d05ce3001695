// The folder that programs are unpacked into.
#pragma once

#include <string>

// Where states are kept (states.h): beside the folder that the program was unpacked into, or else
// where it would be. Empty if there is no place.
std::string state_folder_of(const std::string & program);

// The same for the weights that workers of other machines are sent (machines/tensors.h), and what
// the files in that folder are called, complete and while they are written.
std::string tensor_folder_of(const std::string & program);
bool is_tensor(const std::string & name);
bool is_draft_of_tensor(const std::string & name);

// And for what was measured of this machine (machines/speed.h); their names end so.
std::string speed_folder_of(const std::string & program);
const char SPEED_RECORD[] = ".speed";

// And for what was found out about its GPUs (gpu/findings.h), with what they are called there.
std::string gpu_folder_of(const std::string & program);
const char GPU_RECORD[] = ".gpu";
bool is_finding(const std::string & name);

// Removes all states, all such weights, what was measured and what was found, and from the folder
// of the running program what llamafiles unpacked there before and what is not running now, but not
// the program itself; says what it did. Returns the exit code.
int clean_cache(const std::string & program);
