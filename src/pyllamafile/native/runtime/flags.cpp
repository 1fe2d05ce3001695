#include "flags.h"

#include "arg.h"
#include "common.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <stdexcept>

namespace {

const char NO_NUMBER[] = "not a number that it can take";

// Whether an option takes a number; a word, such as auto, it may take as well.
enum class number { NONE, WHOLE, REAL };

// std::stoi and its family begin their messages with their names.
bool is_conversion(const std::string & what) {
    return what.compare(0, 3, "sto") == 0;
}

number number_of(const common_arg & option) {
    if (option.handler_int != nullptr) {
        return number::WHOLE;
    }
    common_params scratch;
    try {
        if (option.handler_string != nullptr) {
            option.handler_string(scratch, "x");
        }
    } catch (const std::exception & problem) {
        const std::string what = problem.what();
        const bool real = what.compare(0, 4, "stof") == 0 || what.compare(0, 4, "stod") == 0;
        return !is_conversion(what) ? number::NONE : real ? number::REAL : number::WHOLE;
    }
    return number::NONE;
}

// Whether a text is a number from its beginning to its end.
bool is_number(const std::string & text, number kind) {
    if (kind == number::WHOLE) {
        const size_t digits = text[0] == '-' || text[0] == '+' ? 1 : 0;
        return digits < text.size() && text.find_first_not_of("0123456789", digits) == text.npos;
    }
    char * end = nullptr;
    const double value = strtod(text.c_str(), &end);
    return end == text.c_str() + text.size() && std::isfinite(value);
}

// Upstream takes what a text begins with, so that 0,5 would be 0; and it takes nan.
bool is_half_a_number(const common_arg & option, const std::string & text) {
    char * end = nullptr;
    strtod(text.c_str(), &end);
    const bool begins_as_one = end != text.c_str() && end[0] != '\0';
    const bool is_one = end != text.c_str() && end[0] == '\0';
    if (!begins_as_one && !is_one) {
        return false;
    }
    const number kind = number_of(option);
    return kind != number::NONE && !is_number(text, kind);
}

// The lines of a message as one: behind the first there may be the reason.
std::string one_line(const std::string & message) {
    std::string out;
    for (const char c : message.substr(0, message.find_last_not_of(" \n") + 1)) {
        out += c == '\n' ? ' ' : c;
    }
    return out;
}

// What llama.cpp says to the value of an option, in one line; empty if it takes it.
std::string refusal(const common_arg & option, const std::string & value, bool files) {
    static const std::set<std::string> READ = {
        "-f",     "-bf", "--grammar-file", "-jf", "-sysf", "--chat-template-file", "--api-key-file",
        "--image"
    };
    static const std::set<std::string> FOLDERS = { "--slot-save-path", "--media-path" };
    const std::string hint = option.value_hint;
    if (hint == "FNAME" || hint == "FILE" || hint == "PATH") {
        // a look only: who reads a pipe twice finds it empty
        std::error_code ignored;
        const auto status = std::filesystem::status(std::filesystem::u8path(value), ignored);
        if (files && FOLDERS.count(option.args[0]) > 0) {
            return std::filesystem::is_directory(status) ? ""
                   : std::filesystem::exists(status)     ? "is no folder"
                                                         : "there is no such folder";
        }
        if (!files || READ.count(option.args[0]) == 0 || value == "-") {
            return {};
        }
        return !std::filesystem::exists(status)        ? "no such file"
               : std::filesystem::is_directory(status) ? "is a directory"
                                                       : "";
    }
    if (option.args[0] == std::string("--dry-sequence-breaker")) {
        return {}; // its handler takes note of being called
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
        return is_conversion(what) ? NO_NUMBER : one_line(what);
    }
    return is_half_a_number(option, value) ? NO_NUMBER : "";
}

// 4k is 4096 where a whole number is expected.
std::string spelled_out(const common_arg & option, const std::string & value) {
    const std::string digits = value.substr(0, value.empty() ? 0 : value.size() - 1);
    const bool kilo = !digits.empty() && digits.size() < 7 && tolower(value.back()) == 'k' &&
                      option.handler_int != nullptr && is_number(digits, number::WHOLE);
    return kilo ? std::to_string(std::stoll(digits) * 1024) : value;
}

// FNAME, FILE, PATH, DIR, FNAME:SCALE,..., and JINJA_TEMPLATE_FILE.
bool names_a_file(const common_arg & option) {
    const std::string hint = option.value_hint != nullptr ? option.value_hint : "";
    return hint.find("FNAME") != std::string::npos || hint.find("FILE") != std::string::npos ||
           hint == "PATH" || hint == "DIR";
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
                    known[name].file = names_a_file(option);
                    known[name].variable = option.env != nullptr ? option.env : "";
                }
            }
        }
    }
    for (const auto & [name, values] : ours) {
        known[name] = { values, {} };
    }
}

