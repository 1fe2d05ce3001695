#include "bounds.h"

#include "arg.h"
#include "common.h"
#include "fit.h"
#include "system/memory.h"
#include "system/threads.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
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

// A batch of a text to embed that any machine has room for.
const long ANY_BATCH = 8192; // tokens

std::string gib(double bytes) {
    char text[40];
    snprintf(text, sizeof(text), "%.1f GiB", bytes / (1 << 30));
    return text;
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

// What contexts and their batches take, beside the weights.
struct memory_need {
    double bytes, free; // 0 free ones: unknown
    uint32_t trained;   // tokens of context

    bool fits() const {
        return free <= 0 || bytes <= free;
    }
};

// What the arguments need, without computing anything; false where upstream doesn't say.
bool estimate(const arguments & args, const flag_table & flags, int tool, memory_need & out) {
    common_params params;
    if (!parse(args, flags, tool, params)) {
        return false;
    }
    if (params.n_parallel < 1) {
        params.n_parallel = 4; // as the server does
        params.kv_unified = true;
    }
    const auto model = common_model_params_to_llama(params);
    const auto context = common_context_params_to_llama(params);
    std::vector<ggml_backend_dev_t> devices;
    uint32_t layers = 0, experts = 0;
    common_device_memory_data_vec needs;
    llama_log_set([](enum ggml_log_level, const char *, void *) {}, nullptr);
    try {
        needs = common_get_device_memory_data(params.model.path.c_str(), &model, &context, devices,
                                              layers, out.trained, experts, GGML_LOG_LEVEL_NONE);
    } catch (const std::exception &) {
        // the tool will say why
    }
    llama_log_set(nullptr, nullptr);
    if (needs.empty()) {
        return false;
    }
    const auto & here = needs.back();
    out.bytes = (double)here.context + (double)here.compute;
    out.free = available_memory((double)here.free);
    return true;
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

void bound_batch(arguments & args, const flag_table & flags, int tool) {
    const size_t at = flags.find(args, { "-ub", "--ubatch-size" });
    const size_t other = flags.find(args, { "-b", "--batch-size" });
    if (at + 1 >= args.size() || other + 1 >= args.size() || args[at].from != origin::runtime) {
        return;
    }
    const long context = atol(args[at + 1].c_str());
    long tokens = context;
    for (memory_need need = {};
         tokens > ANY_BATCH && estimate(args, flags, tool, need) && !need.fits();) {
        tokens = std::max(tokens / 2, ANY_BATCH);
        args[at + 1] = args[other + 1] = std::to_string(tokens);
    }
    if (tokens < context) {
        fprintf(stderr,
                "note: the model's context has %ld tokens, but there is memory to embed texts of "
                "at most %ld\n",
                context, tokens);
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
    memory_need need;
    if (tokens >= WORTH_A_LOOK && estimate(args, flags, tool, need) && !need.fits()) {
        const std::string what = (given ? args[at] + " " : CONTEXT_VARIABLE + std::string("=")) +
                                 asked + ": a context of so many tokens takes " + gib(need.bytes) +
                                 " of memory, and " + gib(need.free) + " are free" +
                                 "; the model was trained on " + std::to_string(need.trained) +
                                 " tokens";
        given ? refuse(args[at], what) : throw std::runtime_error(what);
    }
}
