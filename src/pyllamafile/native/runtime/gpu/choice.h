// What --gpu says. It holds for the processes that this one starts as well.
#pragma once

#include <string>

enum class gpus {
    AUTO,  // where one computes rightly, and faster than the processor
    OFF,   // no driver comes into any process
    NEEDED // or nothing is done
};

// What --gpu calls the way to GPUs that this system has, "vulkan" or "metal", and what upstream
// calls the devices of it, before a number.
extern const char * const GPU_API;
extern const char * const GPU_DEVICE;

// The variable by which it holds.
extern const char * const GPU_VARIABLE;

// `name`: a part of what the needed one is called; empty for any.
void choose_gpus(gpus choice, const std::string & name = "");
gpus chosen_gpus();

// Whether a device may be the one: by a part of what its driver calls it, or by its name of
// upstream's.
bool is_chosen_gpu(const std::string & called, const std::string & upstreams);

// Says in a line why none is used. Throws that as std::runtime_error where one is needed.
void say_no_gpu(const std::string & why);

// What a start has to do with GPUs, by its command line.
enum class gpu_use {
    NONE,
    TELLS,   // what was found of them before
    COMPUTES // by one, if there is one; or lists them
};
