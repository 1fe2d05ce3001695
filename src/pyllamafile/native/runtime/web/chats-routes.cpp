// The conversations of the web GUI over HTTP: GET /chats lists them, and GET, POST and DELETE
// /chats/ID are for one of them. building/chats.js is who asks.

#include "../seams/chats-routes.h"

#include "keeper.h"

#include <nlohmann/json.hpp>

using json = nlohmann::json;

namespace {

const int DEEPEST = 100; // levels of objects and lists

server_http_res_ptr answer_with(const chat_answer & from) {
    auto answer = std::make_unique<server_http_res>();
    answer->status = from.status;
    answer->headers["Cache-Control"] = "no-store";
    if (!from.version.empty()) {
        answer->headers["ETag"] = "\"" + from.version + "\"";
    }
    answer->data = from.status == 200 ? from.body
                                      : json{
                                            { "error",
                                              { { "code", from.status },
                                                { "message", from.body },
                                                { "type", "invalid_request_error" } } }
                                        }.dump(-1, ' ', false, json::error_handler_t::replace);
    return answer;
}

std::string header_of(const server_http_req & request, const std::string & name) {
    for (const auto & [key, value] : request.headers) {
        if (key.size() == name.size() &&
            std::equal(key.begin(), key.end(), name.begin(),
                       [](char a, char b) { return tolower(a) == tolower(b); })) {
            return value;
        }
    }
    return "";
}

// What the conversation must be for it to be written; empty where the request doesn't say.
std::string expected_by(const server_http_req & request) {
    const std::string match = header_of(request, "If-Match");
    if (match.size() > 2 && match.front() == '"' && match.back() == '"') {
        return match.substr(1, match.size() - 2);
    }
    return header_of(request, "If-None-Match") == "*" ? chat_folder::ABSENT : "";
}

bool has_text(const json & object, const char * key) {
    const auto found = object.find(key);
    return found != object.end() && found->is_string();
}

// What is wrong with a conversation as the GUI exports it, {"conv": {…}, "messages": […]}; empty if
// nothing is.
std::string problem_of(const std::string & text, const std::string & id) {
    bool deep = false;
    const auto watch = [&deep](int depth, json::parse_event_t, json &) {
        deep |= depth > DEEPEST;
        return depth <= DEEPEST;
    };
    const json parsed = json::parse(text, watch, false);
    if (deep) {
        return "the conversation is nested too deeply";
    }
    if (!parsed.is_object() || parsed.size() != 2 || !parsed.contains("conv") ||
        !parsed.contains("messages") || !parsed["conv"].is_object() ||
        !parsed["messages"].is_array()) {
        return "a conversation is {\"conv\": {...}, \"messages\": [...]}";
    }
    if (!has_text(parsed["conv"], "id") || parsed["conv"]["id"] != id) {
        return "the conversation has another ID";
    }
    for (const json & message : parsed["messages"]) {
        if (!message.is_object() || !has_text(message, "id") || !has_text(message, "role") ||
            !has_text(message, "content") || !has_text(message, "convId") ||
            message["convId"] != id) {
            return "a message of the conversation has no id, role or content, or is of another one";
        }
    }
    return "";
}

// A page of another llamafile may still be open, which was served at this address before.
bool is_for_another(const server_http_req & request) {
    const std::string folder = request.get_param("folder");
    return !folder.empty() && folder != chats_name();
}

server_http_context::handler_t
checked(const std::function<chat_answer(const server_http_req &, const std::string &)> & handler) {
    return [handler](const server_http_req & request) -> server_http_res_ptr {
        const std::string id = request.get_param("id");
        try {
            return answer_with(
                is_for_another(request)
                    ? chat_answer{ 409, "", "the conversations here are of another llamafile" }
                : !is_chat_id(id) ? chat_answer{ 400, "", "no conversation has such an ID" }
                                  : handler(request, id));
        } catch (const std::exception & error) {
            return answer_with({ 500, "", error.what() });
        }
    };
}

chat_answer list(const server_http_req &) {
    chat_answer all = list_chats();
    if (all.status == 200) {
        all.body.insert(1, "\"folder\":\"" + chats_name() + "\",");
    }
    return all;
}

chat_answer write(const server_http_req & request, const std::string & id) {
    if (request.body.size() > chat_folder::LARGEST) {
        return { 413, "", "the conversation has more than 64 MiB" };
    }
    const std::string expected = expected_by(request);
    if (expected.empty()) {
        return { 428, "", "If-Match with a version is missing, or If-None-Match: *" };
    }
    const std::string problem = problem_of(request.body, id);
    return problem.empty() ? write_chat(id, expected, request.body)
                           : chat_answer{ 400, "", problem };
}

} // namespace

void chats_routes(const server_http_context & http) {
    if (!keeps_chats()) {
        return;
    }
    http.get("/chats", [](const server_http_req & request) { return answer_with(list(request)); });
    http.get("/chats/:id", checked([](const server_http_req &, const std::string & id) {
                 return read_chat(id);
             }));
    http.post("/chats/:id", checked(write));
    http.del("/chats/:id", checked([](const server_http_req &, const std::string & id) {
                 return erase_chat(id);
             }));
}
