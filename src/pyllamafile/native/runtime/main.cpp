// The program inside a llamafile: reads `.args`, and calls the tool of llama.cpp that does the
// work.

#include "build-info.h"
#include "chat/conversation.h"
#include "common.h"
#include "container.h"
#include "documents/embedder.h"
#include "errors.h"
#include "gpu/devices.h"
#include "gpu/gpu.h"
#include "invocation.h"
#include "llama.h"
#include "log.h"
#include "machines/machines.h"
#include "machines/worker.h"
#include "manual.h"
#include "named.h"
#include "own.h"
#include "prove/prove.h"
#include "rehearsal.h"
#include "router.h"
#include "serve.h"
#include "states.h"
#include "system/cache.h"
#include "system/cpu.h"
#include "system/handover/handover.h"
#include "system/sandbox.h"
#include "system/system.h"
#include "text.h"
#include "web/guard.h"
#include "weights.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>

#ifdef RUNTIME_HAS_GPU
#include "gpu/report.h"
#endif

int llama_quantize(int argc, char ** argv); // upstream's
int llama_server(int argc, char ** argv);

extern bool completion_is_scripted; // for completion-output.h
extern char completion_last;

container own_container;
bool completion_is_scripted = false;
char completion_last = '\0';

namespace {

const char * const STATE = "PYLLAMAFILE_STATE"; // of the file
const char * const GPU_TRIAL = "--gpu-trial";

std::string own_program; // not the llamafile that it is in; the router starts it again

int fail(const std::string & problem) {
    if (!an_error_was_said()) {
        fprintf(stderr, "error: %s\n", problem.c_str());
    }
    return 1;
}

int call(int (*tool)(int, char **), const char * program, const arguments & args) {
    std::vector<char *> argv = { const_cast<char *>(program) };
    for (const word & arg : args) {
        argv.push_back(const_cast<char *>(arg.c_str()));
    }
    argv.push_back(nullptr);
    const int code = tool((int)argv.size() - 1, argv.data());
    if (completion_is_scripted && completion_last != '\n' && completion_last != '\0') {
        fputs("\n", stdout);
    }
    common_log_flush(common_log_main());
    return code < 0 ? 1 : code;
}

int print_version(const std::string & of_gpus) {
    printf("pyllamafile %s\nllama.cpp %s (%s)\n%s, CPU level %s\n%s\n", RUNTIME_VERSION,
           llama_version(), llama_commit(), RUNTIME_TARGET, cpu_level(), sandbox_line().c_str());
    if (!of_gpus.empty()) {
        puts(of_gpus.c_str());
    }
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

#ifdef RUNTIME_HAS_GPU
// What the GPU is to compute with.
std::vector<std::string> weights_of(const invocation & asked) {
    const auto value = [&](flag_table::names names, const char * variable) {
        return asked.flags.value(asked.args, names, variable);
    };
    std::vector<std::string> out = {
        value({ "-m", "--model" }, "LLAMA_ARG_MODEL"),
        value({ "-md", "--model-draft", "--spec-draft-model" }, "LLAMA_ARG_SPEC_DRAFT_MODEL"),
    };
    if (asked.several) {
        out.clear();
        for (const entry * model : models_in(own_container)) {
            out.push_back(own_container.path + "@" + model->name);
        }
    }
    out.erase(std::remove(out.begin(), out.end(), ""), out.end());
    return out;
}

// Before this process is in its sandbox, in which it starts no other.
void settle_gpus(invocation & asked, const std::string & llamafile) {
    if (!wants_gpu(asked)) {
        return;
    }
    if (!try_gpus(own_program, llamafile, weights_of(asked), lists_gpus(asked))) {
        return;
    }
    if (asked.routes) {
        hand_down_gpus(asked.for_gpus);
    } else {
        asked.args.insert(asked.args.end(), asked.for_gpus.begin(), asked.for_gpus.end());
    }
}
#endif

void allow_what_is_named(const invocation & asked) {
    if (!asked.no_sandbox.empty()) {
        sandbox_is_off(asked.no_sandbox, asked.logs);
        return;
    }
    named names = files_named(asked.args, asked.flags, asked.own_flags);
    if (asked.tool == llama_quantize) {
        name_output_of_quantize(asked.args, names);
    }
    names.program = own_program;
    allow_drivers(names, asked.routes);
    sandbox_names(names, asked.logs);
}

// A process of the router keeps no states: it may not write, nor start who does. The file that it
// is for may have one.
void open_own_state_of_router() {
    if (const container * own = own_contents(STATE)) {
        open_own_state(*own);
    }
}

// What the router's own sandbox allows still holds as well.
void confine_routers_child(const arguments & args) {
    if (sandbox_was_off()) {
        return;
    }
    const flag_table flags{ {} };
    named names = files_named(args, flags, false);
    allow_drivers(names, false);
    sandbox_names(names, false);
    const size_t port = flags.find(args, { "--port" });
    enter_sandbox(duty::SERVES, { port + 1 < args.size() ? atoi(args[port + 1].c_str()) : 0 });
}

gpu_use use_of_gpu(const arguments & user) {
    const std::string mode = user.empty() ? "" : user[0];
    return mode == GPU_TRIAL ? gpu_use::COMPUTES
           : mode == PROVE   ? gpu_use::NONE
                             : ::use_of_gpu(arguments_in(own_container), user);
}

int run(const char * program, const arguments & user) {
    invocation asked = read_invocation(arguments_in(own_container), user);
    if (!asked.machines.names.empty() && !asked.serves) {
        const arguments shares = start_workers(asked.machines, own_container, asked.weights);
        asked.args.insert(asked.args.end(), shares.begin(), shares.end());
    }
#ifdef RUNTIME_HAS_GPU
    if (asked.wanted == invocation::WORK) {
        settle_gpus(asked, program);
        if (lists_gpus(asked)) {
            allow_what_is_named(asked);
            enter_sandbox(duty::COMPUTES);
            list_gpus();
            return 0;
        }
    }
#endif
    const bool tells = asked.wanted == invocation::VERSION;
    const std::string of_gpus = tells ? last_trial_of_gpus(own_program) : "";
    allow_what_is_named(asked);
    if (asked.wanted != invocation::WORK) {
        enter_sandbox(duty::PRINTS);
    } else if (!asked.serves && !asked.converses) {
        enter_sandbox(duty::COMPUTES); // the others when they know their ports
    }
    switch (asked.wanted) {
    case invocation::VERSION:
        return print_version(of_gpus);
    case invocation::LICENSES:
        return print_licenses();
    case invocation::MANUAL:
        return print_manual();
    case invocation::OPTIONS:
        // asked for, help is no failure, whatever a tool makes of it
        atexit([] { _Exit(flushed() ? 0 : 1); });
        return call(asked.tool, program, { "--help" });
    case invocation::WORK:
        break;
    }
    if (!asked.states) {
        leave_out(STATE);
    }
    const size_t at = asked.flags.find(asked.args, { "-m", "--model" });
    const std::string model = at + 1 < asked.args.size() ? std::string(asked.args[at + 1]) : "";
    if (asked.states && !asked.routes && (asked.serves || asked.converses)) {
        const char * variable = getenv("LLAMA_ARG_MODEL");
        settle_states(own_program,
                      identity_of_weights(model.empty() && variable != nullptr ? variable : model));
        open_own_state(own_container);
    }
    completion_is_scripted = asked.scripted;
    if (asked.is_quiet) {
        say_the_first_error_of(model.empty() ? "the model" : model);
    }
    const auto start = [&](const arguments & args) {
        if (!asked.converses && !asked.routes) {
            use_workers(); // there other processes have the model
            use_gpus();
        }
        return call(asked.tool, asked.several ? own_program.c_str() : program, args);
    };
    return asked.serves ? serve(asked, start) : start(asked.args);
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
    prepare_signals();
    end_without_abort();
    arguments user = command_line(argc, argv);
    // How the launch script finds out whether programs may run where it unpacked this one.
    if (user.size() == 1 && user[0] == "--probe") {
        return 0;
    }
    // How the builder finds out whether a file could start with a text as its `.args`.
    if (user.size() == 2 && user[0] == "--check-args") {
        try {
            check_own(parse_args_file(read_text(user[1])));
            return 0;
        } catch (const std::exception & problem) {
            return fail(problem.what());
        }
    }
#ifndef _WIN32
    if (user == arguments{ WORK }) {
        return work(own_path(), "", "");
    }
    if (user.size() == 3 && user[0].compare(0, 1, "-") != 0 && user[2] == WORK) {
        return work(own_path(), user[0], user[1]);
    }
    if (user.size() == 3 && user[0] == "--llamafile" && user[2] == WHERE) {
        puts(own_path().c_str());
        return flushed() ? 0 : 1;
    }
#endif
    if (user.empty() || (user.size() == 2 && user[0] == "--llamafile")) {
        window_waits();
    }
    own_program = own_path();
    if (own_program.empty()) {
        own_program = argv[0];
    }
    if (is_trespasser(user)) {
        return trespass(own_program, user);
    }
    // And whether weights could be loaded.
    if (user.size() >= 2 && user[0] == "--check-weights") {
        named names;
        names.reads.assign(user.begin() + 1, user.end()); // the first, and the other parts of it
        names.program = own_program;
        sandbox_names(names, false);
        enter_sandbox(duty::COMPUTES);
        try {
            return rehearse(user[1]);
        } catch (const std::exception & problem) {
            return fail(user[1] + " can't be loaded: " + problem.what());
        }
    }
    // And what vectors a model makes of texts.
    if (user.size() == 3 && user[0] == "--embed-texts") {
        named names;
        names.reads.assign(user.begin() + 1, user.end());
        names.program = own_program;
        sandbox_names(names, false);
        enter_sandbox(duty::COMPUTES);
        try {
            return embed_texts(user[1], user[2]);
        } catch (const std::exception & problem) {
            return fail(problem.what());
        }
    }
    if (is_routers_child(user)) {
        web_take_over_policy();
        open_own_state_of_router();
        take_over_gpus(user);
        confine_routers_child(user);
        use_gpus();
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
#ifdef RUNTIME_HAS_GPU
    if (!user.empty() && user[0] == TRY_GPUS) {
        return trial_of_gpus(user);
    }
    if (!user.empty() && user[0] == GPU_PRODUCTS) {
        return print_products_of_gpus();
    }
#endif
    try {
        const started here = { own_container, own_program, user, told,
                               [&] { return use_of_gpu(user); } };
        if (const auto code = hand_over(here)) {
            if (*code == 0) {
                window_may_close(); // the other program has had its own
            }
            return *code;
        }
        if (!user.empty() && user[0] == PROVE) {
            choose_gpus(gpus::OFF); // in what it starts
            const int code = prove(own_container, own_program, user);
            return flushed() ? code : 1;
        }
        if (!user.empty() && user[0] == GPU_TRIAL) {
#ifdef RUNTIME_HAS_GPU
            return report_gpus(own_container, own_program, user);
#else
            const std::string missing = no_gpu_because();
            const std::string alone = "this program computes on the processor alone";
            return fail("no GPU is tried: " + (missing.empty() ? alone : missing));
#endif
        }
        const int code = run(file.empty() ? argv[0] : file.c_str(), user);
        return flushed() ? code : std::max(code, 1);
    } catch (const std::exception & problem) {
        return fail(problem.what());
    }
}
