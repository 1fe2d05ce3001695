// What the file has read: a text that stands behind the system prompt of every conversation.

#include "seams/reading.h"

#include "container.h"
#include "system/system.h"

#include <cstdlib>
#include <stdexcept>

extern container own_container; // main.cpp

namespace {

const char * const ENTRY = ".read";
const uint64_t MOST = 16 << 20; // bytes; llamafile.py has the same limit

// The router's processes and that of a chat inherit it.
const char * const SWITCH = "PYLLAMAFILE_READ";

// A client that says so itself has it so.
const char * const NOTHING_READ = "pyllamafile_nothing_read";

std::string text_of_file() {
    const char * said = getenv(SWITCH);
    container zip; // a process of the router knows its file by name only
    if ((said != nullptr && said == std::string("off")) || own_container.path.empty() ||
        !read_container(own_container.path, zip)) {
        return {};
    }
    const entry * member = zip.find(ENTRY);
    if (member == nullptr || member->size == 0) {
        return {};
    }
    const std::string text = member->size <= MOST ? zip.content(*member) : "";
    if (text.empty()) {
        throw std::runtime_error(std::string(ENTRY) + " of this file can't be read (--no-read "
                                                      "leaves it out)");
    }
    return text;
}

bool is_system(const common_json & message) {
    return message.is_object() && message.contains("role") &&
           (message.at("role") == "system" || message.at("role") == "developer");
}

} // namespace

void read_nothing() {
    set_variable(SWITCH, "off");
}

const std::string & text_read() {
    static const std::string text = text_of_file();
    return text;
}

void put_behind_system(common_json & body) {
    const bool wanted = !body.contains(NOTHING_READ) || body.at(NOTHING_READ) != true;
    body.erase(NOTHING_READ);
    const std::string & text = text_read();
    if (!wanted || text.empty() || !body.contains("messages") || !body.at("messages").is_array()) {
        return;
    }
    common_json & messages = body.at("messages");
    if (!messages.empty() && is_system(messages.front())) {
        common_json & system = messages.front();
        common_json content = system.contains("content") ? system.at("content") : common_json();
        if (content.is_string()) {
            const std::string prompt = content.get<std::string>();
            system["content"] = prompt.empty() ? text : prompt + "\n\n" + text;
        } else if (content.is_array()) {
            content.push_back({ { "type", "text" }, { "text", text } });
            system["content"] = content;
        } else if (content.is_null()) {
            system["content"] = text;
        }
        return; // what is none of these is refused by who reads it next
    }
    common_json all = common_json::array();
    all.push_back({ { "role", "system" }, { "content", text } });
    all.insert(messages);
    body["messages"] = all;
}

void keep_nothing_read(common_json & body) {
    body[NOTHING_READ] = true;
}
