#include "flags.h"

#include "arg.h"
#include "common.h"

#include <algorithm>
#include <filesystem>

namespace {

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
        const auto status = std::filesystem::status(std::filesystem::u8path(value), ignored);
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

const flag_table::flag * flag_table::look_up(const std::string & name) const {
    const auto found = known.find(spelled(name));
    return found == known.end() ? nullptr : &found->second;
}

size_t flag_table::values(const std::string & name) const {
    const flag * found = look_up(name);
    return found == nullptr ? 0 : found->values;
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
        const flag * found = look_up(args[i]);
        const bool others =
            found != nullptr && !found->tools.empty() && found->tools.count(tool) == 0;
        if (others && args[i].from == origin::file) {
            args.erase(args.begin() + i, args.begin() + end);
        } else {
            i = end;
        }
    }
}

void flag_table::check(arguments & args, int tool) const {
    common_params params;
    const auto options = common_params_parser_init(params, (llama_example)tool).options;
    for (size_t i = 0; i < args.size();) {
        const word & arg = args[i];
        const flag * found = look_up(arg);
        if (found == nullptr) {
            const bool weights = arg.size() > 5 && arg.compare(arg.size() - 5, 5, ".gguf") == 0;
            refuse(arg, "unknown argument: " + arg +
                            (weights ? " (weights are given as -m " + arg + ")"
                                     : " (--help and --help-all list what there is)"));
        }
        if (!found->tools.empty() && found->tools.count(tool) == 0) {
            refuse(arg, arg + " means nothing in this mode (--help lists the modes)");
        }
        if (args.size() - i - 1 < found->values) {
            refuse(arg, arg + " needs a value");
        }
        for (const common_arg & option : options) {
            const auto is_it = [&](const char * name) { return arg == name; };
            if (found->values == 1 && option.value_hint != nullptr &&
                std::any_of(option.args.begin(), option.args.end(), is_it)) {
                const std::string refused = refusal(option, args[i + 1]);
                if (!refused.empty()) {
                    refuse(arg, arg + " " + args[i + 1] + ": " + refused);
                }
            }
        }
        i += 1 + found->values;
    }
}
