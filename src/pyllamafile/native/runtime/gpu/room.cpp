#include "gpu/room.h"

#include "choice.h"
#include "common.h"
#include "errors.h"
#include "ggml-backend-impl.h"
#include "llama-ext.h"
#include "log.h"
#include "mtmd.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <exception>
#include <iostream>
#include <map>
#include <stdexcept>
#include <string>

// Upstream's, under the names that seams give them.
common_init_result_ptr common_init_from_params_upstream(common_params & params, bool model_only);
extern "C" mtmd_context * mtmd_init_from_file_upstream(const char * file, const llama_model * model,
                                                       mtmd_context_params params);
std::map<ggml_backend_dev_t, size_t> mtmd_get_memory_usage_upstream(const char * file,
                                                                    mtmd_context_params params);

namespace {

std::string watched; // what the first device is called
std::atomic<bool> fell_short{ false };
gpu_share being_loaded, loaded;

// The same for all devices, for they have the same way to GPUs.
decltype(ggml_backend_device_i::init_backend) start;
decltype(ggml_backend_i::graph_compute) compute;
decltype(ggml_backend_buffer_type_i::alloc_buffer) allocate;

// Upstream says on standard error what it got no memory for, and the line about the model says it.
struct unheard {
    std::streambuf * const before = std::cerr.rdbuf(nullptr);

    ~unheard() {
        std::cerr.rdbuf(before);
    }
};

ggml_backend_buffer_t allocate_watched(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t out = nullptr;
    const unheard remarks;
    try {
        out = allocate(type, size);
    } catch (const std::exception &) { // it has no memory
    }
    fell_short = fell_short || out == nullptr;
    return out;
}

ggml_status compute_watched(ggml_backend_t backend, ggml_cgraph * graph) {
    try {
        return compute(backend, graph);
    } catch (const std::exception & problem) {
        if (!fell_short.exchange(true)) {
            LOG_ERR("%s gave up: %s\n", watched.c_str(), problem.what());
        }
        return GGML_STATUS_ALLOC_FAILED;
    }
}

ggml_backend_t start_watched(ggml_backend_dev_t device, const char * params) {
    const ggml_backend_t out = start(device, params);
    if (out != nullptr && out->iface.graph_compute != compute_watched) {
        compute = out->iface.graph_compute;
        out->iface.graph_compute = compute_watched;
    }
    const ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(device);
    if (type != nullptr && type->iface.alloc_buffer != allocate_watched) {
        allocate = type->iface.alloc_buffer;
        type->iface.alloc_buffer = allocate_watched;
    }
    return out;
}

bool is_whole(common_init_result & result, bool model_only) {
    return result.model() != nullptr && (model_only || result.context() != nullptr);
}

gpu_share share_of(const llama_model * model) {
    gpu_share out = being_loaded;
    for (int i = 0; i < llama_model_n_devices(model); i++) {
        out.devices.push_back(ggml_backend_dev_description(llama_model_get_device(model, i)));
    }
    return out.devices.empty() ? gpu_share() : out;
}

} // namespace

void say_none_is_used(const std::string & why) {
    try {
        say_no_gpu(why);
    } catch (const std::runtime_error & needed) {
        end_with_error(needed.what());
    }
}

void watch_gpu(ggml_backend_dev_t device) {
    if (watched.empty()) {
        watched = ggml_backend_dev_description(device);
        start = device->iface.init_backend;
    }
    device->iface.init_backend = start_watched;
}

gpu_share share_of_gpus() {
    return loaded;
}

// For the model's loader, which says so when it has decided.
void layers_are_on_gpus(int layers, int of) {
    being_loaded = watched.empty() ? gpu_share() : gpu_share{ layers, of };
}

common_init_result_ptr common_init_from_params(common_params & params, bool model_only) {
    const common_params given = params;
    const bool none = !given.devices.empty() && given.devices.front() == nullptr;
    int layers = given.n_gpu_layers;
    loaded = {};
    while (!watched.empty() && layers != 0 && !none) {
        fell_short = false;
        being_loaded = {};
        hold_errors();
        common_init_result_ptr out = common_init_from_params_upstream(params, model_only);
        if (is_whole(*out, model_only) && !fell_short) {
            forget_errors();
            loaded = share_of(out->model());
            if (layers != given.n_gpu_layers) {
                fprintf(stderr, "GPU: %s has no room for more than %d of %d layers\n",
                        watched.c_str(), loaded.layers, loaded.of);
            }
            return out;
        }
        forget_errors();
        layers = fell_short ? being_loaded.layers / 2 : 0;
        params = given; // where the context gets shorter, if there is little memory
        params.n_gpu_layers = layers;
        params.speculative.draft.n_gpu_layers = 0; // which nobody loads again
    }
    if (layers != given.n_gpu_layers) {
        const std::string why =
            watched + (fell_short ? " has no room for" : " could not load") + " this model";
        if (fell_short && chosen_gpus() == gpus::NEEDED) {
            say_none_is_used(why);
        }
        params.devices = { nullptr }; // of upstream's, the end of a list
        common_init_result_ptr out = common_init_from_params_upstream(params, model_only);
        if (is_whole(*out, model_only)) {
            say_none_is_used(why);
        }
        fell_short = false;
        return out;
    }
    return common_init_from_params_upstream(params, model_only);
}

// A projector goes to a GPU as a whole, or stays with the processor.
mtmd_context * mtmd_init_from_file(const char * file, const llama_model * model,
                                   mtmd_context_params params) {
    if (watched.empty() || !params.use_gpu) {
        return mtmd_init_from_file_upstream(file, model, params);
    }
    fell_short = false;
    hold_errors();
    mtmd_context * out = mtmd_init_from_file_upstream(file, model, params);
    forget_errors();
    if (out != nullptr && !fell_short) {
        return out;
    }
    mtmd_free(out);
    fell_short = false;
    params.use_gpu = false;
    out = mtmd_init_from_file_upstream(file, model, params);
    if (out != nullptr) {
        fprintf(stderr, "GPU: %s has no room for the projector\n", watched.c_str());
    }
    return out;
}

// Where the processor keeps it, it takes nothing of what the layers find on a GPU.
std::map<ggml_backend_dev_t, size_t> mtmd_get_memory_usage(const char * file,
                                                           mtmd_context_params params) {
    if (watched.empty() || !params.use_gpu) {
        return mtmd_get_memory_usage_upstream(file, params);
    }
    hold_errors();
    std::map<ggml_backend_dev_t, size_t> out = mtmd_get_memory_usage_upstream(file, params);
    forget_errors();
    params.use_gpu = false;
    return out.empty() ? mtmd_get_memory_usage_upstream(file, params) : out;
}

// Upstream takes it that the processor stands behind all GPUs.
extern "C" ggml_backend_dev_t gpus_first(size_t index) {
    const size_t count = ggml_backend_dev_count();
    for (const bool processor : { false, true }) {
        for (size_t i = 0; i < count; i++) {
            const ggml_backend_dev_t device = ggml_backend_dev_get(i);
            const bool is = ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU;
            if (is == processor && index-- == 0) {
                return device;
            }
        }
    }
    return nullptr;
}
