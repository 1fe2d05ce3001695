#include "gpu.h"

// MISSING, in the order in which it is to be built:
// - the trial's verdict is kept nowhere, so each start takes it again; it is to be kept under the
//   driver's version, the device and the engine.
// - a device whose memory runs out later, when the model is loaded or computes, ends the program.
// - speed: a GPU that is slower than the processor is used all the same.
// - the hand-over of the static program of Linux, with system/handover.cpp's as one mechanism.
// - plan.py: an entry `shaders/vulkan.zst` and the second program; targets.py's WITH_GPU for arm64,
//   Windows and the BSDs; `runtimes build --gpu`.
// - the processes of the router, and --on, use no GPU; neither do the models of --prove.
// - `doctor`, /props and --version say nothing of GPUs; --gpu knows no name of a device.
// - shaders are unpacked in 50 ms, by the thread that starts the device: a second one could.
// - drivers that keep compiled shaders in the user's cache can't in the sandbox.

#include "container.h"
#include "ggml-backend.h"
#include "gguf.h"
#include "loader.h"
#include "shaders.h"
#include "system/sandbox.h"
#include "trial.h"
#include "weights.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fcntl.h>
#include <filesystem>
#include <poll.h>
#include <set>
#include <spawn.h>
#include <stdexcept>
#include <sys/wait.h>
#include <unistd.h>

extern "C" ggml_backend_reg_t ggml_backend_vk_reg(); // upstream's

extern char ** environ;
extern container own_container;

const char * const TRY_GPUS = "--try-gpus";

namespace {

const char * const CHOICE = "PYLLAMAFILE_GPU"; // to the processes that are started
// What upstream has for naming devices by their numbers. It passes over processors that act as GPUs
// unless one is named so.
const char * const NAMED = "GGML_VK_VISIBLE_DEVICES";
const char * const SECONDS = "PYLLAMAFILE_GPU_SECONDS"; // for slow drivers, and for tests
const int PATIENCE = 60;

// How the trial ends.
enum { RIGHT = 0, WRONG = 1 };

// Its lines, which begin so: a driver may print as well.
const std::string DEVICE = "gpu: ", REASON = "reason: ";

bool tried = false;

struct ending {
    int status = 0; // waitpid's
    bool late = false;
    std::string said;
};

double now() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

int patience() {
    const char * given = getenv(SECONDS);
    const int seconds = given != nullptr ? atoi(given) : 0;
    return seconds > 0 ? seconds : PATIENCE;
}

// A process that a driver holds up in the kernel can't be ended, so nobody waits for it.
bool ends_before(pid_t process, double deadline, int & status) {
    while (waitpid(process, &status, WNOHANG) == 0) {
        if (now() > deadline) {
            return false;
        }
        poll(nullptr, 0, 5);
    }
    return true;
}

void read_what_is_there(int from, std::string & into) {
    char buffer[1024];
    for (ssize_t n; (n = read(from, buffer, sizeof(buffer))) > 0;) {
        into.append(buffer, (size_t)n);
    }
}

ending run_trial(const std::vector<std::string> & words, int seconds) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) != 0) {
        throw std::runtime_error(strerror(errno));
    }
    fcntl(ends[0], F_SETFL, O_NONBLOCK);
    posix_spawn_file_actions_t streams;
    posix_spawn_file_actions_init(&streams);
    posix_spawn_file_actions_addopen(&streams, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_adddup2(&streams, ends[1], 1);
    posix_spawn_file_actions_addopen(&streams, 2, "/dev/null", O_WRONLY, 0);
    std::vector<char *> argv;
    for (const std::string & word : words) {
        argv.push_back(const_cast<char *>(word.c_str()));
    }
    argv.push_back(nullptr);
    pid_t process = 0;
    const int error = posix_spawn(&process, argv[0], &streams, nullptr, argv.data(), environ);
    posix_spawn_file_actions_destroy(&streams);
    close(ends[1]);
    ending out;
    if (error != 0) {
        close(ends[0]);
        throw std::runtime_error(strerror(error));
    }
    // Not until the pipe's end: whoever the driver has started may have it, too.
    const double deadline = now() + seconds;
    while (!ends_before(process, std::min(deadline, now() + 0.05), out.status)) {
        read_what_is_there(ends[0], out.said);
        if (now() > deadline) {
            out.late = true;
            kill(process, SIGKILL);
            ends_before(process, now() + 2, out.status);
            break;
        }
    }
    read_what_is_there(ends[0], out.said);
    close(ends[0]);
    return out;
}

