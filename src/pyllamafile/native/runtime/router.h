// Several weights in one llamafile: adapters, a projector and a draft go with its first model, and
// the server offers models side by side.
#pragma once

#include "flags.h"

#include <string>

// Takes out of what `.args` say the weights that are for the file's first model, where another one
// was chosen, or all are offered, and those that the user has said otherwise. Their names begin
// with @.
void settle_partners(arguments & args, const flag_table & flags);

// Refuses adapters, a projector or a draft that are none; else `args` say all that llama.cpp has to
// know about them.
void check_partners(arguments & args, const flag_table & flags);

// Whether the server has to offer this file's models, for it has several and none was chosen.
bool offers_models(const arguments & args, const flag_table & flags);

// Makes upstream's router offer them, each in a process of its own that is started when somebody
// asks for it. Returns what to call them.
std::string offer_models(arguments & args, const flag_table & flags);

// Such a process: takes its mark out of the arguments; false if this is none.
bool is_routers_child(arguments & args);
