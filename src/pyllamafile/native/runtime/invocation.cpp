#include "invocation.h"

#include "arg.h"
#include "bounds.h"
#include "chat/conversation.h"
#include "common.h"
#include "container.h"
#include "former.h"
#include "gpu/devices.h"
#include "inputs.h"
#include "llama.h"
#include "manifest.h"
#include "named.h"
#include "router.h"
#include "seams/documents.h"
#include "seams/reading.h"
#include "system/cpu.h"
#include "system/system.h"
#include "system/threads.h"
#include "weights.h"

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

// upstream's tools
int llama_bench(int argc, char ** argv);
int llama_completion(int argc, char ** argv);
int llama_mtmd_main(int argc, char ** argv);
int llama_perplexity(int argc, char ** argv);
int llama_quantize(int argc, char ** argv);
int llama_server(int argc, char ** argv);
int llama_tokenize_main(int argc, char ** argv);

extern container own_container; // main.cpp

namespace {

using names = flag_table::names;

// Tools with a table of flags of their own: what `.args` says is not for them.
const int NO_COMMON_FLAGS = -1;

struct mode {
    const char * flag; // chooses it
    int (*tool)(int, char **);
    int flags;       // llama_example: whose flags it knows
    bool model;      // takes -m; the file's own weights are the default
    bool quiet;      // logs nothing but errors unless asked
    bool text;       // needs a text: -p or -f
    arguments first; // in front of what the user gave
};

enum { SERVE, CHAT, ASK, COMPLETE };
const mode MODES[] = {
    { "--server", llama_server, LLAMA_EXAMPLE_SERVER, true, true, false, {} },
    { "--chat", chat, LLAMA_EXAMPLE_CLI, true, true, false, {} },
    { "--ask", ask, LLAMA_EXAMPLE_CLI, true, true, true, { "--no-warmup" } },
    { "--cli",
      llama_completion,
      LLAMA_EXAMPLE_COMPLETION,
      true,
      true,
      false,
      { "-no-cnv", "--no-warmup" } },
    { "--completion", llama_completion, LLAMA_EXAMPLE_COMPLETION, true, false, false, {} },
    { "--perplexity", llama_perplexity, LLAMA_EXAMPLE_PERPLEXITY, true, false, true, {} },
    { "--tokenize", llama_tokenize_main, LLAMA_EXAMPLE_TOKENIZE, true, true, true, {} },
    { "--bench", llama_bench, NO_COMMON_FLAGS, true, false, false, {} },
    { "--quantize", llama_quantize, NO_COMMON_FLAGS, false, false, false, {} },
};

// What -p becomes with an image or a sound: a question, because only models for chats see or hear.
const mode LOOK = { "--image", llama_mtmd_main, LLAMA_EXAMPLE_MTMD, true, true, true, {} };

// Errors alone, as plain lines; not where the user asks for a log.
const arguments QUIET = { "-lv", "1", "--no-log-prefix", "--no-log-timestamps" };

// The flags that llama.cpp doesn't know, and how many values each takes.
std::map<std::string, size_t> our_flags() {
    std::map<std::string, size_t> out = former_flags();
    out.insert({ { "--gpu", 1 },
                 { "--help", 0 },
                 { "-h", 0 },
                 { "--usage", 0 },
                 { "--help-all", 0 },
                 { "--version", 0 },
                 { "--licenses", 0 },
                 { "--nobrowser", 0 },
                 { "--grace", 1 },
                 { "--on", 1 },
                 { "--split", 1 },
                 { "--chats", 1 },
                 { "--no-chats", 0 },
                 { "--no-documents", 0 },
                 { "--no-read", 0 },
                 { "--no-state", 0 },
                 { "--unsafe-no-sandbox", 0 },
                 { "--unsecure", 0 },
                 { "--allow-host", 1 },
                 { "--allow-origin", 1 },
                 { "--no-api-key", 0 } });
    for (const mode & known : MODES) {
        out[known.flag] = 0;
    }
    out[MODES[ASK].flag] = 1; // the question
    return out;
}

bool converses(const mode & chosen) {
    return chosen.tool == chat || chosen.tool == ask;
}

const names MODEL = { "-m", "--model" };
const names MEDIA = { "--image", "--audio", "--video" };
const names TEXT = { "-p", "--prompt", "-f", "--file", "-bf", "--binary-file" };
const names COMPARISON = { "--kl-divergence" }; // its text is in the file of logits
const names LOGITS = { "--kl-divergence-base", "--save-all-logits" };
const names OF_SERVER = { "--allow-host", "--allow-origin", "--no-api-key", "--chats",
                          "--no-chats" };
const names NO_SANDBOX = { "--unsafe-no-sandbox", "--unsecure" };
const names TEMPLATE = { "--chat-template", "--chat-template-file" };
const names HTTPS = { "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo" };
const names ELSEWHERE = { "-mu", "--model-url", "--models-dir", "--models-preset",
                          "--server-base" };

[[noreturn]] void fail(const std::string & wrong) {
    throw std::runtime_error(wrong);
}

std::string in_lower_case(std::string text) {
    for (char & c : text) {
        c = (char)tolower((unsigned char)c);
    }
    return text;
}

const names GPU_LAYERS = { "-ngl", "--gpu-layers", "--n-gpu-layers" };
const char GPU_LAYERS_VARIABLE[] = "LLAMA_ARG_N_GPU_LAYERS";

#ifdef RUNTIME_HAS_GPU
const names LIST = { "--list-devices" };
// clang-format off
const names OF_GPUS = {
    "-ngl", "--gpu-layers", "--n-gpu-layers",
    "-ngld", "--spec-draft-ngl", "--gpu-layers-draft", "--n-gpu-layers-draft",
    "-dev", "--device", "-devd", "--spec-draft-device", "--device-draft",
    "-sm", "--split-mode", "-ts", "--tensor-split", "-mg", "--main-gpu", "--list-devices",
};
// clang-format on

// llama.cpp warns of these options, or refuses them, until it knows of a GPU, which is later.
arguments take_for_gpus(arguments & args, const flag_table & flags) {
    arguments out;
    for (size_t at; (at = flags.find(args, OF_GPUS)) < args.size();) {
        const auto first = args.begin() + (std::ptrdiff_t)at;
        const auto last =
            first + (std::ptrdiff_t)std::min(1 + flags.values(*first), args.size() - at);
        out.insert(out.begin(), first, last);
        args.erase(first, last);
    }
    return out;
}

#else
// Many people give it by habit, and would wonder why nothing got faster.
void leave_out_gpus(arguments & args, const flag_table & flags) {
    const size_t layers = flags.find(args, GPU_LAYERS);
    if (layers + 1 < args.size() && args[layers + 1] != "0") {
        fprintf(stderr, "note: this runtime computes on the processor only; %s has no effect\n",
                args[layers].c_str());
    }
    flags.take(args, GPU_LAYERS);
}

// Where there is a program that can, this one has handed over to it, or said why not.
void need_no_gpu() {
    if (chosen_gpus() == gpus::NEEDED) {
        const std::string missing = no_gpu_because();
        say_no_gpu(missing.empty() ? "this file has no program for GPUs" : missing);
    }
}
#endif

void take_gpu_choice(arguments & args, const flag_table & flags) {
    const size_t gpu = flags.find(args, { "--gpu" });
    if (gpu < args.size()) {
        const std::string value = gpu + 1 < args.size() ? args[gpu + 1] : "";
        const std::string choice = in_lower_case(value);
        if (value.empty()) {
            refuse(args[gpu],
                   std::string("--gpu needs auto, off, ") + GPU_API + " or a part of a GPU's name");
        } else if (choice == "off" || choice == "disable" || choice == "disabled") {
            choose_gpus(gpus::OFF);
        } else if (choice == "auto") {
            choose_gpus(gpus::AUTO);
        } else {
            choose_gpus(gpus::NEEDED, choice == GPU_API ? "" : value);
        }
        flags.take(args, { "--gpu" });
    }
}

bool leaves_out_gpus(const arguments & args, const flag_table & flags) {
    return flags.value(args, GPU_LAYERS, GPU_LAYERS_VARIABLE) == "0" ||
           flags.value(args, { "-dev", "--device" }, "LLAMA_ARG_DEVICE") == "none";
}

// What no GPU computes anything of, although one could; empty where one may.
std::string without_gpus(const arguments & args, const flag_table & flags) {
    return flags.has(args, { "--on" }, origin::user) ? "a model over several machines"
           : flags.has(args, ELSEWHERE) && !flags.has(args, MODEL)
               ? "models that the server finds elsewhere"
               : "";
}

bool has_program_for_gpus() {
#ifdef RUNTIME_HAS_GPU
    return true;
#else
    return own_container.find(gpu_entry(RUNTIME_TARGET)) != nullptr;
#endif
}

// Nobody misses one where there is none.
void say_without_gpus(const std::string & what) {
    const bool misses = chosen_gpus() == gpus::AUTO && no_gpu_because().empty();
    if (chosen_gpus() == gpus::NEEDED || (misses && has_program_for_gpus())) {
        say_no_gpu("the processor alone computes " + what);
    }
}

// llama.cpp has some formats of chat by name, and takes the name for one only when it is told not
// to expect a template in Jinja, which is text with braces.
void name_chat_template(arguments & args, const flag_table & flags) {
    const size_t at = flags.find(args, { "--chat-template" });
    if (at + 1 >= args.size() || args[at + 1].find('{') != std::string::npos) {
        return;
    }
    const int count = llama_chat_builtin_templates(nullptr, 0);
    std::vector<const char *> known((size_t)count);
    llama_chat_builtin_templates(known.data(), known.size());
    std::string all;
    for (const char * name : known) {
        if (args[at + 1] == name) {
            args.insert(args.begin() + at, "--no-jinja");
            return;
        }
        all += std::string(all.empty() ? "" : ", ") + name;
    }
    refuse(args[at], "--chat-template " + args[at + 1] +
                         ": neither a template in Jinja nor one of llama.cpp's formats: " + all);
}

// A question is a prompt, for which a later -p or -f may stand in; - is standard input.
void become_prompt(arguments & args, size_t at) {
    if (at + 1 == args.size()) {
        refuse(args[at], args[at] + " needs a question: a text, or - for standard input");
    }
    args[at] = args[at + 1] == "-" ? "-f" : "-p";
}

// Takes the flags of modes out. Of several the last one counts, so that the user's wins over that
// of `.args`. Without any, and with --cli, the mode is what the arguments are good for; a text to
// complete is stronger than a server that only `.args` ask for.
struct choice {
    mode chosen;
    bool named;   // by a flag
    bool by_user; // who gave it
};

choice take_mode(arguments & args, const flag_table & flags) {
    const mode * named = nullptr;
    size_t last = 0;
    for (const mode & candidate : MODES) {
        const size_t at = flags.find(args, { candidate.flag });
        if (at < args.size() && (named == nullptr || at > last)) {
            named = &candidate;
            last = at;
        }
    }
    const bool by_user = named != nullptr && args[last].from == origin::user;
    if (named == &MODES[ASK]) {
        become_prompt(args, last);
    }
    for (const mode & candidate : MODES) {
        flags.take(args, { candidate.flag });
    }
    const bool text = flags.has(args, TEXT);
    const bool default_server = named == &MODES[SERVE] && !by_user;
    if (named != nullptr && named != &MODES[COMPLETE] && !(default_server && text)) {
        return { *named, true, by_user };
    }
    const mode & fitting = text && flags.has(args, MEDIA)       ? LOOK
                           : text                               ? MODES[COMPLETE]
                           : named == nullptr || default_server ? MODES[SERVE]
                                                                : MODES[CHAT];
    return { fitting, named != nullptr, by_user };
}

// What all that read a command line begin with.
choice begin(arguments & args, const flag_table & flags) {
    complete_former(args, flags);
    flags.spell(args);
    return take_mode(args, flags);
}

decltype(invocation::wanted) what_is_wanted(const choice & mode, const arguments & args,
                                            const flag_table & flags) {
    const bool help = flags.has(args, { "-h", "--help", "--usage" });
    return flags.has(args, { "--version" })            ? invocation::VERSION
           : flags.has(args, { "--licenses" })         ? invocation::LICENSES
           : help && !mode.named                       ? invocation::MANUAL
           : help || flags.has(args, { "--help-all" }) ? invocation::OPTIONS
                                                       : invocation::WORK;
}

bool computes(const mode & chosen, const arguments & args, const flag_table & flags) {
    return chosen.model && chosen.tool != llama_tokenize_main &&
           !flags.has(args, { "--server-base" });
}

// Leaves out what `.args` say and the mode can't make use of: --port is for the server alone. Of
// tools with flags of their own nobody knows which; but a `.args` that names one is meant for it,
// and the model is a matter of the file. Nor do other weights talk as this file's do.
void leave_out_for(const choice & mode, arguments & args, const flag_table & flags) {
    if (mode.chosen.flags != NO_COMMON_FLAGS) {
        flags.leave_to_others(args, mode.chosen.flags);
    } else if (mode.by_user) {
        arguments kept;
        const size_t at = flags.find(args, MODEL, origin::file);
        if (mode.chosen.model && at + 1 < args.size()) {
            kept = { args[at], args[at + 1] };
        }
        for (const word & arg : args) {
            if (arg.from != origin::file) {
                kept.push_back(arg);
            }
        }
        args = kept;
    }
    const size_t other = flags.find(args, MODEL, origin::user);
    if (other + 1 < args.size() && args[other + 1].rfind('@', 0) != 0) {
        flags.take(args, TEMPLATE, origin::file);
    }
}

bool is_set(const char * variable) {
    return getenv(variable) != nullptr;
}

// Those who wait for a batch to end, such as the answers beside a long prompt, wait as shortly as
// without loss can be: upstream computes so many tokens at once in any case.
const char BATCH[] = "512";

// A text to embed is computed in parts (seams/embedding-parts.h), or as a whole where tokens attend
// to those behind them. By default, whatever fits the model's context is; see bound_batch.
void choose_batches(arguments & args, const flag_table & flags, const weights & model) {
    const bool embeds =
        flags.has(args, { "--embedding", "--embeddings", "--rerank", "--reranking" }) ||
        is_set("LLAMA_ARG_EMBEDDINGS") || is_set("LLAMA_ARG_RERANKING");
    const bool given = flags.has(args, { "-b", "--batch-size", "-ub", "--ubatch-size" }) ||
                       is_set("LLAMA_ARG_BATCH") || is_set("LLAMA_ARG_UBATCH");
    if (!given && embeds && model.looks_ahead && model.context > 512) {
        const std::string tokens = std::to_string(model.context);
        args.insert(args.end(), { "-b", tokens, "-ub", tokens });
    } else if (!given) {
        args.insert(args.end(), { "-b", BATCH });
    }
    if (!flags.has(args, { "-cram", "--cache-ram" }) && !is_set("LLAMA_ARG_CACHE_RAM")) {
        args.insert(args.end(), { "--cache-ram", "-2" }); // seams/prompt-cache.h
    }
    const bool shares = flags.has(args, { "-kvu", "--kv-unified", "-no-kvu", "--no-kv-unified" }) ||
                        is_set("LLAMA_ARG_KV_UNIFIED") || is_set("LLAMA_ARG_NO_KV_UNIFIED");
    if (embeds && !model.looks_ahead && !shares) {
        args.push_back("--kv-unified"); // else -np leaves each text a part of the context
    }
}

// What can be done with a model that writes no text, such as BERT.
int (*const EMBEDDERS_TOO[])(int, char **) = { llama_server, llama_tokenize_main, llama_bench };

// Puts the weights into the arguments under a name that weights.cpp can open again. Returns what to
// call them.
std::string choose_weights(arguments & args, const flag_table & flags, const mode & chosen,
                           invocation & out) {
    const size_t https = flags.find(args, HTTPS);
    if (https < args.size()) {
        refuse(args[https],
               args[https] +
                   ": there is no HTTPS in here; fetch the weights, then give them as -m");
    }
    const size_t at = flags.find(args, MODEL);
    const bool given = at < args.size();
    std::string name;
    if (given && (at + 1 == args.size() || args[at + 1].empty())) {
        refuse(args[at], args[at] + " needs a value: a GGUF, a llamafile, or @NAME for one of "
                                    "several in here");
    } else if (given) {
        name = args[at + 1];
    } else if (flags.has(args, ELSEWHERE) || getenv("LLAMA_ARG_MODEL") != nullptr) {
        return "the server";
    } else if (own_container.path.empty()) {
        fail("no weights; name some with -m FILE.gguf");
    } else {
        name = own_container.path;
    }
    const word about = given ? args[at] : word();
    weights found;
    const std::string problem = find_weights(name, found);
    if (!problem.empty()) {
        refuse(about, problem);
    }
    out.weights = found;
    if (found.kind != weights_kind::MODEL) {
        refuse(about, name + ": goes with a model and is none itself");
    }
    const auto & takes = EMBEDDERS_TOO;
    if (found.embeds && found.looks_ahead &&
        std::find(std::begin(takes), std::end(takes), chosen.tool) == std::end(takes)) {
        refuse(about, name + ": makes embeddings, and writes no text; its server has them: "
                             "--server --embeddings");
    }
    if (given) {
        args[at + 1] = found.name();
    } else {
        args.insert(args.begin(), { "-m", found.name() });
    }
    // the tokenizer is read, never mapped
    if (!found.mappable() && chosen.tool != llama_tokenize_main) {
        const bool moved = found.offset % weights::TENSOR_ALIGNMENT != 0;
        fprintf(stderr,
                "warning: the weights in %s are not aligned%s: read into memory instead of "
                "mapped\n",
                found.path.c_str(), moved ? " (some zip tool moved them)" : "");
        args.insert(args.end(), { "--load-mode", "none" });
    }
    if (converses(chosen) && !found.chats && !flags.has(args, TEMPLATE) &&
        !is_set("LLAMA_ARG_CHAT_TEMPLATE") && !is_set("LLAMA_ARG_CHAT_TEMPLATE_FILE")) {
        fputs(
            "note: these weights have no chat template: they may be a base model, which continues "
            "texts and answers nobody (-p TEXT); the conversation is written in ChatML\n",
            stderr);
    }
    if (chosen.tool == llama_server) {
        choose_batches(args, flags, found);
    }
    std::string called = found.member.empty() ? found.path : found.member;
    called = called.substr(called.rfind('/') + 1);
    if (called.size() > 5 && called.substr(called.size() - 5) == ".gguf") {
        called.resize(called.size() - 5);
    }
    return called;
}

// SIGTERM comes from what runs services. Until it loses patience (Docker does so after 10 seconds),
// those who have asked before have their answers.
const long GRACE = 8; // seconds
const long MOST_GRACE = 24 * 60 * 60;

int take_grace(arguments & args, const flag_table & flags) {
    const size_t at = flags.find(args, { "--grace" });
    if (at >= args.size()) {
        return GRACE;
    }
    const std::string value = at + 1 < args.size() ? args[at + 1] : "";
    char * rest = nullptr;
    const long seconds = strtol(value.c_str(), &rest, 10);
    if (value.empty() || *rest != 0 || seconds < 0 || seconds > MOST_GRACE) {
        refuse(args[at], "--grace " + value + ": not a whole number of seconds, from 0 to " +
                             std::to_string(MOST_GRACE));
    }
    flags.take(args, { "--grace" });
    return (int)seconds;
}

void choose_threads(arguments & args, const flag_table & flags) {
    const int upstreams = common_cpu_get_num_math();
    const int ours = threads_to_use(upstreams);
    if (ours != upstreams && !flags.has(args, { "-t", "--threads" }) &&
        getenv("LLAMA_ARG_THREADS") == nullptr) {
        args.insert(args.begin(), { "-t", std::to_string(ours) });
    }
}

void need_what_the_mode_needs(const mode & chosen, const arguments & args,
                              const flag_table & flags) {
    if (chosen.tool == llama_mtmd_main && !flags.has(args, { "-mm", "--mmproj" }) &&
        getenv("LLAMA_ARG_MMPROJ") == nullptr) {
        fail("images and sound need a projector, and none goes with this model: --mmproj FILE");
    }
    const bool compares = flags.has(args, COMPARISON) && flags.has(args, LOGITS);
    if (chosen.text && !flags.has(args, TEXT) && !compares) {
        fail(std::string(chosen.flag) + " needs a text: -f FILE or -p TEXT");
    }
}

// A script gets the text and nothing else: no colours, which -co puts into pipes as well, and no
// log as JSON, for which standard output is the place.
void keep_output_clean(arguments & args, const flag_table & flags) {
    const size_t colour = flags.find(args, { "-co", "--color" });
    if (colour + 1 < args.size() && args[colour + 1] != "off") {
        args[colour + 1] = "auto";
    }
    const size_t json = flags.find(args, { "--log-jsonl" });
    if (json < args.size()) {
        fprintf(stderr, "note: %s has no effect here: standard output is the text\n",
                args[json].c_str());
        flags.take(args, { "--log-jsonl" });
    }
    if (getenv("LLAMA_ARG_LOG_JSONL") != nullptr) {
        args.push_back("--no-log-jsonl");
    }
}

// Upstream's server has none; seams/reading.h says what becomes of it.
void take_system_prompt(arguments & args, const flag_table & flags) {
    const names SYSTEM = { "-sys", "--system-prompt" };
    const size_t at = flags.find(args, SYSTEM);
    if (at + 1 < args.size()) {
        give_system_prompt(args[at + 1]);
        flags.take(args, SYSTEM);
    }
}

// Upstream's own tools complete an empty text; an empty question has no answer.
void check_question(const arguments & args, const flag_table & flags) {
    const size_t at = flags.find(args, { "-p", "--prompt" });
    if (at + 1 < args.size() && args[at + 1].find_first_not_of(" \t\r\n") == word::npos) {
        refuse(args[at], "the question is empty");
    }
}

bool wants_log(const arguments & args, const flag_table & flags) {
    return flags.has(args, { "-v", "--verbose", "--log-verbose", "-lv", "--verbosity",
                             "--log-verbosity" }) ||
           getenv("LLAMA_ARG_LOG_VERBOSITY") != nullptr;
}

// Whoever made the file has no say in it: it is there against them.
void settle_sandbox(arguments & args, const flag_table & flags, invocation & out) {
    flags.take(args, { "--unsecure" }, origin::file); // of older files many have it
    if (flags.take(args, NO_SANDBOX, origin::file)) {
        fputs("note: .args of this file ask for no sandbox; only whoever runs it may\n", stderr);
    }
    const size_t at = flags.find(args, NO_SANDBOX);
    out.no_sandbox = at < args.size() ? args[at] : asks_for_no_sandbox(args, flags);
    flags.take(args, NO_SANDBOX);
}

} // namespace

