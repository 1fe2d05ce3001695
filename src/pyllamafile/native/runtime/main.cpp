// The program inside a llamafile: reads `.args`, picks a mode, finds the weights, and calls
// the tool of llama.cpp that does the work.

#include "arg.h"
#include "arguments.h"
#include "build-info.h"
#include "chat/conversation.h"
#include "common.h"
#include "container.h"
#include "llama.h"
#include "log.h"
#include "manual.h"
#include "router.h"
#include "serve.h"
#include "system/cache.h"
#include "system/cpu.h"
#include "system/system.h"
#include "system/threads.h"
#include "weights.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <iterator>

#if defined(_WIN32) && defined(__x86_64__)
#include "system/handover.h"
#endif

// upstream's tools
int llama_bench(int argc, char ** argv);
int llama_completion(int argc, char ** argv);
int llama_mtmd_main(int argc, char ** argv);
int llama_perplexity(int argc, char ** argv);
int llama_quantize(int argc, char ** argv);
int llama_server(int argc, char ** argv);
int llama_tokenize_main(int argc, char ** argv);

extern container own_container;     // for ui.cpp
extern bool completion_is_scripted; // for completion-output.h
extern char completion_last;

container own_container;
bool completion_is_scripted = false;
char completion_last = '\0';

namespace {

std::string own_program; // not the llamafile that it is in; the router starts it again

using tool = int (*)(int, char **);

// Tools with a table of flags of their own: what `.args` says is not for them.
const int NO_COMMON_FLAGS = -1;

struct mode {
    const char * flag; // chooses it
    tool run;
    int flags;       // llama_example: whose flags it knows
    bool model;      // takes -m; the file's own weights are the default
    bool quiet;      // logs nothing but errors unless asked
    bool text;       // needs a text: -p or -f
    arguments first; // in front of what the user gave
};

enum { SERVE, CHAT, COMPLETE };
const mode MODES[] = {
    { "--server", llama_server, LLAMA_EXAMPLE_SERVER, true, true, false, {} },
    { "--chat", chat, LLAMA_EXAMPLE_CLI, true, true, false, {} },
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

// What -p becomes with an image or a sound: a question, for only chats are made for those.
const mode LOOK = { "--image", llama_mtmd_main, LLAMA_EXAMPLE_MTMD, true, true, true, {} };

// Errors alone, as plain lines; not where the user asks for a log.
const arguments QUIET = { "-lv", "1", "--no-log-prefix", "--no-log-timestamps" };

bool wants_log(const arguments & args, const flag_table & flags) {
    return flags.has(args, { "-v", "--verbose", "--log-verbose", "-lv", "--verbosity",
                             "--log-verbosity" }) ||
           getenv("LLAMA_ARG_LOG_VERBOSITY") != nullptr;
}

// Flags of Mozilla's llamafile, and what llama.cpp has for them; nothing is nothing to switch.
struct translation {
    const char * flag;
    arguments now; // what it is called today
};

const translation OLD_NAMES[] = {
    { "--nologo", {} },
    { "--ascii", {} },
    { "--unsecure", {} },
    { "--url-prefix", { "--api-prefix" } },
    { "--no-mmap", { "--load-mode", "none" } },
    { "--mlock", { "--load-mode", "mlock" } },
};

// The flags that llama.cpp doesn't know, and how many values each takes.
std::map<std::string, size_t> our_flags() {
    std::map<std::string, size_t> out = {
        { "--gpu", 1 },        { "--help", 0 },         { "-h", 0 },          { "--usage", 0 },
        { "--help-all", 0 },   { "--version", 0 },      { "--licenses", 0 },  { "--nobrowser", 0 },
        { "--allow-host", 1 }, { "--allow-origin", 1 }, { "--no-api-key", 0 }
    };
    for (const mode & known : MODES) {
        out[known.flag] = 0;
    }
    for (const translation & old : OLD_NAMES) {
        out[old.flag] = 0;
    }
    return out;
}

const auto MODEL = { "-m", "--model" };
const auto GPU_LAYERS = { "-ngl", "--gpu-layers", "--n-gpu-layers" };
const auto MEDIA = { "--image", "--audio", "--video" };
const auto TEXT = { "-p", "--prompt", "-f", "--file", "-bf", "--binary-file" };
const auto COMPARISON = { "--kl-divergence" }; // its text is in the file of logits
const auto LOGITS = { "--kl-divergence-base", "--save-all-logits" };

// ggml maps tensors only at multiples of this (ggml-impl.h).
const uint64_t TENSOR_ALIGNMENT = 32;

int fail(const std::string & problem) {
    fprintf(stderr, "error: %s\n", problem.c_str());
    return 1;
}

std::string translate(arguments & args, const flag_table & flags) {
    for (const translation & old : OLD_NAMES) {
        for (size_t at; (at = flags.find(args, { old.flag })) < args.size();) {
            args.erase(args.begin() + at);
            args.insert(args.begin() + at, old.now.begin(), old.now.end());
        }
    }
    const size_t gpu = flags.find(args, { "--gpu" });
    if (gpu < args.size()) {
        const std::string value = gpu + 1 < args.size() ? args[gpu + 1] : "";
        if (value != "disable" && value != "auto") {
            return "--gpu " + value +
                   ": this runtime computes on the processor only; leave it out, or say --gpu "
                   "disable";
        }
        args.erase(args.begin() + gpu, args.begin() + gpu + 2);
    }
    return {};
}

// llama.cpp has some formats of chat by name, and takes the name for one only when it is told not
// to expect a template in Jinja, which is text with braces.
std::string name_chat_template(arguments & args, const flag_table & flags) {
    const size_t at = flags.find(args, { "--chat-template" });
    if (at + 1 >= args.size() || args[at + 1].find('{') != std::string::npos) {
        return {};
    }
    const int count = llama_chat_builtin_templates(nullptr, 0);
    std::vector<const char *> names((size_t)count);
    llama_chat_builtin_templates(names.data(), names.size());
    std::string all;
    for (const char * name : names) {
        if (args[at + 1] == name) {
            args.insert(args.begin() + at, "--no-jinja");
            return {};
        }
        all += std::string(all.empty() ? "" : ", ") + name;
    }
    return "--chat-template " + args[at + 1] +
           ": neither a template in Jinja nor one of llama.cpp's formats: " + all;
}

// `-f -` is the prompt on standard input, on every system.
void read_prompt_from_stdin(arguments & args, const flag_table & flags) {
    const size_t at = flags.find(args, { "-f", "--file" });
    if (at + 1 < args.size() && args[at + 1] == "-") {
        std::string prompt{ std::istreambuf_iterator<char>(std::cin), {} };
        if (!prompt.empty() && prompt.back() == '\n') {
            prompt.pop_back(); // as upstream does with a file
        }
        args[at] = "-p";
        args[at + 1] = prompt;
    }
}

// Takes the flags of modes out of the arguments; the last one counts, so that the user's wins
// over that of `.args`. Null if there is none.
const mode * take_mode(arguments & args, const flag_table & flags) {
    const mode * named = nullptr;
    size_t last = 0;
    for (const mode & candidate : MODES) {
        const size_t at = flags.find(args, { candidate.flag });
        if (at < args.size() && (named == nullptr || at > last)) {
            named = &candidate;
            last = at;
        }
    }
    for (const mode & candidate : MODES) {
        flags.take(args, { candidate.flag });
    }
    return named;
}

// `--cli` is whatever the terminal is good for. A text to complete is stronger than a server
// that only `.args` asked for.
mode choose(const mode * named, bool by_user, const arguments & args, const flag_table & flags) {
    const bool server = named == &MODES[SERVE] && !by_user;
    if (named != nullptr && named != &MODES[COMPLETE] && !(server && flags.has(args, TEXT))) {
        return *named;
    }
    if (flags.has(args, TEXT)) {
        return flags.has(args, MEDIA) ? LOOK : MODES[COMPLETE];
    }
    return MODES[named == nullptr || server ? SERVE : CHAT];
}

// Puts the weights into the arguments under a name that weights.cpp can open again, and leaves
// what to call them in `called`.
std::string choose_weights(arguments & args, const flag_table & flags, const mode & chosen,
                           std::string & called) {
    static const auto HTTPS = { "-hf", "-hfr", "--hf-repo", "-dr", "--docker-repo" };
    static const auto ELSEWHERE = { "-mu", "--model-url", "--models-dir", "--models-preset",
                                    "--server-base" };
    const size_t https = flags.find(args, HTTPS);
    if (https < args.size()) {
        return args[https] + ": there is no HTTPS in here; fetch the weights, then give them as -m";
    }
    const size_t at = flags.find(args, MODEL);
    std::string name;
    if (at < args.size() && (at + 1 == args.size() || args[at + 1].empty())) {
        return args[at] +
               " needs a value: a GGUF, a llamafile, or @NAME for one of several in here";
    } else if (at + 1 < args.size()) {
        name = args[at + 1];
    } else if (flags.has(args, ELSEWHERE) || getenv("LLAMA_ARG_MODEL") != nullptr) {
        called = "the server";
        return {};
    } else if (own_container.path.empty()) {
        return "no weights; name some with -m FILE.gguf";
    } else {
        name = own_container.path;
    }
    weights found;
    const std::string problem = find_weights(name, found);
    if (!problem.empty()) {
        return problem;
    }
    if (found.kind != weights_kind::MODEL) {
        return name + ": goes with a model and is none itself";
    }
    if (at + 1 < args.size()) {
        args[at + 1] = found.name();
    } else {
        args.insert(args.begin(), { "-m", found.name() });
    }
    // the tokenizer is read, never mapped
    if (found.offset % TENSOR_ALIGNMENT != 0 && chosen.run != llama_tokenize_main) {
        fprintf(stderr,
                "warning: the weights in %s are not aligned (some zip tool moved them): read into "
                "memory instead of mapped\n",
                found.path.c_str());
        args.insert(args.end(), { "--load-mode", "none" });
    }
    called = found.member.empty() ? found.path : found.member;
    called = called.substr(called.rfind('/') + 1);
    if (called.size() > 5 && called.substr(called.size() - 5) == ".gguf") {
        called.resize(called.size() - 5);
    }
    return {};
}

void choose_threads(arguments & args, const flag_table & flags) {
    const int upstreams = common_cpu_get_num_math();
    const int ours = threads_to_use(upstreams);
    if (ours != upstreams && !flags.has(args, { "-t", "--threads" }) &&
        getenv("LLAMA_ARG_THREADS") == nullptr) {
        args.insert(args.begin(), { "-t", std::to_string(ours) });
    }
}

int call(tool run, const char * program, const arguments & args) {
    std::vector<char *> argv = { const_cast<char *>(program) };
    for (const std::string & arg : args) {
        argv.push_back(const_cast<char *>(arg.c_str()));
    }
    argv.push_back(nullptr);
    const int code = run((int)argv.size() - 1, argv.data());
    if (completion_is_scripted && completion_last != '\n' && completion_last != '\0') {
        common_log_add(common_log_main(), GGML_LOG_LEVEL_NONE, "\n");
    }
    common_log_flush(common_log_main());
    return code < 0 ? 1 : code;
}

int print_version() {
    printf("pyllamafile %s\nllama.cpp %s (%s)\n%s, CPU level %s\n", RUNTIME_VERSION,
           llama_version(), llama_commit(), RUNTIME_TARGET, cpu_level());
    return 0;
}

// The notices are entries of the llamafile, once for all its runtimes.
int print_licenses() {
    const std::string folder = "LICENSES/";
    bool any = false;
    for (const entry & member : own_container.entries) {
        if (member.name.rfind(folder, 0) == 0 && member.size > 0) {
            const std::string text = own_container.content(member);
            if (text.empty()) {
                return fail(own_container.path + ": " + member.name + " can't be read");
            }
            printf("%s\n%s\n\n%s\n", member.name.c_str(),
                   std::string(member.name.size(), '=').c_str(), text.c_str());
            any = true;
        }
    }
    return any ? 0 : fail("the licences are in the folder LICENSES/ of a llamafile; none is here");
}

int print_manual() {
    fputs(MANUAL, stdout);
    return 0;
}

// What `.args` says that the mode can make use of. Of tools with flags of their own nobody knows
// which; but a `.args` that names one is meant for it, and the model is a matter of the file.
arguments own_for(const mode & chosen, bool by_user, const arguments & own,
                  const flag_table & flags) {
    if (chosen.flags == NO_COMMON_FLAGS && !by_user) {
        return own;
    }
    arguments out = flags.meant_for(chosen.flags, own);
    const size_t at = flags.find(own, MODEL);
    if (chosen.flags == NO_COMMON_FLAGS && chosen.model && at + 1 < own.size()) {
        out.insert(out.begin(), { own[at], own[at + 1] });
    }
    return out;
}

// Many have the habit of giving it. A word, for nobody should wonder why nothing got faster.
void leave_out_gpu_layers(arguments & args, const flag_table & flags) {
    const size_t at = flags.find(args, GPU_LAYERS);
    if (at + 1 < args.size() && args[at + 1] != "0") {
        fprintf(stderr, "note: this runtime computes on the processor only; %s has no effect\n",
                args[at].c_str());
    }
    flags.take(args, GPU_LAYERS);
}

int run(const char * program, arguments own, arguments user) {
    flag_table flags(our_flags());
    flags.tie("--url-prefix", "--api-prefix"); // for the server alone
    arguments args = merge_args(own, user);
    const mode * named = take_mode(args, flags);
    const bool by_user = take_mode(user, flags) != nullptr;
    mode chosen = choose(named, by_user, args, flags);
    if (chosen.run == llama_server && flags.take(user, TEXT)) {
        fputs("note: the server completes no -p or -f; leave --server out for that\n", stderr);
    }
    settle_partners(own, user, flags);
    // What `.args` says for one mode must not stop another: --port is for the server alone. Nor do
    // other weights talk as this file's do.
    arguments defaults = own_for(chosen, by_user, own, flags);
    const size_t other = flags.find(user, MODEL);
    if (other + 1 < user.size() && user[other + 1].rfind('@', 0) != 0) {
        flags.take(defaults, { "--chat-template", "--chat-template-file" });
    }
    args = merge_args(defaults, user);
    take_mode(args, flags);

    if (flags.has(args, { "--version" })) {
        return print_version();
    }
    if (flags.has(args, { "--licenses" })) {
        return print_licenses();
    }
    const bool help = flags.has(args, { "-h", "--help", "--usage" });
    if (help && named == nullptr) {
        return print_manual();
    }
    if (help || flags.has(args, { "--help-all" })) {
        // asked for, help is no failure, whatever a tool makes of it
        atexit([] { _Exit(flushed() ? 0 : 1); });
        return call(chosen.run, program, { "--help" });
    }
    leave_out_gpu_layers(args, flags);
    flags.take(user, GPU_LAYERS);
    // Says what is wrong, and where that is to be changed.
    const auto fail_in = [](bool users, const std::string & wrong) {
        return fail((users ? "" : ".args of this file: ") + wrong);
    };
    if (chosen.flags != NO_COMMON_FLAGS) {
        const std::string wrong = flags.problem(chosen.flags, args);
        if (!wrong.empty()) {
            return fail_in(flags.problem(chosen.flags, user) == wrong, wrong);
        }
        const std::string unfit = check_partners(args, flags);
        if (!unfit.empty()) {
            return fail_in(check_partners(user, flags) == unfit, unfit);
        }
    }
    if (chosen.run == llama_mtmd_main && !flags.has(args, { "-mm", "--mmproj" }) &&
        getenv("LLAMA_ARG_MMPROJ") == nullptr) {
        return fail(
            "images and sound need a projector, and none goes with this model: --mmproj FILE");
    }
    const bool compares = flags.has(args, COMPARISON) && flags.has(args, LOGITS);
    if (chosen.text && !flags.has(args, TEXT) && !compares) {
        return fail(std::string(chosen.flag) + " needs a text: -f FILE or -p TEXT");
    }
    const bool browser = !flags.take(args, { "--nobrowser" });
    for (const auto rewrite : { translate, name_chat_template }) {
        const std::string problem = rewrite(args, flags);
        if (!problem.empty()) {
            return fail(problem);
        }
    }
    read_prompt_from_stdin(args, flags);

    std::string called;
    const bool several = chosen.run == llama_server && offers_models(args, flags);
    if (several) {
        called = offer_models(args, flags);
    } else if (chosen.model) {
        const std::string missing = choose_weights(args, flags, chosen, called);
        if (!missing.empty()) {
            return fail_in(flags.has(user, MODEL) || !flags.has(own, MODEL), missing);
        }
    }
    if (chosen.model && chosen.run != llama_tokenize_main) {
        choose_threads(args, flags);
    }
    if (chosen.run == llama_server && !several && !flags.has(args, { "-a", "--alias" }) &&
        !called.empty()) {
        chosen.first.insert(chosen.first.end(), { "--alias", called });
    }
    completion_is_scripted = (chosen.flag == MODES[COMPLETE].flag || chosen.flag == LOOK.flag) &&
                             !flags.has(args, { "-cnv", "--conversation", "-i", "--interactive",
                                                "-if", "--interactive-first" });
    if (wants_log(args, flags)) {
        fprintf(stderr, "pyllamafile %s for %s, CPU level %s\n", RUNTIME_VERSION, RUNTIME_TARGET,
                cpu_level());
    } else if (chosen.quiet) {
        chosen.first.insert(chosen.first.begin(), QUIET.begin(), QUIET.end());
    }
    args.insert(args.begin(), chosen.first.begin(), chosen.first.end());
    const auto start = [&](const arguments & final_args) {
        return call(chosen.run, several ? own_program.c_str() : program, final_args);
    };
    return chosen.run == llama_server ? serve(args, flags, called, browser, start) : start(args);
}

// Where no script starts the program, its own file is the llamafile, or one beside it on Windows,
// which starts no program of 4 GiB: NAME.exe is for NAME.llamafile, or for NAME.
std::string own_llamafile() {
    const std::string self = own_path();
    container zip;
    if (self.empty() || read_container(self, zip)) {
        return self;
    }
#ifdef _WIN32
    const std::string stem = self.substr(0, self.rfind('.'));
    for (const std::string & beside : { stem + ".llamafile", stem }) {
        if (beside != self && open_file(beside)) {
            return beside;
        }
    }
#endif
    char head[4] = {};
    const file_ptr file = open_file(self);
    const bool was_one = file && fread(head, 1, 4, file.get()) == 4 && memcmp(head, "MZ=;", 4) == 0;
    return was_one ? self : "";
}

} // namespace

int main(int argc, char ** argv) {
    prepare_streams();
    arguments user = command_line(argc, argv);
    // How the launch script finds out whether programs may run where it unpacked this one.
    if (user.size() == 1 && user[0] == "--probe") {
        return 0;
    }
    own_program = own_path();
    if (own_program.empty()) {
        own_program = argv[0];
    }
    if (is_routers_child(user)) {
        web_take_over_policy();
        return call(llama_server, argv[0], user);
    }
    // The launch script says which file this is the runtime of.
    const bool told = user.size() >= 2 && user[0] == "--llamafile";
    const std::string file = told ? user[1] : own_llamafile();
    user.erase(user.begin(), user.begin() + (told ? 2 : 0));
    if (user == arguments{ "--clean-cache" }) {
        return clean_cache(own_program);
    }
    if (!file.empty() && !read_container(file, own_container)) {
        return fail(file + ": damaged or cut off: its zip directory can't be read");
    }
#if defined(_WIN32) && defined(__x86_64__)
    if (!told && is_emulated()) {
        if (const auto code = hand_over(own_container, "windows-arm64")) {
            return *code;
        }
    }
#endif
    arguments own;
    const entry * defaults = own_container.find(".args");
    if (defaults != nullptr) {
        own = parse_args_file(own_container.content(*defaults));
    }
    try {
        const int code = run(file.empty() ? argv[0] : file.c_str(), own, user);
        return flushed() ? code : std::max(code, 1);
    } catch (const std::exception & problem) {
        return fail(problem.what());
    }
}
