// Whether a GPU is used, in a program that can use one; in the others all this is nothing.
#pragma once

#include "arguments.h"
#include "gpu/choice.h"
#include "system/sandbox.h"

#include <string>
#include <vector>

#ifdef RUNTIME_HAS_GPU

// What starts the trial: the program, --llamafile FILE, this, the work that is tried, and the
// numbers of devices, or none for all.
extern const char * const TRY_GPUS;

// Tries the GPUs in a process of its own, which a driver may end, or hold up: with a little work of
// the kinds that these weights make, if any are named. What was found is kept, so the next start
// tries nothing. False where none is to be used: says why in one line, but where the machine has no
// GPU. Throws std::runtime_error with that line where one is NEEDED. `program`: this one's.
// `llamafile`: what has the shaders. `to_list`: those that are slower than the processor, too.
bool try_gpus(const std::string & program, const std::string & llamafile,
              const std::vector<std::string> & weights, bool to_list);

// After that trial: what the drivers take of the sandbox. Where this process `starts` others of its
// program, that is linked with libraries, they take as much to start.
void allow_drivers(named & names, bool starts);

// For the router's processes: what the trial found, and options that they are given as well. In one
// of them: takes both over.
void hand_down_gpus(const arguments & more);
void take_over_gpus(arguments & args);

// For people, in one line, by what was found last: which one a start would use, or why none. Empty
// where nothing was tried. Loads no driver.
std::string last_trial_of_gpus(const std::string & program);

// That process: its exit status.
int trial_of_gpus(const arguments & user);

// Tells ggml of the GPUs, after that trial, in the process that loads the model: once it is in its
// sandbox. Nothing where there was none, or it has failed.
void use_gpus();

// The same, and prints them as llama.cpp does.
void list_gpus();

#else

inline void allow_drivers(named &, bool) {}
inline void take_over_gpus(arguments &) {}
inline std::string last_trial_of_gpus(const std::string &) {
    return "";
}
inline void use_gpus() {}

#endif
