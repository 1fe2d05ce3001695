// In front of upstream's server-common.cpp and server-context.cpp: every conversation has the
// system prompt that the server was given, unless it has its own, and behind that what the file has
// read.
#pragma once

#include "json.h"

#include <string>

// The text that the file has read; empty if there is none. Throws std::runtime_error if it is none.
const std::string & text_read();

// There will be none, in this process and those that it starts. Called before anything asks for it.
void read_nothing();

// The system prompt of conversations that come without one, in this process and those that it
// starts.
void give_system_prompt(const std::string & text);

// That a client has this as its system prompt says that the client is one of the server's own.
void give_own_prompt(const std::string & text);

// Puts both into the messages of a request for a conversation. Whether all that stands in front of
// them is the server's then, and not this one client's.
bool put_in_front(common_json & body);

// Whether a request is marked so.
bool wants_nothing_in_front(const common_json & body);

// Marks a request that is for no conversation, although it becomes one.
void keep_nothing_in_front(common_json & body);
