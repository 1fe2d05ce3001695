// Several weights in one llamafile: adapters, a projector and a draft go with its first model, and
// the server offers models side by side.
#pragma once

#include "arguments.h"

#include <string>

// Takes out of the file's own arguments what is for its first model, where another one was chosen,
// or all are offered; and what the user has said otherwise. A value for it begins with @.
void settle_partners(arguments & own, const arguments & user, const flag_table & flags);

// What is wrong with the adapters, the projector or the draft in `args`, in one line; else empty,
// and `args` say all that llama.cpp has to know about them.
std::string check_partners(arguments & args, const flag_table & flags);

// Whether the server has to offer this file's models, for it has several and none was chosen.
bool offers_models(const arguments & args, const flag_table & flags);

// Makes upstream's router offer them, each in a process of its own that is started when somebody
// asks for it. Returns what to call them.
std::string offer_models(arguments & args, const flag_table & flags);

// Such a process: takes its mark out of the arguments; false if this is none.
bool is_routers_child(arguments & args);