const flag_table::flag * flag_table::look_up(const std::string & name) const {
    const auto found = known.find(spelled(name));
    return found == known.end() ? nullptr : &found->second;
}

size_t flag_table::values(const std::string & name) const {
    const flag * found = look_up(name);
    return found == nullptr ? 0 : found->values;
}

bool flag_table::names_file(const std::string & name) const {
    const flag * found = look_up(name);
    return found != nullptr && found->file;
}

std::map<std::string, std::string> flag_table::variables_for_files() const {
    std::map<std::string, std::string> out;
    for (const auto & [name, flag] : known) {
        if (flag.file && !flag.variable.empty()) {
            out[name] = flag.variable;
        }
    }
    return out;
}

bool flag_table::knows(int tool, const std::string & name) const {
    const flag * found = look_up(name);
    return found != nullptr && (found->tools.empty() || found->tools.count(tool) > 0);
}

void flag_table::spell(arguments & args) const {
    for (size_t i = 0; i < args.size(); i += 1 + values(args[i])) {
        if (look_up(args[i]) != nullptr) {
            args[i] = spelled(args[i]);
        }
    }
}

size_t flag_table::find(const arguments & args, names flags, std::optional<origin> from) const {
    size_t found = args.size();
    for (size_t i = 0; i < args.size(); i += 1 + values(args[i])) {
        for (const char * flag : flags) {
            if (args[i] == flag && args[i].from == from.value_or(args[i].from)) {
                found = i;
            }
        }
    }
    return found;
}

bool flag_table::has(const arguments & args, names flags, std::optional<origin> from) const {
    return find(args, flags, from) < args.size();
}

std::string flag_table::value(const arguments & args, names flags, const char * variable,
                              const std::string & otherwise) const {
    const size_t at = find(args, flags);
    if (at + 1 < args.size()) {
        return args[at + 1];
    }
    const char * value = getenv(variable);
    return value != nullptr ? value : otherwise;
}

bool flag_table::take(arguments & args, names flags, std::optional<origin> from) const {
    bool found = false;
    for (size_t at; (at = find(args, flags, from)) < args.size(); found = true) {
        const size_t end = std::min(at + 1 + values(args[at]), args.size());
        args.erase(args.begin() + at, args.begin() + end);
    }
    return found;
}

void flag_table::leave_to_others(arguments & args, int tool) const {
    for (size_t i = 0; i < args.size();) {
        const size_t end = std::min(i + 1 + values(args[i]), args.size());
        const bool others = look_up(args[i]) != nullptr && !knows(tool, args[i]);
        if (others && args[i].from == origin::file) {
            args.erase(args.begin() + i, args.begin() + end);
        } else {
            i = end;
        }
    }
}

void flag_table::check(arguments & args, int tool, bool files) const {
    common_params params;
    const auto options = common_params_parser_init(params, (llama_example)tool).options;
    for (const common_arg & option : options) {
        const char * value = option.env != nullptr ? getenv(option.env) : nullptr;
        if (value != nullptr && is_half_a_number(option, value)) {
            throw std::runtime_error(std::string(option.env) + "=" + value + ": " + NO_NUMBER);
        }
    }
    for (size_t i = 0; i < args.size();) {
        const word & arg = args[i];
        const flag * found = look_up(arg);
        if (found == nullptr) {
            const bool weights = arg.size() > 5 && arg.compare(arg.size() - 5, 5, ".gguf") == 0;
            refuse(arg, "unknown argument: " + arg +
                            (weights ? " (weights are given as -m " + arg + ")"
                                     : " (--help and --help-all list what there is)"));
        }
        if (!knows(tool, arg)) {
            refuse(arg, arg + " means nothing in this mode (--help lists the modes)");
        }
        if (args.size() - i - 1 < found->values) {
            refuse(arg, arg + " needs a value");
        }
        for (const common_arg & option : options) {
            const auto is_it = [&](const char * name) { return arg == name; };
            if (found->values == 1 && option.value_hint != nullptr &&
                std::any_of(option.args.begin(), option.args.end(), is_it)) {
                args[i + 1] = spelled_out(option, args[i + 1]);
                const std::string refused = refusal(option, args[i + 1], files);
                if (!refused.empty()) {
                    refuse(arg, arg + " " + args[i + 1] + ": " + refused);
                }
            }
        }
        i += 1 + found->values;
    }
}
