#include "inputs.h"

#include "common.h"
#include "text.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace {

enum class kind { PROMPT, BYTES, SYSTEM, TEXT, KEYS };

struct input {
    const char * names[2];
    const char * now;      // takes the text itself
    const char * variable; // that names a file, if there is one
    kind is;
};

const input INPUTS[] = {
    { { "-f", "--file" }, "-p", nullptr, kind::PROMPT },
    { { "-bf", "--binary-file" }, "-p", nullptr, kind::BYTES },
    { { "-sysf", "--system-prompt-file" }, "-sys", nullptr, kind::SYSTEM },
    { { "--grammar-file" }, "--grammar", nullptr, kind::TEXT },
    { { "-jf", "--json-schema-file" }, "-j", nullptr, kind::TEXT },
    { { "--chat-template-file" }, "--chat-template", "LLAMA_ARG_CHAT_TEMPLATE_FILE", kind::TEXT },
    { { "--ui-config-file", "--webui-config-file" },
      "--ui-config",
      "LLAMA_ARG_UI_CONFIG_FILE",
      kind::TEXT },
    { { "--api-key-file" }, "--api-key", "LLAMA_ARG_API_KEY_FILE", kind::KEYS },
};

// Whether llama.cpp will read escapes in the prompt, and whether somebody has asked for that.
enum class escapes { BY_DEFAULT, ASKED, NONE };

escapes escapes_in(const arguments & args, const flag_table & flags) {
    const size_t with = flags.find(args, { "-e", "--escape" });
    const size_t without = flags.find(args, { "--no-escape" });
    if (with == args.size() && without == args.size()) {
        return escapes::BY_DEFAULT;
    }
    return without == args.size() || (with < args.size() && with > without) ? escapes::ASKED
                                                                            : escapes::NONE;
}

// Written so that reading its escapes brings the text back; the program's arguments end at a zero
// byte.
std::string escaped(const std::string & text, bool backslashes) {
    std::string out;
    for (const char c : text) {
        if (c == '\0') {
            out += "\\x00";
        } else {
            out += c;
            out += c == '\\' && backslashes ? "\\" : "";
        }
    }
    return out;
}

std::string trimmed(const std::string & line) {
    const char * const blank = " \t\r";
    const size_t start = std::min(line.find_first_not_of(blank), line.size());
    return line.substr(start, line.find_last_not_of(blank) + 1 - start);
}

// One key a line, without empty lines and comments, as values with commas between them.
std::string keys_in(const std::string & text) {
    std::string out;
    for (size_t at = 0; at < text.size();) {
        const size_t end = std::min(text.find('\n', at), text.size());
        const std::string key = trimmed(text.substr(at, end - at));
        at = end + 1;
        if (key.empty() || key[0] == '#') {
            continue;
        }
        std::string quoted;
        for (const char c : key) {
            quoted += c == '"' ? "\"\"" : std::string(1, c);
        }
        out += (out.empty() ? "\"" : ",\"") + quoted + "\"";
    }
    return out;
}

// Values with commas between them, as llama.cpp reads them.
std::vector<std::string> values_in(const std::string & csv) {
    std::vector<std::string> out(1);
    bool quoted = false;
    for (size_t i = 0; i < csv.size(); i++) {
        if (csv[i] == '"' && quoted && i + 1 < csv.size() && csv[i + 1] == '"') {
            out.back() += csv[i++];
        } else if (csv[i] == '"' && (quoted || out.back().empty())) {
            quoted = !quoted;
        } else if (csv[i] == ',' && !quoted) {
            out.emplace_back();
        } else {
            out.back() += csv[i];
        }
    }
    return out;
}

// Why no client can send one of the keys; empty if all can be sent. A header's value has neither
// blanks around it nor control characters in it (RFC 9110, section 5.5).
std::string wrong_with_keys(const std::string & csv) {
    for (const std::string & key : values_in(csv)) {
        if (key.empty()) {
            return "the key is empty, so the server would answer everybody";
        }
        const auto is_control = [](unsigned char c) { return c < ' ' || c == 0x7F; };
        if (trimmed(key) != key || std::any_of(key.begin(), key.end(), is_control)) {
            return "no client can send a key with blanks around it or control characters in it";
        }
    }
    return {};
}

std::string content_of(const input & from, const std::string & path, escapes how, bool whole) {
    const bool prompt = from.is == kind::PROMPT || from.is == kind::BYTES;
    std::string text = from.is == kind::BYTES ? read_bytes(path) : read_text(path);
    if ((from.is == kind::SYSTEM || (from.is == kind::PROMPT && !whole)) && !text.empty() &&
        text.back() == '\n') {
        text.pop_back(); // every editor puts one there
    }
    const bool zeros = text.find('\0') != std::string::npos;
    if (prompt && how != escapes::NONE) {
        text = escaped(text, how == escapes::BY_DEFAULT);
    } else if (zeros) {
        throw std::runtime_error(path + ": is no text: it has a zero byte" +
                                 (prompt ? " (leave out --no-escape for that)" : ""));
    }
    return from.is == kind::KEYS ? keys_in(text) : text;
}

} // namespace

void read_inputs(arguments & args, const flag_table & flags, int tool) {
    const bool whole = tool == LLAMA_EXAMPLE_TOKENIZE; // the last line feed is a token, too
    const escapes how = escapes_in(args, flags);
    for (const input & from : INPUTS) {
        const char * path = from.variable != nullptr ? getenv(from.variable) : nullptr;
        if (path != nullptr && flags.knows(tool, from.now)) {
            args.insert(args.begin(), { from.names[0], path });
        }
    }
    for (size_t i = 0; i + 1 < args.size(); i += 1 + flags.values(args[i])) {
        for (const input & from : INPUTS) {
            if (args[i] != from.names[0] &&
                (from.names[1] == nullptr || args[i] != from.names[1])) {
                continue;
            }
            try {
                args[i + 1] = content_of(from, args[i + 1], how, whole);
            } catch (const std::exception & problem) {
                refuse(args[i], args[i] + " " + problem.what());
            }
            if (from.is == kind::KEYS && args[i + 1].empty()) {
                refuse(args[i], args[i] + ": the file has no key in it, so the server would "
                                          "answer everybody");
            }
            args[i] = from.now;
            break;
        }
    }
}

void check_outputs(const arguments & args, const flag_table & flags) {
    namespace fs = std::filesystem;
    for (size_t i = 0; i + 1 < args.size(); i += 1 + flags.values(args[i])) {
        if (args[i] == "--log-file" || args[i] == "--prompt-cache") {
            const fs::path file = fs::u8path((const std::string &)args[i + 1]);
            std::error_code error;
            if (file.has_parent_path() && !fs::is_directory(file.parent_path(), error)) {
                refuse(args[i], args[i] + " " + args[i + 1] + ": there is no such folder");
            }
        }
    }
}

void check_keys(const arguments & args, const flag_table & flags) {
    for (size_t i = 0; i + 1 < args.size(); i += 1 + flags.values(args[i])) {
        const std::string wrong = args[i] == "--api-key" ? wrong_with_keys(args[i + 1]) : "";
        if (!wrong.empty()) {
            refuse(args[i], args[i] + ": " + wrong);
        }
    }
    const char * key = getenv("LLAMA_API_KEY");
    const std::string wrong = key != nullptr ? wrong_with_keys(key) : "";
    if (!wrong.empty()) {
        throw std::runtime_error("LLAMA_API_KEY: " + wrong);
    }
}
