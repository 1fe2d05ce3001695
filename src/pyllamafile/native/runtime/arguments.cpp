#include "arguments.h"

#include "arg.h"
#include "common.h"

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <filesystem>

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

namespace {

// llama.cpp takes --no_mmap for --no-mmap.
std::string spelled(std::string name) {
    if (name.compare(0, 2, "--") == 0) {
        std::replace(name.begin(), name.end(), '_', '-');
    }
    return name;
}

// What llama.cpp says to the value of an option, in one line; empty if it takes it.
std::string refusal(const common_arg & option, const std::string & value) {
    static const std::set<std::string> READ = {
        "-f",     "-bf", "--grammar-file", "-jf", "-sysf", "--chat-template-file", "--api-key-file",
        "--image"
    };
    const std::string hint = option.value_hint;
    if (hint == "FNAME" || hint == "FILE" || hint == "PATH") {
        // a look only: who reads a pipe twice finds it empty
        std::error_code ignored;
        if (READ.count(option.args[0]) == 0 || value == "-") {
            return {};
        }
        const auto status = std::filesystem::status(value, ignored);
        return !std::filesystem::exists(status)        ? "no such file"
               : std::filesystem::is_directory(status) ? "is a directory"
                                                       : "";
    }
    common_params scratch;
    try {
        if (option.handler_int != nullptr) {
            option.handler_int(scratch, std::stoi(value));
        } else if (option.handler_string != nullptr) {
            option.handler_string(scratch, value);
        }
    } catch (const std::exception & problem) {
        const std::string what = problem.what();
        const bool number = what.compare(0, 3, "sto") == 0; // of std::stoi and its family
        return number ? "not a number that it can take" : what.substr(0, what.find('\n'));
    }
    return {};
}

} // namespace

flag_table::flag_table(const std::map<std::string, size_t> & ours) {
    for (const llama_example tool :
         { LLAMA_EXAMPLE_SERVER, LLAMA_EXAMPLE_COMPLETION, LLAMA_EXAMPLE_PERPLEXITY,
           LLAMA_EXAMPLE_CLI, LLAMA_EXAMPLE_TOKENIZE, LLAMA_EXAMPLE_MTMD }) {
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
    for (const auto & [name, values] : ours) {
        known[name] = { values, {} };
    }
}

void flag_table::tie(const std::string & name, const std::string & theirs) {
    known[name] = known[theirs];
}

const flag_table::flag * flag_table::look_up(const std::string & name) const {
    const auto found = known.find(spelled(name));
    return found == known.end() ? nullptr : &found->second;
}

size_t flag_table::values(const std::string & name) const {
    const flag * found = look_up(name);
    return found == nullptr ? 0 : found->values;
}

arguments flag_table::meant_for(int tool, const arguments & args) const {
    arguments out;
    for (size_t i = 0; i < args.size();) {
        const size_t end = std::min(i + 1 + values(args[i]), args.size());
        const flag * found = look_up(args[i]);
        if (found == nullptr || found->tools.empty() || found->tools.count(tool) > 0) {
            out.insert(out.end(), args.begin() + i, args.begin() + end);
        }
        i = end;
    }
    return out;
}

std::string flag_table::problem(int tool, const arguments & args) const {
    common_params params;
    const auto options = common_params_parser_init(params, (llama_example)tool).options;
    for (size_t i = 0; i < args.size();) {
        const std::string & arg = args[i];
        const flag * found = look_up(arg);
        if (found == nullptr) {
            const bool weights = arg.size() > 5 && arg.compare(arg.size() - 5, 5, ".gguf") == 0;
            return "unknown argument: " + arg +
                   (weights ? " (weights are given as -m " + arg + ")"
                            : " (--help and --help-all list what there is)");
        }
        if (!found->tools.empty() && found->tools.count(tool) == 0) {
            return arg + " means nothing in this mode (--help lists the modes)";
        }
        if (args.size() - i - 1 < found->values) {
            return arg + " needs a value";
        }
        for (const common_arg & option : options) {
            const auto is_it = [&](const char * name) { return spelled(arg) == name; };
            if (found->values == 1 && option.value_hint != nullptr &&
                std::any_of(option.args.begin(), option.args.end(), is_it)) {
                const std::string refused = refusal(option, args[i + 1]);
                if (!refused.empty()) {
                    return arg + " " + args[i + 1] + ": " + refused;
                }
            }
        }
        i += 1 + found->values;
    }
    return {};
}

size_t flag_table::find(const arguments & args, std::initializer_list<const char *> flags) const {
    size_t found = args.size();
    for (size_t i = 0; i < args.size(); i += 1 + values(args[i])) {
        for (const char * flag : flags) {
            if (spelled(args[i]) == flag) {
                found = i;
            }
        }
    }
    return found;
}

bool flag_table::has(const arguments & args, std::initializer_list<const char *> flags) const {
    return find(args, flags) < args.size();
}

bool flag_table::take(arguments & args, std::initializer_list<const char *> flags) const {
    bool found = false;
    for (size_t at; (at = find(args, flags)) < args.size(); found = true) {
        const size_t end = std::min(at + 1 + values(args[at]), args.size());
        args.erase(args.begin() + at, args.begin() + end);
    }
    return found;
}
