#include "machines/speed.h"

#include "ggml-cpp.h"
#include "ggml.h"
#include "system/cache.h"
#include "system/files.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <new>

namespace {

const int64_t DEPTH = 4096;       // of the product, elements
const size_t WEIGHTS = 64 << 20;  // bytes; more than most processors keep beside them
const double LONG_ENOUGH = 0.25;  // seconds
const int RUNS = 3;               // at least
const size_t LONGEST_RECORD = 32; // bytes
// As all bytes of the weights: of no type do they make a number that is no number, or one so small
// that a processor takes longer for it.
const int ANY = 0x11;

ggml_type type_named(const std::string & name) {
    for (int type = 0; type < GGML_TYPE_COUNT; type++) {
        if (ggml_blck_size((ggml_type)type) > 0 && name == ggml_type_name((ggml_type)type)) {
            return (ggml_type)type;
        }
    }
    return GGML_TYPE_COUNT;
}

struct free_memory_of {
    void operator()(void * memory) const {
        ::operator delete(memory, std::align_val_t(64));
    }
};

// GB in a second; 0 if there is no memory for it, or the type is none to multiply with.
double measure(ggml_type type, ggml_backend_t backend) {
    using clock = std::chrono::steady_clock;
    if (DEPTH % ggml_blck_size(type) != 0) {
        return 0;
    }
    const int64_t rows = (int64_t)(WEIGHTS / ggml_row_size(type, DEPTH));
    const size_t size = ggml_row_size(type, DEPTH) * (size_t)rows;
    const size_t columns = (size_t)(DEPTH + rows) * sizeof(float);
    // not by ggml, which says so where there is no memory
    const std::unique_ptr<void, free_memory_of> memory(
        ::operator new(size + columns + 128, std::align_val_t(64), std::nothrow));
    if (memory == nullptr) {
        return 0;
    }
    memset(memory.get(), ANY, size + columns + 128);
    const ggml_init_params params = { 4 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr,
                                      true };
    const ggml_context_ptr context(ggml_init(params));
    ggml_tensor * const a = ggml_new_tensor_2d(context.get(), type, DEPTH, rows);
    ggml_tensor * const b = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, DEPTH);
    ggml_tensor * const c = ggml_mul_mat(context.get(), a, b);
    if (!ggml_backend_supports_op(backend, c)) {
        return 0;
    }
    const ggml_backend_buffer_ptr buffer(
        ggml_backend_cpu_buffer_from_ptr(memory.get(), size + columns + 128));
    char * at = (char *)memory.get();
    for (ggml_tensor * each : { a, b, c }) {
        ggml_backend_tensor_alloc(buffer.get(), each, at);
        at += (ggml_nbytes(each) + 31) / 32 * 32;
    }
    ggml_cgraph * const graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, c);
    double best = INFINITY, all = 0;
    for (int run = 0; run < RUNS || all < LONG_ENOUGH; run++) {
        const clock::time_point began = clock::now();
        if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
            return 0;
        }
        const double took = std::chrono::duration<double>(clock::now() - began).count();
        best = std::min(best, took);
        all += took;
    }
    return (double)size / 1e9 / std::max(best, 1e-9);
}

// 0 if there is none that makes sense.
double read_record(const std::string & path) {
    FILE * file = open_own(path, false);
    if (file == nullptr) {
        return 0;
    }
    char text[LONGEST_RECORD + 1] = {};
    const size_t size = fread(text, 1, LONGEST_RECORD, file);
    fclose(file);
    char * rest = nullptr;
    const double out = strtod(text, &rest);
    const bool whole = size > 0 && rest > text && *rest == '\n' && std::isfinite(out);
    return whole ? rounded_speed(out) : 0;
}

void write_record(const std::string & path, double speed) {
    std::error_code error;
    std::filesystem::remove(std::filesystem::u8path(path), error); // it made no sense
    FILE * file = open_own(path, true);
    if (file != nullptr) {
        fprintf(file, "%g\n", speed);
        fclose(file);
    }
}

} // namespace

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

double rounded_speed(double measured) {
    if (!(measured > 0)) {
        return 0;
    }
    int power = 0;
    const double part = 2 * std::frexp(measured, &power); // from 1 to 2
    // halfway, as factors go
    const double step = part < std::sqrt(1.5) ? 1 : part < std::sqrt(3.0) ? 1.5 : 2;
    return std::ldexp(step, power - 1);
}

double speed_of(const std::string & type, ggml_backend_t backend, int threads,
                const std::string & folder) {
    const ggml_type wanted = type_named(type);
    if (wanted == GGML_TYPE_COUNT || backend == nullptr) {
        return 0;
    }
    const std::string path =
        folder.empty() ? "" : folder + "/" + type + "-" + std::to_string(threads) + SPEED_RECORD;
    const double known = path.empty() ? 0 : read_record(path);
    if (known > 0) {
        return known;
    }
    const double out = rounded_speed(measure(wanted, backend));
    if (!path.empty() && out > 0) {
        write_record(path, out);
    }
    return out;
}
