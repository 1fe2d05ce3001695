#include "arguments.h"

#include "text.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <stdexcept>

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

void refuse(const word & about, const std::string & wrong) {
    throw std::runtime_error((about.from == origin::file ? ".args of this file: " : "") + wrong);
}

std::string spelled(std::string flag) {
    if (flag.compare(0, 2, "--") == 0) {
        std::replace(flag.begin(), flag.end(), '_', '-');
    }
    return flag;
}

arguments parse_args_file(const std::string & text) {
    arguments out;
    std::string current;
    bool in_word = false; // '' is a word too
    size_t at = 0;
    while (at < text.size()) {
        const char c = text[at];
        if (is_space(c)) {
            if (in_word) {
                out.emplace_back(current, origin::file);
                current.clear();
                in_word = false;
            }
            at++;
        } else if (c == '#' && !in_word) {
            at = std::min(text.find('\n', at), text.size());
        } else if (c == '\'') {
            in_word = true;
            const size_t end = std::min(text.find('\'', at + 1), text.size());
            current += text.substr(at + 1, end - at - 1);
            at = std::min(end + 1, text.size());
        } else if (c == '"') {
            in_word = true;
            at++;
            while (at < text.size() && text[at] != '"') {
                if (text[at] == '\\' && at + 1 < text.size()) {
                    current += escape(text, ++at);
                } else if (text[at] == '$') {
                    current += variable(text, at);
                } else {
                    current += text[at++];
                }
            }
            at++;
        } else if (c == '\\' && at + 1 < text.size()) {
            in_word = true;
            current += text[at + 1];
            at += 2;
        } else if (c == '$') {
            in_word = true;
            current += variable(text, at);
        } else {
            in_word = true;
            current += c;
            at++;
        }
    }
    if (in_word) {
        out.emplace_back(current, origin::file);
    }
    return out;
}

arguments arguments_in(const container & zip) {
    const uint64_t most = 1 << 20; // bytes
    const entry * member = zip.find(".args");
    if (member == nullptr || member->size == 0) {
        return {};
    }
    if (member->size > most) {
        throw std::runtime_error(zip.path + ": its .args are larger than 1 MiB");
    }
    const std::string text = zip.content(*member);
    if (text.empty()) {
        throw std::runtime_error(zip.path + ": its .args are damaged: they can't be unpacked");
    }
    return parse_args_file(as_text(text));
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
