// One tool that has to be called, or some that may be: upstream takes "auto" for either.

#include "../seams/tool-choice.h"

#include <set>
#include <stdexcept>
#include <string>

namespace {

// OpenAI has the name inside "function", and in its responses beside the type.
std::string name_of(const common_json & tool) {
    const bool nested = tool.is_object() && tool.contains("function");
    const common_json & named = nested ? tool.at("function") : tool;
    if (!named.is_object() || !named.contains("name") || !named.at("name").is_string()) {
        throw std::invalid_argument("\"tool_choice\" has a function without a name");
    }
    return named.at("name").get<std::string>();
}

void keep_only(const std::set<std::string> & names, common_json & tools) {
    common_json kept = common_json::array();
    std::set<std::string> missing = names;
    if (tools.is_array()) {
        for (const auto & tool : tools) {
            const std::string name = name_of(tool);
            if (names.count(name) != 0) {
                kept.push_back(tool);
                missing.erase(name);
            }
        }
    }
    if (!missing.empty()) {
        throw std::invalid_argument(
            "\"tool_choice\" names a function that isn't among \"tools\": " + *missing.begin());
    }
    tools = kept;
}

} // namespace

std::string choose_tools(common_json & body, common_json & tools) {
    if (!body.contains("tool_choice") || body.at("tool_choice").is_null()) {
        return "auto";
    }
    const common_json choice = body.at("tool_choice");
    if (choice.is_string()) {
        return choice.get<std::string>();
    }
    const std::string type =
        choice.is_object() && choice.contains("type") && choice.at("type").is_string()
            ? choice.at("type").get<std::string>()
            : "";
    if (type == "function") {
        keep_only({ name_of(choice) }, tools);
        if (!body.contains("parallel_tool_calls")) {
            body["parallel_tool_calls"] = false;
        }
        return "required";
    }
    if (type == "allowed_tools") {
        const bool nested = choice.contains(type) && choice.at(type).is_object();
        const common_json & allowed = nested ? choice.at(type) : choice;
        std::set<std::string> names;
        if (allowed.contains("tools") && allowed.at("tools").is_array()) {
            for (const auto & tool : allowed.at("tools")) {
                names.insert(name_of(tool));
            }
        }
        keep_only(names, tools);
        const bool must = allowed.contains("mode") && allowed.at("mode") == "required";
        return names.empty() ? "none" : must ? "required" : "auto";
    }
    throw std::invalid_argument("\"tool_choice\" has a \"type\" that isn't supported: \"" + type +
                                "\"; there are \"function\" and \"allowed_tools\"");
}
