// In front of upstream's server-common.cpp: which tools a conversation may or has to call.
#pragma once

#include "json.h"

#include <string>

// What OpenAI's `tool_choice` in a request comes to for upstream, which knows "none", "auto" and
// "required". `tools` keeps those alone that it allows, and a tool that it names is called once.
// Throws std::invalid_argument if it names one that isn't there.
std::string choose_tools(common_json & body, common_json & tools);
