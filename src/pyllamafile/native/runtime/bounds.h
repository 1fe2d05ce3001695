// What was asked for, held against what the machine has: said at once, and not after half a minute.
#pragma once

#include "flags.h"

// More threads than the machine has processors become as many, with a line.
void bound_threads(arguments & args, const flag_table & flags);

// Where the batch was chosen here to hold all of the model's context, it becomes as small as the
// memory needs it to be, with a line.
void bound_batch(arguments & args, const flag_table & flags, int tool);

// Refuses a context that needs more memory than there is. `args` name the weights; `tool` is a
// llama_example.
void bound_context(arguments & args, const flag_table & flags, int tool);
