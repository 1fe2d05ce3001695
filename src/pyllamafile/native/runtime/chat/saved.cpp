#include "chat/saved.h"

#include <algorithm>
#include <map>
#include <string>
#include <vector>

using json = nlohmann::ordered_json;

namespace {

std::string text_of(const json & object, const char * key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

bool is_message(const json & message) {
    return message.is_object() && message.contains("content") && message.contains("role") &&
           message["role"].is_string();
}

// What goes with a message, as the GUI sends it: pictures, and the texts of files.
json content_with(const json & message) {
    const std::string text = text_of(message, "content");
    std::string texts = text;
    json parts = json::array();
    for (const json & extra : message.value("extra", json::array())) {
        if (!extra.is_object()) {
            continue;
        }
        const std::string kind = text_of(extra, "type"), picture = text_of(extra, "base64Url"),
                          content = text_of(extra, "content");
        if (!picture.empty()) {
            parts.push_back({ { "type", "image_url" }, { "image_url", { { "url", picture } } } });
        } else if (!content.empty()) {
            texts += "\n\n--- " + std::string(kind == "PDF" ? "PDF File" : "File") + ": " +
                     text_of(extra, "name") + " ---\n" + content;
        }
    }
    if (parts.empty()) {
        return texts;
    }
    parts.push_back({ { "type", "text" }, { "text", texts } });
    return parts;
}

json message_of(const json & kept) {
    json out = { { "role", kept["role"] }, { "content", content_with(kept) } };
    const std::string thought = text_of(kept, "reasoningContent"),
                      call = text_of(kept, "toolCallId");
    const json calls = json::parse(text_of(kept, "toolCalls"), nullptr, false);
    if (!thought.empty()) {
        out["reasoning_content"] = thought;
    }
    if (!call.empty()) {
        out["tool_call_id"] = call;
    }
    if (calls.is_array() && !calls.empty()) {
        out["tool_calls"] = calls;
    }
    return out;
}

// The way from the root of the tree to the message that was shown last.
json branch_of(const json & conv, const json & kept) {
    std::map<std::string, const json *> known;
    for (const json & message : kept) {
        if (!is_message(message)) {
            return nullptr;
        }
        known[text_of(message, "id")] = &message;
    }
    std::vector<const json *> way;
    for (auto at = known.find(text_of(conv, "currNode"));
         at != known.end() && way.size() < known.size(); // a ring has no root
         at = known.find(text_of(*at->second, "parent"))) {
        way.push_back(at->second);
    }
    json out = json::array();
    for (auto message = way.rbegin(); message != way.rend(); ++message) {
        const bool answered = text_of(**message, "role") != "assistant" ||
                              !text_of(**message, "content").empty() ||
                              !text_of(**message, "toolCalls").empty();
        if (text_of(**message, "type") != "root" && answered) {
            out.push_back(message_of(**message));
        }
    }
    return out;
}

} // namespace

json messages_of(const json & saved) {
    const json found = saved.is_object() ? saved.value("messages", json()) : saved;
    if (!found.is_array()) {
        return nullptr;
    }
    if (saved.is_object() && saved.contains("conv") && saved["conv"].is_object()) {
        return branch_of(saved["conv"], found);
    }
    return std::all_of(found.begin(), found.end(), is_message) ? found : json();
}
