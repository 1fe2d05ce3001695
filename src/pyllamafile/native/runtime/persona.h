// Who a llamafile says it is: its entry persona.json (launcher/FORMAT.md, section 9).
#pragma once

#include "container.h"

#include <string>

struct persona {
    std::string name;
    std::string greeting;
    std::string text; // all of it, for the web GUI's pages: a JSON object
};

// Empty, but for the text, where the file has none or one that is no JSON object.
persona persona_of(const container & own);
