// A transformer of some layers, evaluated by ggml's Metal and by ggml's processor. What was
// computed, and how far the logits are from each other, goes to standard output.
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-metal.h"
#include "ggml.h"
#include "kernels.h"
#include "texts.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <vector>

extern "C" {
void bridge_start(void);
void bridge_report(void);
}

namespace {

// More nodes than the first command buffer takes (64), so that there is a second.
constexpr int LAYERS = 3;
constexpr size_t PAGE = 4096;
constexpr int WIDTH = 64, HEADS = 4, HEAD = WIDTH / HEADS, INNER = 128, WORDS = 96;
const std::vector<int32_t> TOKENS = { 5, 90, 17, 3, 5 };

class Model {
  public:
    explicit Model(ggml_backend_t backend);
    std::vector<float> logits();
    ~Model();

  private:
    ggml_tensor * weights(int64_t columns, int64_t rows);
    ggml_tensor * normal(ggml_tensor * x);
    ggml_tensor * attention(ggml_tensor * x);
    ggml_tensor * forward(ggml_tensor * x);
    void pass();

    ggml_backend_t backend;
    ggml_context * context;
    void * file;
    ggml_backend_buffer_t mapped, buffer;
    std::vector<ggml_tensor *> drawn;
    ggml_tensor *tokens, *positions, *mask, *result;
    ggml_cgraph * graph;
};

Model::Model(ggml_backend_t backend)
    : backend(backend), context(ggml_init({ 1 << 22, nullptr, true })) {
    if (backend == nullptr) {
        throw std::runtime_error("there is nothing to compute with");
    }
    const int64_t n = TOKENS.size();
    tokens = ggml_new_tensor_1d(context, GGML_TYPE_I32, n);
    positions = ggml_new_tensor_1d(context, GGML_TYPE_I32, n);
    mask = ggml_new_tensor_2d(context, GGML_TYPE_F32, n, n);
    ggml_tensor * words = weights(WIDTH, WORDS);
    ggml_tensor * x = ggml_get_rows(context, words, tokens);
    for (int i = 0; i < LAYERS; i++) {
        x = ggml_add(context, x, attention(normal(x)));
        x = ggml_add(context, x, forward(normal(x)));
    }
    result = ggml_mul_mat(context, words, normal(x));
    graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, result);
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        if (!ggml_backend_supports_op(backend, ggml_graph_node(graph, i))) {
            throw std::runtime_error(ggml_op_desc(ggml_graph_node(graph, i)));
        }
    }
    // Weights stay where they are, as those of a mapped file do.
    size_t size = 0;
    for (ggml_tensor * tensor : drawn) {
        size += GGML_PAD(ggml_nbytes(tensor), PAGE);
    }
    file = std::aligned_alloc(PAGE, size);
    mapped =
        ggml_backend_dev_buffer_from_host_ptr(ggml_backend_get_device(backend), file, size, size);
    ggml_tallocr allocator = ggml_tallocr_new(mapped);
    for (ggml_tensor * tensor : drawn) {
        ggml_tallocr_alloc(&allocator, tensor);
    }
    buffer = ggml_backend_alloc_ctx_tensors(context, backend);
    ggml_backend_buffer_clear(buffer, 0xff); // what nobody computes is no number
}

Model::~Model() {
    ggml_backend_buffer_free(buffer);
    ggml_backend_buffer_free(mapped);
    std::free(file);
    ggml_free(context);
    ggml_backend_free(backend);
}

ggml_tensor * Model::weights(int64_t columns, int64_t rows) {
    drawn.push_back(ggml_new_tensor_2d(context, GGML_TYPE_F32, columns, rows));
    return drawn.back();
}

ggml_tensor * Model::normal(ggml_tensor * x) {
    return ggml_mul(context, ggml_rms_norm(context, x, 1e-5f), weights(WIDTH, 1));
}