// The rest of the last line that begins so.
std::string last_line(const std::string & text, const std::string & start) {
    const size_t at = ("\n" + text).rfind("\n" + start);
    if (at == std::string::npos) {
        return "";
    }
    const size_t from = at + start.size();
    return text.substr(from, text.find('\n', from) - from);
}

std::string name_of_signal(int number) {
    const std::pair<int, const char *> known[] = {
        { SIGSEGV, "SIGSEGV" }, { SIGABRT, "SIGABRT" }, { SIGBUS, "SIGBUS" }, { SIGILL, "SIGILL" },
        { SIGFPE, "SIGFPE" },   { SIGKILL, "SIGKILL" }, { SIGSYS, "SIGSYS" },
    };
    for (const auto & each : known) {
        if (each.first == number) {
            return each.second;
        }
    }
    return "signal " + std::to_string(number);
}

std::string why_not(const ending & how, int seconds) {
    const std::string reason = last_line(how.said, REASON);
    return how.late ? "its driver did not answer within " + std::to_string(seconds) + " seconds"
           : WIFSIGNALED(how.status)
               ? "its driver ended with " + name_of_signal(WTERMSIG(how.status))
           : !reason.empty()
               ? reason
               : "its driver ended with exit status " + std::to_string(WEXITSTATUS(how.status));
}

// What a GPU's driver makes in /dev. It takes no time to look, and most machines have none.
bool has_device() {
    std::error_code error;
    for (const char * path : { "/dev/nvidiactl", "/dev/dxg" }) {
        if (std::filesystem::exists(path, error)) {
            return true;
        }
    }
    for (const auto & each : std::filesystem::directory_iterator("/dev/dri", error)) {
        if (each.path().filename().string().rfind("renderD", 0) == 0) {
            return true;
        }
    }
    return getenv(NAMED) != nullptr;
}

// `of_it`: the device's name and ": ", or nothing.
bool not_used(const std::string & of_it, const std::string & why) {
    if (chosen_gpus() == gpus::NEEDED) {
        throw std::runtime_error("--gpu vulkan: " + of_it + why);
    }
    fprintf(stderr, "GPU: not used: %s%s; --gpu off silences this\n", of_it.c_str(), why.c_str());
    return false;
}

// Those that a device multiplies with: a trial of all types would compile a hundred shaders.
std::vector<ggml_type> types_of(const std::string & weights) {
    std::set<ggml_type> found;
    if (!weights.empty()) {
        gguf_init_params params = {};
        params.no_alloc = true;
        gguf_context * facts = gguf_init_from_file(weights.c_str(), params);
        if (facts == nullptr) {
            throw std::runtime_error("the weights can't be read");
        }
        for (int64_t i = 0; i < gguf_get_n_tensors(facts); i++) {
            const ggml_type type = gguf_get_tensor_type(facts, i);
            if (ggml_is_quantized(type) || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16) {
                found.insert(type);
            }
        }
        gguf_free(facts);
    }
    if (found.empty()) {
        found.insert(GGML_TYPE_F16);
    }
    return { found.begin(), found.end() };
}

void say(const std::string & what, const std::string & text) {
    printf("%s%s\n", what.c_str(), text.c_str());
    fflush(stdout);
}

// Throws what is in the way of it, in a few words.
ggml_backend_reg_t start_vulkan() {
    for (const std::string & problem : { open_vulkan_loader(), fill_shaders(own_container) }) {
        if (!problem.empty()) {
            throw std::runtime_error(problem);
        }
    }
    const ggml_backend_reg_t out = ggml_backend_vk_reg();
    if (out == nullptr || ggml_backend_reg_dev_count(out) == 0) {
        throw std::runtime_error("no Vulkan driver has a GPU that computes");
    }
    return out;
}

