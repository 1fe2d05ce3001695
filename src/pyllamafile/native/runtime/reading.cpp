// What stands in front of every conversation: a system prompt, and what the file has read.

#include "seams/reading.h"

#include "own.h"
#include "system/system.h"

#include <cstdlib>
#include <stdexcept>

namespace {

const char * const ENTRY = ".read";
const uint64_t MOST = 16 << 20; // bytes; llamafile.py has the same limit

// The router's processes and that of a chat inherit these.
const char * const SWITCH = "PYLLAMAFILE_READ";
const char * const SYSTEM = "PYLLAMAFILE_SYSTEM";

// A client that says so itself has it so.
const char * const NOTHING = "pyllamafile_nothing_in_front";

bool is_text(const std::string & bytes) {
    try {
        common_json(bytes).dump(); // it writes UTF-8 alone
        return bytes.find('\0') == std::string::npos;
    } catch (const std::exception &) {
        return false;
    }
}

std::string text_of_file() {
    const container * zip = own_contents(SWITCH);
    const entry * member = zip != nullptr ? zip->find(ENTRY) : nullptr;
    if (member == nullptr || member->size == 0) {
        return {};
    }
    const std::string text = member->size <= MOST ? zip->content(*member) : "";
    if (text.empty() || !is_text(text)) {
        throw std::runtime_error(std::string(ENTRY) + " of this file " +
                                 (text.empty() ? "can't be read" : "is no text in UTF-8") +
                                 " (--no-read leaves it out)");
    }
    return text;
}

std::string & system_prompt() {
    static std::string text = [] {
        const char * said = getenv(SYSTEM);
        return std::string(said != nullptr ? said : "");
    }();
    return text;
}

std::string & own_prompt() {
    static std::string text;
    return text;
}

bool is_system(const common_json & message) {
    return message.is_object() && message.contains("role") &&
           (message.at("role") == "system" || message.at("role") == "developer");
}

} // namespace

void read_nothing() {
    leave_out(SWITCH);
}

const std::string & text_read() {
    static const std::string text = text_of_file();
    return text;
}

void give_system_prompt(const std::string & text) {
    system_prompt() = text;
    set_variable(SYSTEM, text);
}

bool wants_nothing_in_front(const common_json & body) {
    return body.contains(NOTHING) && body.at(NOTHING) == true;
}

void give_own_prompt(const std::string & text) {
    own_prompt() = text;
}

bool put_in_front(common_json & body) {
    const bool wanted = !wants_nothing_in_front(body);
    body.erase(NOTHING);
    if (!wanted || !body.contains("messages") || !body.at("messages").is_array()) {
        return false;
    }
    common_json & messages = body.at("messages");
    const std::string & text = text_read();
    if (messages.empty() || !is_system(messages.front())) {
        const std::string & prompt = system_prompt();
        const std::string both = prompt + (prompt.empty() || text.empty() ? "" : "\n\n") + text;
        if (!both.empty()) {
            common_json all = common_json::array();
            all.push_back({ { "role", "system" }, { "content", both } });
            all.insert(messages);
            body["messages"] = all;
        }
        return true;
    }
    common_json & system = messages.front();
    common_json content = system.contains("content") ? system.at("content") : common_json();
    const bool own =
        content.is_string() && !own_prompt().empty() && content.get<std::string>() == own_prompt();
    if (text.empty()) {
        return own;
    }
    if (content.is_string()) {
        const std::string prompt = content.get<std::string>();
        system["content"] = prompt.empty() ? text : prompt + "\n\n" + text;
    } else if (content.is_array()) {
        content.push_back({ { "type", "text" }, { "text", text } });
        system["content"] = content;
    } else if (content.is_null()) {
        system["content"] = text;
    } // what is none of these is refused by who reads it next
    return own;
}

void keep_nothing_in_front(common_json & body) {
    body[NOTHING] = true;
}
