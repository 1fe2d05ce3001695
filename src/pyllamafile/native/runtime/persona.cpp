#include "persona.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdint>

namespace {

const uint64_t MOST = 4u << 20; // bytes; `build` writes less

// Without what would lead a terminal.
std::string text_of(const nlohmann::json & says, const char * key) {
    const auto found = says.find(key);
    std::string text = found != says.end() && found->is_string() ? found->get<std::string>() : "";
    const auto is_control = [](unsigned char c) { return (c < 0x20 && c != '\n') || c == 0x7f; };
    text.erase(std::remove_if(text.begin(), text.end(), is_control), text.end());
    return text;
}

} // namespace

persona persona_of(const container & own) {
    const entry * member = own.find("persona.json");
    const std::string text = member == nullptr || member->size > MOST ? "" : own.content(*member);
    const nlohmann::json says = nlohmann::json::parse(text, nullptr, false);
    if (!says.is_object()) {
        return { "", "", "{}" };
    }
    return { text_of(says, "name"), text_of(says, "greeting"), text };
}
