// What a llamafile is asked to do: by its `.args`, and by whoever starts it.
#pragma once

#include "flags.h"
#include "gpu/choice.h"
#include "machines/machines.h"
#include "weights.h"

#include <cstdint>
#include <string>

struct invocation {
    enum { WORK, VERSION, LICENSES, MANUAL, OPTIONS } wanted = WORK;

    flag_table flags; // by which the words are read
    arguments args;   // what the tool is given

    int (*tool)(int, char **) = nullptr; // upstream's, that does the work

    bool serves = false;         // the tool is the server
    bool converses = false;      // the tool talks to one of its own
    bool several = false;        // which offers the models of this file side by side
    bool routes = false;         // it starts a process for each model, of this file or of others
    bool browser = true;         // and opens one
    bool states = true;          // what the model remembers of a beginning is kept
    int grace = 0;               // seconds that running answers have once the server is to end
    bool scripted = false;       // standard output is the text and nothing else
    std::string model;           // what to call the weights
    struct weights weights = {}; // of the one model that there is
    struct machines machines;    // that compute as well
    arguments for_gpus;          // what the tool is given as well, if there is one
    bool may_use_gpu = false;    // it computes, and nothing says that no GPU is to

    bool logs = false;      // all that happens
    bool is_quiet = false;  // logs nothing but errors
    bool own_flags = false; // of the tool, which llama.cpp's table doesn't have
    std::string no_sandbox; // why there is none; empty if there is
};

// Reads both command lines; what is behind a flag of ours is looked for and checked. Throws
// std::runtime_error with one line, which says so if what is wrong is in `.args`.
invocation read_invocation(const arguments & own, const arguments & user);

// Of programs that can use a GPU: whether those are to be listed and nothing else is to be done,
// and whether one could do some of the work, or is to be listed.
bool lists_gpus(const invocation & asked);
bool wants_gpu(const invocation & asked);

// What it has to do with GPUs, before anything of it is begun. Throws the same.
gpu_use use_of_gpu(const arguments & own, const arguments & user);

// Whether a file could start with these words in its `.args`, in every mode that reads them. Throws
// the same. Weights and other files are not looked for.
void check_own(const arguments & own);
