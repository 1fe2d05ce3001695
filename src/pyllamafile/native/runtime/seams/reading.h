// In front of upstream's server-common.cpp and server-context.cpp: what the file has read stands
// behind the system prompt of every conversation.
#pragma once

#include "json.h"

#include <string>

// The text; empty if there is none. Throws std::runtime_error if it can't be read.
const std::string & text_read();

// There will be none, in this process and those that it starts. Called before anything asks for it.
void read_nothing();

// Puts it into the messages of a request for a conversation.
void put_behind_system(common_json & body);

// Marks a request that is for no conversation, although it becomes one.
void keep_nothing_read(common_json & body);
