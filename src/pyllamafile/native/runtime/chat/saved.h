// Saved conversations: what /save writes, and what the web GUI keeps and exports.
#pragma once

#include <nlohmann/json.hpp>

// The messages as /v1/chat/completions takes them; null where `saved` is no conversation. Of one of
// the GUI's, which is a tree, they are the branch that it showed last.
nlohmann::ordered_json messages_of(const nlohmann::ordered_json & saved);
