#include "gpu/report.h"

#include "build-info.h"
#include "gpu/backend.h"
#include "gpu/choice.h"
#include "gpu/devices.h"
#include "gpu/trial.h"
#include "llama.h"
#include "prove/child.h"
#include "system/identity.h"
#include "system/sandbox.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>

extern container own_container;

namespace {

using words = std::vector<std::string>;

const double PATIENCE = 600; // seconds: a system compiles kernels when it sees them first
const char TOKENS[] = "48";  // that are written
const int SENTENCES = 24;    // that are read, of ten tokens or so

// Types that people have weights in.
const std::vector<ggml_type> TYPES = {
    GGML_TYPE_F32,  GGML_TYPE_F16,    GGML_TYPE_BF16,   GGML_TYPE_Q8_0,
    GGML_TYPE_Q4_0, GGML_TYPE_Q4_1,   GGML_TYPE_Q5_0,   GGML_TYPE_Q5_1,
    GGML_TYPE_Q2_K, GGML_TYPE_Q3_K,   GGML_TYPE_Q4_K,   GGML_TYPE_Q5_K,
    GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS, GGML_TYPE_MXFP4,
};

double now() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

template <typename... values> void print(const char * format, const values &... all) {
    printf(format, all...);
    fflush(stdout); // the next thing may be the last
}

void print_verdict(const verdict & found) {
    if (found.error < 0) {
        print("  %-20s the device can't\n", found.what.c_str());
    } else {
        print("  %-20s %-5s  error %.1e  %7.3f ms\n", found.what.c_str(),
              found.is_right() ? "right" : "WRONG", found.error, found.milliseconds);
    }
}

// The rest of the first line that has this in it, behind it; empty if none has.
std::string behind(const std::string & text, const std::string & mark) {
    const size_t at = text.find(mark);
    if (at == std::string::npos) {
        return "";
    }
    const size_t from = at + mark.size();
    return text.substr(from, text.find_first_of("\r\n", from) - from);
}

// Of a line of llama.cpp's on how long it took: "... per token, 12.34 tokens per second)".
std::string speed(const std::string & text, const std::string & what) {
    const std::string line = behind(text, what);
    const size_t to = line.find(" tokens per second");
    const size_t from = to == std::string::npos ? to : line.rfind(' ', to - 1);
    return from == std::string::npos ? "?" : line.substr(from + 1, to - from - 1);
}

std::string speeds(const std::string & log) {
    return speed(log, "prompt eval time") + " tokens a second read, " +
           speed(log, "  eval time =") + " written";
}

class report {
  public:
    report(const container & file, const std::string & program, const arguments & user)
        : file(file), program(program), rest(user.begin() + 1, user.end()) {}

    int run() {
        print("pyllamafile %s, llama.cpp %s (%s)\n%s, GPUs by %s\n%s\n%s\n", RUNTIME_VERSION,
              llama_version(), llama_commit(), RUNTIME_TARGET, GPU_API, system_name().c_str(),
              processor_name().c_str());
        const std::string missing = no_gpu_because();
        if (!missing.empty()) {
            return verdict("not used: " + missing);
        }
        // Twice: what the first one had to compile, the second one may find.
        const ended first = start({ GPU_PRODUCTS });
        print("\n%s", first.out.c_str());
        if (first.late || first.code != 0) {
            return verdict(first.late        ? "not used: it did not end in time"
                           : first.code == 1 ? "not used, for the reason above"
                                             : "not used: its driver ended the process");
        }
        print("in %.1f seconds, and once more in %.1f\n", first.seconds,
              start({ GPU_PRODUCTS }).seconds);
        return model();
    }

  private:
    int verdict(const std::string & text) const {
        print("\nGPU: %s\n", text.c_str());
        return text.rfind("used", 0) == 0 ? 0 : 1;
    }

    ended start(const words & more) const {
        words all = { program, "--llamafile", file.path };
        all.insert(all.end(), more.begin(), more.end());
        return run_child(all, "", true, PATIENCE);
    }

    // Text by the file's own weights, or by others that were named.
    ended write(const char * gpu) const {
        std::string prompt;
        for (int i = 0; i < SENTENCES; i++) {
            prompt += "The quick brown fox jumps over the lazy dog. ";
        }
        words more = { "-p", prompt, "-n", TOKENS, "--temp", "0", "-v", "--gpu", gpu };
        more.insert(more.end(), rest.begin(), rest.end());
        return start(more);
    }

    // What the file does by itself decides; one that it passes over for its speed is measured, too.
    int model() const {
        ended with = write("auto");
        const std::string why_not = behind(with.out, "GPU: not used: ");
        if (!why_not.empty()) {
            with = write(GPU_API);
        }
        const std::string layers = behind(with.out, "offloaded ");
        if (with.code == 0 && !layers.empty()) {
            print("\n%s\nwith the GPU       %s\n", layers.c_str(), speeds(with.out).c_str());
            print("with the processor %s\n", speeds(write("off").out).c_str());
        }
        return !why_not.empty() ? verdict("not used: " + why_not.substr(0, why_not.find("; --gpu")))
               : with.code != 0 || layers.empty()
                   ? verdict("computes rightly, but writes no text: " + with.said())
                   : verdict("used");
    }

    const container & file;
    const std::string & program;
    const words rest;
};

} // namespace

int report_gpus(const container & file, const std::string & program, const arguments & user) {
    return report(file, program, user).run();
}

int print_products_of_gpus() {
    named names;
    names.reads.push_back(own_container.path);
    name_gpu_drivers(names);
    sandbox_names(names, false);
    enter_sandbox(duty::COMPUTES);
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    try {
        const double began = now();
        const ggml_backend_reg_t gpus = start_gpu_drivers({}, gpu_duty::COMPUTES);
        print("%s\nits drivers started in %.2f seconds\n", sandbox_line().c_str(), now() - began);
        bool right = true;
        for (size_t i = 0; i < ggml_backend_reg_dev_count(gpus); i++) {
            const ggml_backend_dev_t device = ggml_backend_reg_dev_get(gpus, i);
            size_t available = 0, total = 0;
            ggml_backend_dev_memory(device, &available, &total);
            print("%s: %s, %zu MiB, %zu of them free\n", ggml_backend_dev_name(device),
                  ggml_backend_dev_description(device), total >> 20, available >> 20);
            try_gpu(device, TYPES, [&](const verdict & found) {
                print_verdict(found);
                right = right && !found.is_wrong();
            });
        }
        return right ? 0 : 1;
    } catch (const std::exception & problem) {
        print("%s\n", problem.what());
        return 1;
    }
}
