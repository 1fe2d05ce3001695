#include "trial.h"

#include "ggml-alloc.h"
#include "ggml.h"
#include "prove/products.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>

namespace {

// Devices multiply in 16 bits where the processor has 32, and some round activations to 8: what
// upstream's test-backend-ops allows a product (5e-4), and what a broken one never keeps.
const double MOST_ERROR = 5e-4;

struct backend_end {
    void operator()(ggml_backend_t it) const {
        ggml_backend_free(it);
    }
};
struct context_end {
    void operator()(ggml_context * it) const {
        ggml_free(it);
    }
};
struct buffer_end {
    void operator()(ggml_backend_buffer_t it) const {
        ggml_backend_buffer_free(it);
    }
};

// Numbers that are the same everywhere, in [-1, 1), and that no two rows share.
std::vector<float> numbers(size_t count, uint64_t seed) {
    std::vector<float> out(count);
    uint64_t state = seed * 0x9e3779b97f4a7c15 + 1;
    for (float & value : out) {
        state = state * 6364136223846793005 + 1442695040888963407;
        value = (float)(int32_t)(state >> 32) / 2147483648.0f;
    }
    return out;
}

std::vector<char> in_type(ggml_type type, const std::vector<float> & values, int64_t columns) {
    const int64_t rows = (int64_t)values.size() / columns;
    const std::vector<uint8_t> any = weights_of_grid(type, columns, rows);
    if (!any.empty()) {
        return { any.begin(), any.end() };
    }
    std::vector<char> out(ggml_row_size(type, columns) * (size_t)rows);
    const std::vector<float> weights((size_t)columns, 1.0f); // some types ask how much each counts
    ggml_quantize_chunk(type, values.data(), out.data(), 0, rows, columns, weights.data());
    return out;
}

std::vector<float> as_numbers(ggml_type type, const std::vector<char> & bytes, int64_t count) {
    std::vector<float> out((size_t)count);
    if (type == GGML_TYPE_F32) {
        memcpy(out.data(), bytes.data(), bytes.size());
    } else {
        ggml_get_type_traits(type)->to_float(bytes.data(), out.data(), count);
    }
    return out;
}

double error_of(const std::vector<float> & found, const std::vector<double> & wanted) {
    double wrong = 0, all = 0;
    for (size_t i = 0; i < wanted.size(); i++) {
        const double off = found[i] - wanted[i];
        wrong += off * off;
        all += wanted[i] * wanted[i];
    }
    return std::isfinite(wrong) ? wrong / all : INFINITY;
}

struct input {
    ggml_tensor * tensor;
    std::vector<char> bytes;
};

using backend_ptr = std::unique_ptr<ggml_backend, backend_end>;
using context_ptr = std::unique_ptr<ggml_context, context_end>;
using buffer_ptr = std::unique_ptr<ggml_backend_buffer, buffer_end>;

double seconds_of(ggml_backend_t backend, ggml_cgraph * graph) {
    const auto start = std::chrono::steady_clock::now();
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("it fails when it computes");
    }
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// One operation on the device, twice.
class experiment {
  public:
    explicit experiment(ggml_backend_t backend)
        : backend(backend),
          context(
              ggml_init({ ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true })) {}

    ggml_context * ggml() const {
        return context.get();
    }

    ggml_tensor * give(ggml_type type, std::vector<int64_t> shape, std::vector<char> bytes) {
        ggml_tensor * out = ggml_new_tensor(ggml(), type, (int)shape.size(), shape.data());
        inputs.push_back({ out, std::move(bytes) });
        return out;
    }

    // Empty where the device can't. Throws std::runtime_error where it fails.
    std::vector<float> result(ggml_tensor * wanted, double & milliseconds) {
        if (!ggml_backend_supports_op(backend, wanted)) {
            return {};
        }
        ggml_cgraph * graph = ggml_new_graph(ggml());
        ggml_build_forward_expand(graph, wanted);
        const buffer_ptr memory(ggml_backend_alloc_ctx_tensors(ggml(), backend));
        if (!memory) {
            throw std::runtime_error("it has no memory");
        }
        for (const input & each : inputs) {
            ggml_backend_tensor_set(each.tensor, each.bytes.data(), 0, each.bytes.size());
        }
        for (int round = 0; round < 2; round++) {
            milliseconds = 1000 * seconds_of(backend, graph);
        }
        std::vector<float> out((size_t)ggml_nelements(wanted));
        ggml_backend_tensor_get(wanted, out.data(), 0, ggml_nbytes(wanted));
        return out;
    }

