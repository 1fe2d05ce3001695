#include "arguments.h"

#include "arg.h"
#include "common.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>

namespace {

bool is_space(char c) {
    return c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\f' || c == '\v';
}

bool is_name(char c) {
    return isalnum((unsigned char)c) || c == '_';
}

// Reads $NAME or ${NAME} at `at`, which stands on the dollar sign; a dollar sign that starts
// neither stands for itself.
std::string variable(const std::string & text, size_t & at) {
    const bool braces = at + 1 < text.size() && text[at + 1] == '{';
    size_t end = at + (braces ? 2 : 1);
    const size_t start = end;
    while (end < text.size() && is_name(text[end])) {
        end++;
    }
    if (end == start || (braces && (end == text.size() || text[end] != '}'))) {
        return std::string(1, text[at++]);
    }
    const char * value = getenv(text.substr(start, end - start).c_str());
    at = end + (braces ? 1 : 0);
    return value != nullptr ? value : "";
}

// Reads up to `most` digits of a number in an escape.
int digits(const std::string & text, size_t & at, int base, int most) {
    int value = 0;
    for (int i = 0; i < most && at < text.size(); i++, at++) {
        const char c = (char)tolower((unsigned char)text[at]);
        const int digit = c >= '0' && c <= '9'   ? c - '0'
                          : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                                 : base;
        if (digit >= base) {
            break;
        }
        value = value * base + digit;
    }
    return value;
}

// Reads an escape of C at `at`, which stands behind the backslash.
char escape(const std::string & text, size_t & at) {
    static const char letters[] = "a\ab\be\033f\fn\nr\rt\tv\v";
    const char c = text[at];
    if (c >= '0' && c <= '7') {
        return (char)digits(text, at, 8, 3);
    }
    at++;
    if (c == 'x') {
        return (char)digits(text, at, 16, 2);
    }
    for (const char * letter = letters; *letter != '\0'; letter += 2) {
        if (c == *letter) {
            return letter[1];
        }
    }
    return c;
}

} // namespace

arguments parse_args_file(const std::string & text) {
    arguments out;
    std::string word;
    bool in_word = false; // '' is a word too
    size_t at = 0;
    while (at < text.size()) {
        const char c = text[at];
        if (is_space(c)) {
            if (in_word) {
                out.push_back(word);
                word.clear();
                in_word = false;
            }
            at++;
        } else if (c == '#' && !in_word) {
            at = std::min(text.find('\n', at), text.size());
        } else if (c == '\'') {
            in_word = true;
            const size_t end = std::min(text.find('\'', at + 1), text.size());
            word += text.substr(at + 1, end - at - 1);
            at = std::min(end + 1, text.size());
        } else if (c == '"') {
            in_word = true;
            at++;
            while (at < text.size() && text[at] != '"') {
                if (text[at] == '\\' && at + 1 < text.size()) {
                    word += escape(text, ++at);
                } else if (text[at] == '$') {
                    word += variable(text, at);
                } else {
                    word += text[at++];
                }
            }
            at++;
        } else if (c == '\\' && at + 1 < text.size()) {
            in_word = true;
            word += text[at + 1];
            at += 2;
        } else if (c == '$') {
            in_word = true;
            word += variable(text, at);
        } else {
            in_word = true;
            word += c;
            at++;
        }
    }
    if (in_word) {
        out.push_back(word);
    }
    return out;
}

arguments merge_args(arguments own, const arguments & user) {
    size_t at = 0;
    while (at < own.size() && own[at] != "...") {
        at++;
    }
    if (at < own.size()) {
        own.erase(own.begin() + at);
    }
    own.insert(own.begin() + at, user.begin(), user.end());
    return own;
}

flag_table::flag_table() {
    for (const llama_example tool :
         { LLAMA_EXAMPLE_SERVER, LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_PERPLEXITY,
           LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_TOKENIZE }) {
        common_params params;
        for (const common_arg & option : common_params_parser_init(params, tool).options) {
            const size_t values = option.value_hint_2 != nullptr ? 2
                                  : option.value_hint != nullptr ? 1
                                                                 : 0;
            for (const auto & names : { option.args, option.args_neg }) {
                for (const char * name : names) {
                    known[name].values = values;
                    known[name].tools.insert(tool);
                }
            }
        }
    }
}

size_t flag_table::values(const std::string & name) const {
    if (name == "--url-prefix" || name == "--gpu") {
        return 1; // Mozilla's, see main.cpp
    }
    const auto found = known.find(name);
    return found == known.end() ? 0 : found->second.values;
}

arguments flag_table::meant_for(int tool, const arguments & args) const {
    arguments out;
    for (size_t i = 0; i < args.size();) {
        const size_t end = std::min(i + 1 + values(args[i]), args.size());
        const auto found = known.find(args[i]);
        if (found == known.end() || found->second.tools.count(tool) > 0) {
            out.insert(out.end(), args.begin() + i, args.begin() + end);
        }
        i = end;
    }
    return out;
}

size_t flag_table::find(const arguments & args, std::initializer_list<const char *> flags) const {
    size_t found = args.size();
    for (size_t i = 0; i < args.size(); i += 1 + values(args[i])) {
        for (const char * flag : flags) {
            if (args[i] == flag) {
                found = i;
            }
        }
    }
    return found;
}

bool flag_table::has(const arguments & args, std::initializer_list<const char *> flags) const {
    return find(args, flags) < args.size();
}
