#include "bounds.h"

#include "arg.h"
#include "common.h"
#include "fit.h"
#include "system/threads.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <stdexcept>

namespace {

using names = flag_table::names;

struct {
    names flags;
    const char * variable;
} const THREADS[] = {
    { { "-t", "--threads" }, "LLAMA_ARG_THREADS" },
    { { "-tb", "--threads-batch" }, nullptr },
    { { "-td", "--threads-draft", "--spec-draft-threads" }, nullptr },
    { { "-tbd", "--threads-batch-draft", "--spec-draft-threads-batch" }, nullptr },
};

const names CONTEXT = { "-c", "--ctx-size" };
const char CONTEXT_VARIABLE[] = "LLAMA_ARG_CTX_SIZE";

// llama.cpp computes with a multiple of this, but takes batches of what was asked for, and aborts
// when a prompt has more tokens.
const long LEAST_CONTEXT = 256; // tokens

// Below this no context of a model that fits itself has ever been too large, and a look costs time.
const long WORTH_A_LOOK = 16384; // tokens

// By default, the conversations of a server share a pool of at most so many tokens, if -c allows.
const long POOL = 8192;
const long MOST_SLOTS = 4;

const names SLOTS = { "-np",
                      "--parallel",
                      "-kvu",
                      "--kv-unified",
                      "-no-kvu",
                      "--no-kv-unified",
                      "--kv-unified-per-slot" };
const char * const SLOT_VARIABLES[] = { "LLAMA_ARG_N_PARALLEL", "LLAMA_ARG_KV_UNIFIED",
                                        "LLAMA_ARG_NO_KV_UNIFIED",
                                        "LLAMA_ARG_KV_UNIFIED_PER_SLOT" };

std::string gib(double bytes) {
    char text[40];
    snprintf(text, sizeof(text), "%.1f GiB", bytes / (1 << 30));
    return text;
}

// Bytes that can be had without swapping, where the system says so (proc_meminfo(5)); else `most`.
double available(double most) {
#ifdef __linux__
    std::ifstream info("/proc/meminfo");
    std::string name, unit;
    for (double kib; info >> name >> kib; std::getline(info, unit)) {
        if (name == "MemAvailable:") {
            return std::min(most, kib * 1024);
        }
    }
#endif
    return most;
}

// What upstream's tool would make of the arguments.
bool parse(const arguments & args, const flag_table & flags, int tool, common_params & out) {
    arguments copy = args;
    flags.take(copy, { "--dry-sequence-breaker", "--log-file" }); // these remember
    std::vector<char *> argv = { const_cast<char *>("llamafile") };
    for (const word & arg : copy) {
        argv.push_back(const_cast<char *>(arg.c_str()));
    }
    argv.push_back(nullptr);
    return common_params_parse((int)argv.size() - 1, argv.data(), out, (llama_example)tool);
}

} // namespace

void bound_threads(arguments & args, const flag_table & flags) {
    const int most = processors();
    for (const auto & option : THREADS) {
        const size_t at = flags.find(args, option.flags);
        const char * variable = option.variable != nullptr ? getenv(option.variable) : nullptr;
        const bool given = at + 1 < args.size();
        const std::string asked = given ? args[at + 1] : variable != nullptr ? variable : "";
        if (most == 0 || atol(asked.c_str()) <= most) {
            continue;
        }
        fprintf(stderr, "note: %s %s: this machine has %d processors, so %d threads compute\n",
                given ? args[at].c_str() : option.variable, asked.c_str(), most, most);
        if (given) {
            args[at + 1] = std::to_string(most);
        } else {
            args.insert(args.begin(), { *option.flags.begin(), std::to_string(most) });
        }
    }
}

// Upstream promises the whole of -c to each of four slots, and ends all answers when their sum is
// more. Here -c is what each conversation has: there is a pool for several where they are small,
// and one slot where they are large. One client always has all of it, and others wait.
static void bound_slots(arguments & args, const flag_table & flags, long tokens) {
    bool chosen = flags.has(args, SLOTS);
    for (const char * variable : SLOT_VARIABLES) {
        chosen = chosen || getenv(variable) != nullptr;
    }
    if (tokens > 0 && !chosen) {
        const long slots = std::max(1L, std::min(MOST_SLOTS, POOL / tokens));
        const std::string pool = std::to_string(slots * tokens);
        args.insert(args.end(), { "-c", pool, "-np", std::to_string(slots), "--kv-unified",
                                  "--kv-unified-per-slot", std::to_string(tokens) });
    }
}

void bound_context(arguments & args, const flag_table & flags, int tool) {
    const size_t at = flags.find(args, CONTEXT);
    const char * variable = getenv(CONTEXT_VARIABLE);
    const bool given = at + 1 < args.size();
    const std::string asked = given ? args[at + 1] : variable != nullptr ? variable : "0";
    const long tokens = atol(asked.c_str());
    const bool in_batches = tool == LLAMA_EXAMPLE_COMPLETION || tool == LLAMA_EXAMPLE_MTMD;
    if (in_batches && tokens > 0 && tokens < LEAST_CONTEXT) {
        args.insert(args.end(), { "-c", std::to_string(LEAST_CONTEXT) });
    }
    if (tool == LLAMA_EXAMPLE_SERVER) {
        bound_slots(args, flags, tokens);
    }
    common_params params;
    if (tokens < WORTH_A_LOOK || !parse(args, flags, tool, params)) {
        return;
    }
    if (params.n_parallel < 1) {
        params.n_parallel = 4; // as the server does
        params.kv_unified = true;
    }
    const auto model = common_model_params_to_llama(params);
    const auto context = common_context_params_to_llama(params);
    std::vector<ggml_backend_dev_t> devices;
    uint32_t layers = 0, trained = 0, experts = 0;
    common_device_memory_data_vec needs;
    llama_log_set([](enum ggml_log_level, const char *, void *) {}, nullptr);
    try {
        needs = common_get_device_memory_data(params.model.path.c_str(), &model, &context, devices,
                                              layers, trained, experts, GGML_LOG_LEVEL_NONE);
    } catch (const std::exception &) {
        // the tool will say why
    }
    llama_log_set(nullptr, nullptr);
    if (needs.empty()) {
        return;
    }
    const auto & here = needs.back();
    const double wanted = (double)here.context + (double)here.compute;
    const double free = available((double)here.free);
    if (free > 0 && wanted > free) {
        const std::string what =
            (given ? args[at] + " " : CONTEXT_VARIABLE + std::string("=")) + asked +
            ": a context of so many tokens takes " + gib(wanted) + " of memory, and " + gib(free) +
            " are free" + "; the model was trained on " + std::to_string(trained) + " tokens";
        given ? refuse(args[at], what) : throw std::runtime_error(what);
    }
}