  private:
    ggml_backend_t backend;
    context_ptr context;
    std::vector<input> inputs;
};

template <typename number> std::vector<char> bytes_of(const std::vector<number> & values) {
    std::vector<char> out(values.size() * sizeof(number));
    memcpy(out.data(), values.data(), out.size());
    return out;
}

// A prompt's width, and a single token: they are other shaders.
verdict multiply(ggml_backend_t backend, ggml_type type, int64_t tokens) {
    const int64_t columns = 512, rows = 96;
    const std::vector<char> weights = in_type(type, numbers(columns * rows, 1), columns);
    const std::vector<float> plain = as_numbers(type, weights, columns * rows);
    const std::vector<float> activations = numbers(columns * tokens, 2);
    std::vector<double> wanted;
    for (int64_t token = 0; token < tokens; token++) {
        for (int64_t row = 0; row < rows; row++) {
            double sum = 0;
            for (int64_t i = 0; i < columns; i++) {
                sum += (double)plain[row * columns + i] * activations[token * columns + i];
            }
            wanted.push_back(sum);
        }
    }
    experiment trial(backend);
    ggml_tensor * product =
        ggml_mul_mat(trial.ggml(), trial.give(type, { columns, rows }, weights),
                     trial.give(GGML_TYPE_F32, { columns, tokens }, bytes_of(activations)));
    verdict out = { std::string("mul_mat ") + ggml_type_name(type) + " x " + std::to_string(tokens),
                    -1, 0 };
    const std::vector<float> found = trial.result(product, out.milliseconds);
    out.error = found.empty() ? -1 : error_of(found, wanted);
    return out;
}

// One token looks at `length` others, with two heads that share their keys and values.
verdict attend(ggml_backend_t backend) {
    const int64_t width = 64, heads = 2, length = 64;
    const float scale = 0.125f;
    const std::vector<float> query = numbers(width * heads, 3);
    const std::vector<char> keys = in_type(GGML_TYPE_F16, numbers(width * length, 4), width),
                            values = in_type(GGML_TYPE_F16, numbers(width * length, 5), width);
    const std::vector<float> key = as_numbers(GGML_TYPE_F16, keys, width * length),
                             value = as_numbers(GGML_TYPE_F16, values, width * length);
    std::vector<double> wanted;
    for (int64_t head = 0; head < heads; head++) {
        std::vector<double> share((size_t)length), out((size_t)width);
        double all = 0;
        for (int64_t at = 0; at < length; at++) {
            double sum = 0;
            for (int64_t i = 0; i < width; i++) {
                sum += (double)query[head * width + i] * key[at * width + i];
            }
            all += share[at] = exp(sum * scale);
        }
        for (int64_t at = 0; at < length; at++) {
            for (int64_t i = 0; i < width; i++) {
                out[i] += share[at] / all * value[at * width + i];
            }
        }
        wanted.insert(wanted.end(), out.begin(), out.end());
    }
    experiment trial(backend);
    ggml_tensor * answer = ggml_flash_attn_ext(
        trial.ggml(), trial.give(GGML_TYPE_F32, { width, 1, heads }, bytes_of(query)),
        trial.give(GGML_TYPE_F16, { width, length, 1 }, keys),
        trial.give(GGML_TYPE_F16, { width, length, 1 }, values), nullptr, scale, 0, 0);
    verdict out = { "attention", -1, 0 };
    const std::vector<float> found = trial.result(answer, out.milliseconds);
    out.error = found.empty() ? -1 : error_of(found, wanted);
    return out;
}

// Speed

// Of a typical request: a question with what it is about, and an answer.
const double TOKENS_READ = 512, TOKENS_WRITTEN = 128;

// A token that is written takes all weights out of memory once: more than most processors keep
// beside them. Of a prompt the arithmetic counts, and a part of it is enough.
const struct {
    int64_t tokens;
    uint64_t bytes;    // of weights
    double of_request; // how often it is done
} PARTS[] = {
    { 1, 64 << 20, TOKENS_WRITTEN },
    { 128, 4 << 20, TOKENS_READ / 128 },
};
const int RUNS = 4;             // the first one compiles
const double LONG_ENOUGH = 0.1; // seconds

// As all bytes of weights: of no type do they make a number that is no number.
const char ANY = 0x11;

// Seconds for a byte of weights, by as many products as have about so many bytes. Goes on no longer
// than it has to once it has taken `patience` seconds.
double pace(ggml_backend_t backend, const gpu_work & work, int64_t tokens, uint64_t bytes,
            double patience) {
    const size_t row = ggml_row_size(work.type, work.columns);
    bytes = std::min(bytes, work.bytes);
    const int64_t rows = std::clamp<int64_t>((int64_t)(bytes / row), 1, work.rows);
    const auto count = (size_t)std::clamp<uint64_t>(bytes / (row * (uint64_t)rows), 1, 128);
    const context_ptr context(ggml_init(
        { ggml_tensor_overhead() * (2 * count + 1) + ggml_graph_overhead(), nullptr, true }));
    ggml_cgraph * graph = ggml_new_graph(context.get());
    ggml_tensor * input = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, work.columns, tokens);
    std::vector<ggml_tensor *> weights;
    for (size_t i = 0; i < count; i++) {
        weights.push_back(ggml_new_tensor_2d(context.get(), work.type, work.columns, rows));
        ggml_tensor * product = ggml_mul_mat(context.get(), weights.back(), input);
        if (!ggml_backend_supports_op(backend, product)) {
            throw std::runtime_error(std::string("it can't multiply ") + ggml_type_name(work.type));
        }
        ggml_build_forward_expand(graph, product);
    }
    const buffer_ptr memory(ggml_backend_alloc_ctx_tensors(context.get(), backend));
    if (!memory) {
        throw std::runtime_error("it has no memory");
    }
    const std::vector<char> any(ggml_nbytes(weights.front()), ANY);
    for (ggml_tensor * each : weights) {
        ggml_backend_tensor_set(each, any.data(), 0, any.size());
    }
    const std::vector<float> values = numbers((size_t)(work.columns * tokens), 1);
    ggml_backend_tensor_set(input, values.data(), 0, ggml_nbytes(input));
    double best = INFINITY, all = 0;
    for (int run = 0; run < RUNS && (run < 2 || all < patience); run++) {
        const double took = seconds_of(backend, graph);
        if (run > 0) {
            best = std::min(best, took);
            all += took;
        }
    }
    return best / (double)(any.size() * count);
}

} // namespace

