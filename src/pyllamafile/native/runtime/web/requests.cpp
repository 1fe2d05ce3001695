// Whose fault an error is: clients repeat a request that ended in 500, and watchers take a server
// for ill.

#include "../seams/requests.h"

#include "json.h"

#include <cstdint>
#include <cstring>
#include <map>
#include <new>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

namespace {

// What upstream's exceptions say where a request was right; all of the server's router.
const char * const OWN[] = {
    "failed to ", "GetModuleFileNameW failed", "model limit reached",
    "timed out",  "request cancelled",         "subprocess is not enabled",
};

// Deeper than any client's, and not so deep that what walks through it would need a larger stack.
const int MOST_NESTED = 200;

// What fields are on every route that has them; upstream leaves out many that are anything else.
enum kinds { TEXT = 1, LIST = 2, OBJECT = 4, TOKENS = 8 };
const std::map<std::string, int> FIELDS = {
    { "chat_template_kwargs", OBJECT },
    { "grammar", TEXT },
    { "ids", LIST },
    { "input_extra", LIST },
    { "instructions", TEXT | LIST },
    { "json_schema", OBJECT },
    { "logit_bias", LIST | OBJECT },
    { "lora", LIST },
    { "messages", LIST },
    { "metadata", OBJECT },
    { "response_fields", LIST },
    { "response_format", TEXT | OBJECT }, // text: of transcriptions
    { "samplers", TEXT | LIST },
    { "stop", TEXT | LIST },
    { "system", TEXT | LIST },
    { "thinking", OBJECT },
    { "tokens", TOKENS },
    { "tool_choice", TEXT | OBJECT },
    { "tools", LIST },
};

// What takes a list, and what hands on whatever it gets.
const char * const NO_OBJECT[] = { "/lora-adapters", "/cors-proxy" };

bool is_tokens(const common_json & value) {
    if (!value.is_array()) {
        return false;
    }
    for (const auto & token : value) {
        if (!token.is_number_integer() || token.get<int64_t>() < 0 ||
            token.get<int64_t>() > INT32_MAX) {
            return false;
        }
    }
    return true;
}

bool is_one_of(int kinds, const common_json & value) {
    return ((kinds & TEXT) != 0 && value.is_string()) ||
           ((kinds & LIST) != 0 && value.is_array()) ||
           ((kinds & OBJECT) != 0 && value.is_object()) ||
           ((kinds & TOKENS) != 0 && is_tokens(value));
}

std::string said(int kinds) {
    std::string out;
    for (const auto & [kind, name] : { std::pair<int, const char *>{ TEXT, "a string" },
                                       { LIST, "a list" },
                                       { OBJECT, "an object" },
                                       { TOKENS, "a list of numbers of tokens" } }) {
        if ((kinds & kind) != 0) {
            out += (out.empty() ? "" : " or ") + std::string(name);
        }
    }
    return out;
}

void check_depth(const std::string & body) {
    int depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < body.size(); i++) {
        const char c = body[i];
        if (quoted) {
            i += c == '\\';
            quoted = c != '"';
        } else if (c == '"') {
            quoted = true;
        } else if (c == '[' || c == '{') {
            if (++depth > MOST_NESTED) {
                throw std::invalid_argument("the JSON is nested too deeply: more than " +
                                            std::to_string(MOST_NESTED) + " levels");
            }
        } else if (c == ']' || c == '}') {
            depth--;
        }
    }
}

} // namespace

bool web_is_own_fault(const std::exception & error) {
    if (dynamic_cast<const std::bad_alloc *>(&error) != nullptr ||
        dynamic_cast<const std::system_error *>(&error) != nullptr) {
        return true;
    }
    const char * what = error.what();
    for (const char * own : OWN) {
        if (strncmp(what, own, strlen(own)) == 0) {
            return true;
        }
    }
    return strncmp(what, "model name=", 11) == 0 && strstr(what, " failed to load") != nullptr;
}

void web_check_body(const std::string & path, const std::string & body) {
    check_depth(body);
    const common_json json = common_json::parse_no_throw(body);
    if (body.empty() || json.is_discarded()) {
        return; // some routes need none, and the others say what is wrong
    }
    if (!json.is_object()) {
        for (const char * other : NO_OBJECT) {
            const size_t length = strlen(other);
            if (path.size() >= length && path.compare(path.size() - length, length, other) == 0) {
                return;
            }
        }
        throw std::invalid_argument("the request isn't a JSON object");
    }
    for (const auto & [name, value] : json.items()) {
        const auto field = FIELDS.find(name);
        if (field != FIELDS.end() && !value.is_null() && !is_one_of(field->second, value)) {
            throw std::invalid_argument("\"" + name + "\" isn't " + said(field->second));
        }
    }
}