#ifdef RUNTIME_HAS_GPU
bool lists_gpus(const invocation & asked) {
    return asked.flags.has(asked.for_gpus, LIST);
}

bool wants_gpu(const invocation & asked) {
    return lists_gpus(asked) || asked.may_use_gpu;
}
#endif

gpu_use use_of_gpu(const arguments & own, const arguments & user) {
    const flag_table flags(our_flags());
    arguments args = merge_args(own, user);
    const choice mode = begin(args, flags);
    leave_out_for(mode, args, flags);
    const auto wanted = what_is_wanted(mode, args, flags);
    if (wanted != invocation::WORK && wanted != invocation::VERSION) {
        return gpu_use::NONE;
    }
    take_gpu_choice(args, flags);
    const bool may = chosen_gpus() != gpus::OFF && computes(mode.chosen, args, flags) &&
                     !leaves_out_gpus(args, flags) && without_gpus(args, flags).empty();
    return !may                            ? gpu_use::NONE
           : wanted == invocation::VERSION ? gpu_use::TELLS
                                           : gpu_use::COMPUTES;
}

void check_own(const arguments & own) {
    const flag_table flags(our_flags());
    arguments all = merge_args(own, {});
    if (begin(all, flags).chosen.flags == NO_COMMON_FLAGS) {
        return;
    }
    check_keys(all, flags);
    take_grace(all, flags);
    for (const mode & each : MODES) {
        if (each.flags != NO_COMMON_FLAGS) {
            arguments args = all;
            flags.leave_to_others(args, each.flags);
            take_gpu_choice(args, flags);
#ifdef RUNTIME_HAS_GPU
            take_for_gpus(args, flags);
#else
            leave_out_gpus(args, flags);
#endif
            translate_former(args, flags, each.flags);
            flags.check(args, each.flags, false);
            name_chat_template(args, flags);
        }
    }
}

