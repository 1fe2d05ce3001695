#include "machines/worker.h"

#include "common.h"
#include "ggml-backend.h"
#include "machines/connection.h"
#include "machines/speed.h"
#include "machines/tensors.h"
#include "system/cache.h"
#include "system/files.h"
#include "system/memory.h"
#include "system/sandbox.h"
#include "system/threads.h"
#include "transport.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

// of ggml-rpc.cpp, see the seam "worker"
void rpc_serve_client(const std::vector<ggml_backend_t> & backends, const char * cache_dir,
                      socket_ptr sock);

const char WHERE[] = "--worker-path";
const char WORK[] = "--worker";

namespace {

bool has_said_why = false;

// Of errors the first, which the others follow from. The machine that it works for shows the line.
void log(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR && !has_said_why) {
        has_said_why = true;
        fprintf(stderr, "error: %s", text);
    }
}

// Whatever prints must not print into the connection.
int take_standard_output() {
    const int out = fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, 3);
    dup2(STDERR_FILENO, STDOUT_FILENO);
    return out;
}

// What the other made in_hex; empty where it makes no sense.
std::string of_hex(const std::string & hex) {
    std::string out;
    for (size_t i = 0; i + 1 < hex.size(); i += 2) {
        char * rest = nullptr;
        const std::string pair = hex.substr(i, 2);
        const char byte = (char)strtoul(pair.c_str(), &rest, 16);
        if (*rest != '\0' || byte == '\0') {
            return "";
        }
        out += byte;
    }
    const char * home = getenv("HOME");
    return out.compare(0, 2, "~/") == 0 ? (home != nullptr ? home : "") + out.substr(1) : out;
}

} // namespace

std::string in_hex(const std::string & path) {
    const char * const home = getenv("HOME");
    std::string start = home != nullptr && home[0] == '/' ? home : "";
    while (!start.empty() && start.back() == '/') {
        start.pop_back();
    }
    const bool is_at_home = home != nullptr && path.rfind(start + "/", 0) == 0;
    std::string out;
    for (const char byte : is_at_home ? "~" + path.substr(start.size()) : path) {
        char pair[3];
        snprintf(pair, sizeof(pair), "%02x", (unsigned char)byte);
        out += pair;
    }
    return out;
}

int work(const std::string & program, const std::string & type, const std::string & weights) {
    const int out = take_standard_output();
    signal(SIGPIPE, SIG_IGN);
    const rlimit none = { 0, 0 };
    setrlimit(RLIMIT_CORE, &none);
    ggml_log_set(log, nullptr);
    const int threads = threads_to_use(common_cpu_get_num_math());
    named names;
    const std::string tensors = tensor_folder_of(program);
    std::string speeds = speed_folder_of(program);
    if (sandbox_confines_files() && keep_tensors_in(tensors)) {
        names.writes = { tensors };
    }
    if (!type.empty() && sandbox_confines_files() && have_own_folder(speeds)) {
        names.writes.push_back(speeds);
    } else {
        speeds.clear();
    }
    tensors_are_in(of_hex(weights));
    sandbox_names(names, false);
    enter_sandbox(duty::WORKS);
    const ggml_backend_t backend = processor(threads);
    if (out < 0 || backend == nullptr) {
        fputs("error: the worker can't start\n", stderr);
        return 1;
    }
    std::string line = "pyllamafile worker " + std::to_string((long long)free_memory());
    if (!type.empty()) {
        char speed[32];
        snprintf(speed, sizeof(speed), " %g", speed_of(type, backend, threads, speeds));
        line += speed;
    }
    line += "\n";
    if (write(out, line.data(), line.size()) != (ssize_t)line.size()) {
        return 1;
    }
    connections_are({ { "", STDIN_FILENO, out } });
    rpc_serve_client({ backend }, nullptr, socket_t::connect("", 0));
    if (!has_said_why) {
        fputs("error: the worker was sent what makes no sense\n", stderr);
    }
    fflush(nullptr);
    _exit(1);
}
