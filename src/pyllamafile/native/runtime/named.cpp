#include "named.h"

#include "container.h"
#include "weights.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>

extern container own_container; // main.cpp

namespace {

// Behind these is a file or a folder that is written.
const flag_table::names WRITES = {
    "--log-file",
    "--log-prompts-dir",
    "--slot-save-path",
    "--prompt-cache",
    "--lookup-cache-dynamic",
    "-lcd",
    "--save-all-logits",
    "--kl-divergence-base",
    "--logits-output-dir",
    "-o",
    "--output",
    "--output-file",
};

struct opener {
    const char * flag;
    const char * variable;
};

// The model's tools, and other servers that the GUI uses.
const opener OPENERS[] = {
    { "--tools", "LLAMA_ARG_TOOLS" },
    { "--tools-runtime", "LLAMA_ARG_TOOLS_RUNTIME" },
    { "--agent", "LLAMA_ARG_AGENT" },
    { "-ag", nullptr },
    { "--mcp-servers-config", "LLAMA_ARG_MCP_SERVERS_CONFIG" },
    { "--mcp-servers-json", "LLAMA_ARG_MCP_SERVERS_JSON" },
    { "--ui-mcp-proxy", "LLAMA_ARG_UI_MCP_PROXY" },
    { "--webui-mcp-proxy", nullptr },
};

const char * const VIDEO = "--video"; // starts ffmpeg

// Options of llama-quantize that take a value.
const char * const QUANTIZER_VALUES[] = {
    "--imatrix",     "--include-weights",    "--exclude-weights",
    "--override-kv", "--output-tensor-type", "--prune-layers",
    "--tensor-type", "--tensor-type-file",   "--token-embedding-type",
};

bool exists(const std::string & path) {
    return !path.empty() && open_file(path) != nullptr;
}

std::string folder_of(const std::string & path) {
    const size_t slash = path.find_last_of("/\\");
    return slash == std::string::npos ? "." : path.substr(0, slash + 1);
}

// The other parts of a split model, which are named by its first: …-00001-of-00003.gguf.
void add_parts(const std::string & path, std::vector<std::string> & out) {
    const size_t of = path.rfind("-of-");
    if (of == std::string::npos || of < 6 || path[of - 6] != '-') {
        return;
    }
    const int count = atoi(path.c_str() + of + 4);
    for (int i = 1; i <= count && i <= 99999; i++) {
        char number[16];
        snprintf(number, sizeof(number), "-%05d", i);
        const std::string part = path.substr(0, of - 6) + number + path.substr(of);
        if (!exists(part)) {
            return;
        }
        out.push_back(part);
    }
}

// A name may be FILE, FILE@MEMBER, FILE:SCALE, or several of them with commas between.
void add_names(const std::string & value, std::vector<std::string> & out) {
    std::vector<std::string> candidates = { value };
    for (size_t at = 0; at < value.size();) {
        const size_t end = std::min(value.find(',', at), value.size());
        std::string one = value.substr(at, end - at);
        one.erase(std::remove(one.begin(), one.end(), '"'), one.end());
        candidates.push_back(one);
        candidates.push_back(one.substr(0, one.rfind(':')));
        at = end + 1;
    }
    for (const std::string & candidate : candidates) {
        const std::string path = candidate.empty() ? "" : file_of_weights(candidate);
        if (exists(path)) {
            out.push_back(path);
            add_parts(path, out);
        }
    }
}

// A folder of models often has links to where they are.
void add_links(const std::string & folder, std::vector<std::string> & out) {
    namespace fs = std::filesystem;
    std::error_code error;
    fs::recursive_directory_iterator entry(fs::u8path(folder), error);
    for (const fs::recursive_directory_iterator end; !error && entry != end;
         entry.increment(error)) {
        if (entry->is_symlink(error)) {
            out.push_back(entry->path().u8string());
        }
        if (entry.depth() > 0) { // the router looks no deeper
            entry.disable_recursion_pending();
        }
    }
}

// The models of a list for the router: whatever is the name of a file in there.
void add_preset(const std::string & path, std::vector<std::string> & out) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        const size_t equals = line.find('=');
        const size_t start =
            equals == std::string::npos ? equals : line.find_first_not_of(" \t\"", equals + 1);
        if (start != std::string::npos) {
            add_names(line.substr(start, line.find_last_not_of(" \t\r\"") + 1 - start), out);
        }
    }
}

