// In front of upstream's server-common.cpp: the last question of every conversation has the
// passages in front of it that fit it best, out of the documents of the file.
#pragma once

#include "json.h"

// There will be none, in this process and those that it starts. Called before anything asks.
void look_nothing_up();

// Throws std::runtime_error where the documents of the file can't be read.
void check_documents();

// Puts them into the messages of a request for a conversation. Throws std::invalid_argument where
// the request says nonsense of them.
void put_passages_in(common_json & body);