// Of the folders that variables name, for drivers elsewhere than where the system has them.
void name_drivers(named & names) {
    names.gpu = true;
    for (const char * variable :
         { "VK_ICD_FILENAMES", "VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES", "LD_LIBRARY_PATH" }) {
        const char * value = getenv(variable);
        std::string rest = value != nullptr ? value : "";
        while (!rest.empty()) {
            const size_t to = std::min(rest.find(':'), rest.size());
            const std::string path = rest.substr(0, to);
            rest.erase(0, to + 1);
            const bool manifest = path.size() > 5 && path.compare(path.size() - 5, 5, ".json") == 0;
            const std::string folder = path.substr(0, path.rfind('/') + 1);
            // libraries are beside their manifests, or where the linker looks anyway
            names.drivers.push_back(manifest ? (folder.empty() ? "." : folder) : path);
        }
    }
}

} // namespace

void choose_gpus(gpus choice) {
    setenv(CHOICE, choice == gpus::OFF ? "off" : choice == gpus::NEEDED ? "vulkan" : "auto", 1);
}

gpus chosen_gpus() {
    const char * value = getenv(CHOICE);
    const std::string choice = value != nullptr ? value : "";
    return choice == "off" ? gpus::OFF : choice == "vulkan" ? gpus::NEEDED : gpus::AUTO;
}

void allow_drivers(named & names) {
    if (tried) {
        name_drivers(names);
    }
}

bool try_gpus(const std::string & program, const std::string & llamafile,
              const std::string & weights) {
    if (chosen_gpus() == gpus::OFF) {
        return false;
    }
    if (!has_device()) {
        return chosen_gpus() == gpus::NEEDED &&
               not_used("", "this machine has no GPU: there is no /dev/dri/renderD*, "
                            "/dev/nvidiactl or /dev/dxg");
    }
    // Layers that draw over games, or record them, are nothing for who computes.
    setenv("VK_LOADER_LAYERS_DISABLE", "~implicit~", 0);
    const int seconds = patience();
    std::vector<std::string> words = { program, "--llamafile", llamafile, TRY_GPUS };
    if (!weights.empty()) {
        words.push_back(weights);
    }
    ending how;
    try {
        how = run_trial(words, seconds);
    } catch (const std::runtime_error & problem) {
        return not_used("", std::string("it can't be tried: ") + problem.what());
    }
    tried = !how.late && WIFEXITED(how.status) && WEXITSTATUS(how.status) == RIGHT;
    const std::string device = last_line(how.said, DEVICE);
    return tried || not_used(device.empty() ? "" : device + ": ", why_not(how, seconds));
}

int trial_of_gpus(const arguments & user) {
    named names;
    names.reads.push_back(own_container.path);
    const std::string weights = user.size() > 1 ? std::string(user[1]) : "";
    if (!weights.empty()) {
        names.reads.push_back(file_of_weights(weights));
    }
    name_drivers(names);
    sandbox_names(names, false);
    enter_sandbox(duty::COMPUTES);
    try {
        const std::vector<ggml_type> types = types_of(weights);
        const ggml_backend_reg_t gpus = start_vulkan();
        for (size_t i = 0; i < ggml_backend_reg_dev_count(gpus); i++) {
            const ggml_backend_dev_t device = ggml_backend_reg_dev_get(gpus, i);
            say(DEVICE, ggml_backend_dev_description(device));
            for (const verdict & found : try_gpu(device, types)) {
                if (found.is_wrong()) {
                    throw std::runtime_error("it computes wrongly: " + found.what);
                }
            }
        }
        return RIGHT;
    } catch (const std::exception & problem) {
        say(REASON, problem.what());
        return WRONG;
    }
}

void use_gpus() {
    if (!tried) {
        return;
    }
    // Which devices there are it would say aloud; the log has them again when the model is loaded.
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    try {
        ggml_backend_register(start_vulkan());
    } catch (const std::runtime_error & problem) {
        fprintf(stderr, "GPU: not used: %s\n", problem.what());
    }
    ggml_log_set(nullptr, nullptr);
}

void list_gpus() {
    use_gpus();
    puts("Available devices:");
    const size_t mebibyte = 1024 * 1024;
    bool any = false;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        const ggml_backend_dev_t device = ggml_backend_dev_get(i);
        if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU) {
            size_t available = 0, total = 0;
            ggml_backend_dev_memory(device, &available, &total);
            printf("  %s: %s (%zu MiB, %zu MiB free)\n", ggml_backend_dev_name(device),
                   ggml_backend_dev_description(device), total / mebibyte, available / mebibyte);
            any = true;
        }
    }
    if (!any) {
        puts("  (none)");
    }
}