void add_listed(const std::string & flag, const std::string & value,
                std::vector<std::string> & out) {
    if (flag == "--models-preset") {
        add_preset(value, out);
    } else if (flag == "--models-dir") {
        add_links(value, out);
    }
}

} // namespace

named files_named(const arguments & args, const flag_table & flags, bool own_flags) {
    named out;
    if (!own_container.path.empty()) {
        out.reads.push_back(own_container.path);
    }
    for (size_t i = 0; i < args.size(); i++) {
        if (own_flags) {
            add_names(args[i], out.reads);
            continue;
        }
        const size_t values = flags.values(args[i]);
        const bool writes = std::find_if(WRITES.begin(), WRITES.end(), [&](const char * flag) {
                                return args[i] == flag;
                            }) != WRITES.end();
        if (values == 1 && i + 1 < args.size() && writes && args[i].from != origin::file) {
            out.writes.push_back(args[i + 1]);
        } else if (values == 1 && i + 1 < args.size() && flags.names_file(args[i])) {
            if (writes) {
                fprintf(stderr,
                        "note: .args of this file may not write to %s; to allow it, give %s "
                        "yourself\n",
                        args[i + 1].c_str(), args[i].c_str());
            }
            add_names(args[i + 1], out.reads);
            add_listed(args[i], args[i + 1], out.reads);
        }
        i += values;
    }
    for (const auto & [flag, variable] : flags.variables_for_files()) {
        const char * value = getenv(variable.c_str());
        if (value == nullptr || own_flags) {
            continue;
        }
        const bool writes = std::find(WRITES.begin(), WRITES.end(), flag) != WRITES.end();
        if (writes) {
            out.writes.push_back(value);
        } else {
            add_names(value, out.reads);
        }
        add_listed(flag, value, out.reads);
    }
    return out;
}

// IN [OUT] FORMAT [THREADS], behind its options; without OUT, it writes beside IN.
void name_output_of_quantize(const arguments & args, named & names) {
    size_t at = 0;
    while (at < args.size() && args[at].compare(0, 2, "--") == 0) {
        const auto takes_value = [&](const char * flag) { return args[at] == flag; };
        at += std::any_of(std::begin(QUANTIZER_VALUES), std::end(QUANTIZER_VALUES), takes_value)
                  ? 2
                  : 1;
    }
    const auto is_number = [](const std::string & text) {
        return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
    };
    const bool has_output =
        at + 2 < args.size() && !(at + 3 == args.size() && is_number(args[at + 2]));
    if (at < args.size()) {
        names.writes.push_back(folder_of(args[has_output ? at + 1 : at]));
    }
}

std::string asks_for_no_sandbox(arguments & args, const flag_table & flags) {
    std::string asks;
    for (const opener & each : OPENERS) {
        if (flags.take(args, { each.flag }, origin::file)) {
            fprintf(stderr,
                    "note: %s in .args has no effect, for it lets the server use this machine; to "
                    "turn it on, say it yourself when you start the file\n",
                    each.flag);
        }
        const char * value = each.variable != nullptr ? getenv(each.variable) : nullptr;
        const std::string set = value != nullptr ? value : "";
        if (asks.empty() &&
            (flags.has(args, { each.flag }) ||
             (!set.empty() && set != "0" && set != "false" && set != "off" && set != "disabled"))) {
            asks = each.flag;
        }
    }
    if (flags.has(args, { VIDEO }, origin::user)) {
        return asks.empty() ? VIDEO : asks;
    }
    if (flags.has(args, { VIDEO })) {
        fprintf(stderr,
                "note: .args of this file have %s, which the sandbox does not let work; to allow "
                "it, give it yourself\n",
                VIDEO);
    }
    return asks;
}