bool verdict::is_right() const {
    return error >= 0 && error <= MOST_ERROR;
}

bool verdict::is_wrong() const {
    return error >= 0 && !is_right();
}

void try_gpu(ggml_backend_dev_t device, const std::vector<ggml_type> & types,
             const std::function<void(const verdict &)> & say) {
    const backend_ptr backend(ggml_backend_dev_init(device, nullptr));
    if (!backend) {
        throw std::runtime_error("it can't be started");
    }
    for (const ggml_type type : types) {
        for (const int64_t tokens : { 1, 32 }) {
            say(multiply(backend.get(), type, tokens));
        }
    }
    say(attend(backend.get()));
}

double slowness_of(ggml_backend_dev_t device, ggml_backend_dev_t processor, int threads,
                   const gpu_work & work) {
    const backend_ptr gpu(ggml_backend_dev_init(device, nullptr)),
        cpu(ggml_backend_dev_init(processor, nullptr));
    const auto set_threads = (ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(
        ggml_backend_dev_backend_reg(processor), "ggml_backend_set_n_threads");
    if (!gpu || !cpu || set_threads == nullptr) {
        throw std::runtime_error("it can't be started");
    }
    set_threads(cpu.get(), threads);
    double of_gpu = 0, of_cpu = 0;
    for (const auto & part : PARTS) {
        const double one = pace(cpu.get(), work, part.tokens, part.bytes, LONG_ENOUGH);
        of_cpu += part.of_request * one;
        of_gpu += part.of_request * pace(gpu.get(), work, part.tokens, part.bytes, LONG_ENOUGH);
    }
    return of_gpu / of_cpu;
}
