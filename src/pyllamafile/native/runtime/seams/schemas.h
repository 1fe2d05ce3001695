// In front of upstream's server-common.cpp: what a strict schema may not have.
#pragma once

#include "json.h"

// Throws std::invalid_argument, which names the keyword and where it is, for one that nothing here
// keeps to, and that OpenAI refuses in strict mode as well.
void refuse_unkept_keywords(const common_json & schema);
