// Whether this machine may have a GPU.
#pragma once

#include <string>

// What upstream has for naming devices by their numbers. It passes over processors that act as GPUs
// unless one is named so.
extern const char * const NAMED_GPUS;

// Why it has none that a program could use, in a few words; empty where it may have one. Loads no
// driver: it looks at files alone, for most machines have none.
std::string no_gpu_because();