invocation read_invocation(const arguments & own, const arguments & user) {
    invocation out;
    out.flags = flag_table(our_flags());
    out.args = merge_args(own, user);
    const flag_table & flags = out.flags;
    arguments & args = out.args;
    const choice mode = begin(args, flags);
    const auto & chosen = mode.chosen;
    out.tool = chosen.tool;
    out.serves = chosen.tool == llama_server;
    out.converses = converses(chosen);
    out.own_flags = chosen.flags == NO_COMMON_FLAGS;
    if (out.serves && flags.take(args, TEXT, origin::user)) {
        fputs("note: the server completes no -p or -f; leave --server out for that\n", stderr);
    }
    settle_sandbox(args, flags, out);
    settle_partners(args, flags);
    leave_out_for(mode, args, flags);

    out.wanted = what_is_wanted(mode, args, flags);
    if (out.wanted == invocation::VERSION) {
        take_gpu_choice(args, flags);
    }
    if (out.wanted != invocation::WORK) {
        return out;
    }
    const std::string without = without_gpus(args, flags);
    out.machines = take_machines(args, flags);
    const bool several_machines = !out.machines.names.empty();
    if (several_machines && (!chosen.model || chosen.tool == llama_tokenize_main)) {
        fail(std::string("--on means nothing with ") + chosen.flag);
    }
    take_gpu_choice(args, flags);
    const bool could = computes(chosen, args, flags) && !leaves_out_gpus(args, flags);
    if (could && !without.empty()) {
        say_without_gpus(without);
    }
    out.may_use_gpu = could && without.empty();
    if (!could) {
        unset_variable(GPU_LAYERS_VARIABLE); // llama.cpp warns of it, whatever it says
    }
#ifdef RUNTIME_HAS_GPU
    out.for_gpus = take_for_gpus(args, flags);
#else
    if (out.may_use_gpu) {
        need_no_gpu();
    }
    leave_out_gpus(args, flags);
#endif
    translate_former(args, flags, chosen.flags);
    if (chosen.flags != NO_COMMON_FLAGS) {
        flags.check(args, chosen.flags);
        check_partners(args, flags);
    }
    need_what_the_mode_needs(chosen, args, flags);
    if (flags.take(args, { "--no-read" })) {
        read_nothing();
    }
    if (flags.take(args, { "--no-documents" })) {
        look_nothing_up();
    }
    out.states = !flags.take(args, { "--no-state" });
    if (out.serves || out.converses) {
        text_read(); // now, if it can't be read
        check_documents();
    }
    out.browser = !flags.take(args, { "--nobrowser" });
    name_chat_template(args, flags);
    if (chosen.flags != NO_COMMON_FLAGS) {
        read_inputs(args, flags, chosen.flags);
    }
    if (out.serves) {
        take_system_prompt(args, flags);
    }
    if (chosen.tool == ask) {
        check_question(args, flags);
        keep_output_clean(args, flags);
    }
    check_outputs(args, flags);
    out.grace = take_grace(args, flags);
    if (out.serves) {
        check_keys(args, flags);
    } else {
        flags.take(args, OF_SERVER);
    }

    out.several = out.serves && offers_models(args, flags);
    if (out.several) {
        out.model = offer_models(args, flags);
    } else if (chosen.model) {
        out.model = choose_weights(args, flags, chosen, out);
    }
    if (several_machines && (out.several || out.weights.layers == 0)) {
        fail("--on needs one model: choose it with -m");
    }
    if (several_machines && flags.knows(chosen.flags, "--no-mmproj-offload")) {
        args.push_back("--no-mmproj-offload"); // to the first of the machines
    }
    out.routes = out.serves && !flags.has(args, MODEL) && getenv("LLAMA_ARG_MODEL") == nullptr;
    if (chosen.model && chosen.tool != llama_tokenize_main) {
        choose_threads(args, flags);
    }
    if (chosen.flags != NO_COMMON_FLAGS) {
        bound_threads(args, flags);
    }
    arguments first = chosen.first;
    if (out.serves && !out.several && !flags.has(args, { "-a", "--alias" }) && !out.model.empty()) {
        first.insert(first.end(), { "--alias", out.model });
    }
    out.scripted = (chosen.flag == MODES[COMPLETE].flag || chosen.flag == LOOK.flag) &&
                   !flags.has(args, { "-cnv", "--conversation", "-i", "--interactive", "-if",
                                      "--interactive-first" });
    if (out.scripted) {
        keep_output_clean(args, flags);
        if (chosen.tool == llama_completion) {
            // not used, but upstream reads it, and ends where it can't
            flags.take(args, TEMPLATE);
            flags.take(args, { "--no-jinja" });
            first.insert(first.end(), { "--no-jinja", "--chat-template", "chatml" });
        }
    }
    out.logs = wants_log(args, flags);
    if (out.logs) {
        fprintf(stderr, "pyllamafile %s for %s, CPU level %s\n", RUNTIME_VERSION, RUNTIME_TARGET,
                cpu_level());
    } else if (chosen.quiet) {
        first.insert(first.begin(), QUIET.begin(), QUIET.end());
        out.is_quiet = true;
    }
    args.insert(args.begin(), first.begin(), first.end());
    if (chosen.model && !out.several && chosen.flags != NO_COMMON_FLAGS &&
        chosen.tool != llama_tokenize_main) {
        if (!several_machines) { // else what is free here does not decide
            bound_batch(args, flags, chosen.flags);
            bound_context(args, flags, chosen.flags);
        }
    }
    return out;
}