ggml_tensor * Model::attention(ggml_tensor * x) {
    const int64_t n = TOKENS.size();
    auto heads = [&] {
        ggml_tensor * product = ggml_mul_mat(context, weights(WIDTH, WIDTH), x);
        return ggml_reshape_3d(context, product, HEAD, HEADS, n);
    };
    auto turned = [&](ggml_tensor * t) {
        t = ggml_rope_ext(context, t, positions, nullptr, HEAD, 0, 4096, 10000, 1, 0, 1, 32, 1);
        return ggml_permute(context, t, 0, 2, 1, 3);
    };
    ggml_tensor * queries = turned(heads());
    ggml_tensor * keys = turned(heads());
    ggml_tensor * values = ggml_cont(context, ggml_permute(context, heads(), 1, 2, 0, 3));
    ggml_tensor * scores = ggml_mul_mat(context, keys, queries);
    scores = ggml_soft_max_ext(context, scores, mask, 1 / std::sqrt(float(HEAD)), 0);
    ggml_tensor * seen = ggml_permute(context, ggml_mul_mat(context, values, scores), 0, 2, 1, 3);
    return ggml_mul_mat(context, weights(WIDTH, WIDTH), ggml_cont_2d(context, seen, WIDTH, n));
}

ggml_tensor * Model::forward(ggml_tensor * x) {
    ggml_tensor * gate = ggml_mul_mat(context, weights(WIDTH, INNER), x);
    ggml_tensor * up = ggml_mul_mat(context, weights(WIDTH, INNER), x);
    return ggml_mul_mat(context, weights(INNER, WIDTH), ggml_swiglu_split(context, gate, up));
}

// What one backend does to let another one go on, where it can.
void Model::pass() {
    if (ggml_backend_event_t event = ggml_backend_event_new(ggml_backend_get_device(backend))) {
        ggml_backend_event_record(event, backend);
        ggml_backend_event_wait(backend, event);
        ggml_backend_event_synchronize(event);
        ggml_backend_event_free(event);
    }
}

std::vector<float> Model::logits() {
    auto set = [](ggml_tensor * tensor, const auto & numbers) {
        ggml_backend_tensor_set(tensor, numbers.data(), 0, ggml_nbytes(tensor));
    };
    std::mt19937 random(1); // for both the same
    std::normal_distribution<float> numbers(0, 0.3f);
    for (ggml_tensor * tensor : drawn) {
        std::vector<float> weights(ggml_nelements(tensor));
        for (float & weight : weights) {
            weight = numbers(random);
        }
        set(tensor, weights);
    }
    const int n = TOKENS.size();
    std::vector<int32_t> places;
    std::vector<float> later;
    for (int i = 0; i < n; i++) {
        places.push_back(i);
        for (int j = 0; j < n; j++) {
            later.push_back(j > i ? -INFINITY : 0);
        }
    }
    set(tokens, TOKENS);
    set(positions, places);
    std::vector<float> logits(ggml_nelements(result));
    for (int token = 0; token < 2; token++) {
        // As contexts do it: all of this is in the queue before somebody waits.
        ggml_backend_tensor_set_async(backend, mask, later.data(), 0, ggml_nbytes(mask));
        pass();
        if (ggml_backend_graph_compute_async(backend, graph) != GGML_STATUS_SUCCESS) {
            throw std::runtime_error("the graph was not computed");
        }
        ggml_backend_tensor_get_async(backend, result, logits.data(), 0, ggml_nbytes(result));
        ggml_backend_synchronize(backend);
    }
    return logits;
}

void compare() {
    ggml_backend_dev_t device = ggml_backend_reg_dev_get(ggml_backend_metal_reg(), 0);
    std::vector<float> ours, reference;
    {
        ours = Model(ggml_backend_dev_init(device, nullptr)).logits();
        const long first = counts.objects;
        ours = Model(ggml_backend_dev_init(device, nullptr)).logits();
        printf("left %ld\n", counts.objects - first);
    }
    ggml_backend_t processor = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(processor, 1);
    reference = Model(processor).logits();
    double error = 0, square = 0;
    for (size_t i = 0; i < reference.size(); i++) {
        error += std::pow(double(ours[i]) - reference[i], 2);
        square += std::pow(double(reference[i]), 2);
    }
    printf("error %g\nlogits %zu\nsquare %g\n", error / square, reference.size(), square);
    printf("command_buffers %ld\nresidency_sets %ld\nallocations %ld\nrequests %ld\nends %ld\n",
           counts.command_buffers, counts.residency_sets, counts.allocations, counts.requests,
           counts.ends);
}

} // namespace

int main() {
    bridge_start();
    int code = 0;
    try {
        if (!unpack_kernel_texts()) {
            throw std::runtime_error("the kernels' text is damaged");
        }
        compare();
    } catch (const std::exception & error) {
        fprintf(stderr, "%s\n", error.what());
        code = 1;
    }
    bridge_report();
    kernel_report();
    return code;
}
