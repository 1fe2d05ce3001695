#include "machines/worker.h"

#include "common.h"
#include "ggml-backend.h"
#include "machines/connection.h"
#include "machines/tensors.h"
#include "system/cache.h"
#include "system/memory.h"
#include "system/sandbox.h"
#include "system/threads.h"
#include "transport.h"

#include <csignal>
#include <cstdio>
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

ggml_backend_t processor(int threads) {
    const ggml_backend_dev_t device = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    const ggml_backend_t out = ggml_backend_dev_init(device, nullptr);
    const auto set_threads = (ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(device), "ggml_backend_set_n_threads");
    if (out != nullptr && set_threads != nullptr) {
        set_threads(out, threads);
    }
    return out;
}

} // namespace

int work(const std::string & program) {
    const int out = take_standard_output();
    signal(SIGPIPE, SIG_IGN);
    const rlimit none = { 0, 0 };
    setrlimit(RLIMIT_CORE, &none);
    ggml_log_set(log, nullptr);
    const int threads = threads_to_use(common_cpu_get_num_math());
    named names;
    const std::string tensors = tensor_folder_of(program);
    if (sandbox_confines_files() && keep_tensors_in(tensors)) {
        names.writes = { tensors };
    }
    sandbox_names(names, false);
    enter_sandbox(duty::WORKS);
    const ggml_backend_t backend = processor(threads);
    if (out < 0 || backend == nullptr) {
        fputs("error: the worker can't start\n", stderr);
        return 1;
    }
    const std::string line =
        "pyllamafile worker " + std::to_string((long long)free_memory()) + "\n";
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
