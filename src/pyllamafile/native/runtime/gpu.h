// Whether a GPU is used, in a program that can use one; in the others all this is nothing.
#pragma once

#include "arguments.h"
#include "system/sandbox.h"

#include <string>

enum class gpus {
    AUTO,  // where there is one, and its driver computes rightly
    OFF,   // no driver comes into any process
    NEEDED // or nothing is done
};

#ifdef RUNTIME_HAS_GPU

// By --gpu. Holds for the processes that this one starts as well.
void choose_gpus(gpus choice);
gpus chosen_gpus();

// What starts the trial: the program, --llamafile FILE, this, and the name of weights or nothing.
extern const char * const TRY_GPUS;

// Tries the GPUs in a process of its own, which a driver may end, or hold up: a little work with
// the types of these weights, if any are named. False where none is to be used: says why in one
// line, but where the machine has no GPU. Throws std::runtime_error with that line where one is
// NEEDED. `program`: this one's. `llamafile`: what has the shaders.
bool try_gpus(const std::string & program, const std::string & llamafile,
              const std::string & weights);

// After that trial: what the drivers take of the sandbox.
void allow_drivers(named & names);

// That process: its exit status.
int trial_of_gpus(const arguments & user);

// Tells ggml of the GPUs, after that trial, in the process that loads the model: once it is in its
// sandbox. Nothing where there was none, or it has failed.
void use_gpus();

// The same, and prints them as llama.cpp does.
void list_gpus();

#else

inline void allow_drivers(named &) {}
inline void use_gpus() {}

#endif
