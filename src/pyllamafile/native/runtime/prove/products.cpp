#include "prove/products.h"

#include "ggml-cpp.h"
#include "ggml.h"

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

// More than a panel of gemm.cpp deep and no whole number of its rows; few columns, and many.
const int64_t DEPTH = 1536, ROWS = 20;
const int64_t COLUMNS[] = { 1, 5, 21 };

// Every type that weights may have and that ggml can write.
const ggml_type TYPES[] = {
    GGML_TYPE_F32,     GGML_TYPE_F16,   GGML_TYPE_BF16,    GGML_TYPE_Q1_0,   GGML_TYPE_Q2_0,
    GGML_TYPE_Q4_0,    GGML_TYPE_Q4_1,  GGML_TYPE_Q5_0,    GGML_TYPE_Q5_1,   GGML_TYPE_Q8_0,
    GGML_TYPE_Q2_K,    GGML_TYPE_Q3_K,  GGML_TYPE_Q4_K,    GGML_TYPE_Q5_K,   GGML_TYPE_Q6_K,
    GGML_TYPE_IQ1_S,   GGML_TYPE_IQ1_M, GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S,
    GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ4_NL,  GGML_TYPE_IQ4_XS, GGML_TYPE_TQ1_0,
    GGML_TYPE_TQ2_0,   GGML_TYPE_MXFP4, GGML_TYPE_NVFP4,
};

// Between -1 and 1, the same everywhere (Numerical Recipes' generator).
std::vector<float> numbers(int64_t count, uint32_t seed) {
    std::vector<float> out((size_t)count);
    for (float & number : out) {
        seed = seed * 1664525u + 1013904223u;
        number = (float)(int32_t)seed / 2147483648.0f;
    }
    return out;
}

struct matrix {
    ggml_type type;
    std::vector<uint8_t> data;
};

// Types whose quants are places in a grid. Any bytes will do, as long as each block has a scale.
bool is_by_grid(ggml_type type) {
    switch (type) {
    case GGML_TYPE_IQ1_S:
    case GGML_TYPE_IQ1_M:
    case GGML_TYPE_IQ2_XXS:
    case GGML_TYPE_IQ2_XS:
    case GGML_TYPE_IQ2_S:
    case GGML_TYPE_IQ3_XXS:
    case GGML_TYPE_IQ3_S:
        return true;
    default:
        return false;
    }
}

void fill_with_any(matrix & packed) {
    const std::vector<float> values = numbers((int64_t)packed.data.size(), 2);
    for (size_t at = 0; at < packed.data.size(); at++) {
        packed.data[at] = (uint8_t)(int)(values[at] * 127 + 128);
    }
    const size_t block = ggml_type_size(packed.type);
    for (size_t at = 0; at < packed.data.size(); at += block) {
        uint8_t * const of = packed.data.data() + at;
        const ggml_fp16_t scale = ggml_fp32_to_fp16(1.0f / 16);
        if (packed.type == GGML_TYPE_IQ1_M) { // ggml-common.h: in the high bits of its last 8 bytes
            for (int part = 0; part < 4; part++) {
                uint8_t & high = of[block - 8 + 2 * part + 1];
                high = (uint8_t)((high & 0x0f) | (scale >> 4 * part & 0x0f) << 4);
            }
        } else {
            memcpy(of, &scale, sizeof(scale));
        }
    }
}

// Packed once: that takes longer than all products.
const std::vector<matrix> & matrices() {
    static const std::vector<matrix> all = [] {
        const std::vector<float> values = numbers(DEPTH * ROWS, 1);
        std::vector<matrix> out;
        for (const ggml_type type : TYPES) {
            matrix packed{ type, std::vector<uint8_t>(ggml_row_size(type, DEPTH) * ROWS) };
            if (type == GGML_TYPE_F32) {
                memcpy(packed.data.data(), values.data(), packed.data.size());
            } else if (is_by_grid(type)) {
                fill_with_any(packed);
            } else {
                ggml_quantize_chunk(type, values.data(), packed.data.data(), 0, ROWS, DEPTH,
                                    nullptr);
            }
            out.push_back(std::move(packed));
        }
        return out;
    }();
    return all;
}

std::vector<float> columns(int64_t count) {
    return numbers(DEPTH * count, (uint32_t)count);
}

// False if the backend doesn't multiply weights of this type.
bool multiply(ggml_backend_t backend, const matrix & weights, int64_t count,
              std::vector<float> & out) {
    const ggml_init_params params = { 8 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr,
                                      true };
    const ggml_context_ptr context(ggml_init(params));
    ggml_tensor * const a = ggml_new_tensor_2d(context.get(), weights.type, DEPTH, ROWS);
    ggml_tensor * const b = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, DEPTH, count);
    ggml_tensor * const c = ggml_mul_mat(context.get(), a, b);
    if (!ggml_backend_supports_op(backend, c)) {
        return false;
    }
    ggml_cgraph * const graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, c);
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend));
    const std::vector<float> numbers = columns(count);
    ggml_backend_tensor_set(a, weights.data.data(), 0, weights.data.size());
    ggml_backend_tensor_set(b, numbers.data(), 0, numbers.size() * sizeof(float));
    if (ggml_backend_graph_compute(backend, graph) != GGML_STATUS_SUCCESS) {
        return false;
    }
    const size_t before = out.size();
    out.resize(before + (size_t)(ROWS * count));
    ggml_backend_tensor_get(c, out.data() + before, 0, (size_t)(ROWS * count) * sizeof(float));
    return true;
}

} // namespace

std::vector<uint8_t> weights_of_grid(ggml_type type, int64_t columns, int64_t rows) {
    if (!is_by_grid(type)) {
        return {};
    }
    matrix out{ type, std::vector<uint8_t>(ggml_row_size(type, columns) * (size_t)rows) };
    fill_with_any(out);
    return std::move(out.data);
}

std::vector<product> products_by(ggml_backend_reg_t kernels) {
    const ggml_backend_ptr backend(
        ggml_backend_dev_init(ggml_backend_reg_dev_get(kernels, 0), nullptr));
    // Threads that wait for each other would take longer than so little work does.
    const auto set_threads = (ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(
        kernels, "ggml_backend_set_n_threads");
    set_threads(backend.get(), 1);
    std::vector<product> out;
    for (const matrix & weights : matrices()) {
        product made{ ggml_type_name(weights.type), {} };
        bool known = true;
        for (const int64_t count : COLUMNS) {
            known = known && multiply(backend.get(), weights, count, made.values);
        }
        if (known) {
            out.push_back(std::move(made));
        }
    }
    return out;
}

std::vector<product> exact_products() {
    std::vector<product> out;
    for (const matrix & weights : matrices()) {
        std::vector<float> unpacked((size_t)(DEPTH * ROWS));
        if (weights.type == GGML_TYPE_F32) {
            memcpy(unpacked.data(), weights.data.data(), weights.data.size());
        } else {
            ggml_get_type_traits(weights.type)
                ->to_float(weights.data.data(), unpacked.data(), DEPTH * ROWS);
        }
        product made{ ggml_type_name(weights.type), {} };
        for (const int64_t count : COLUMNS) {
            const std::vector<float> numbers = columns(count);
            for (int64_t column = 0; column < count; column++) {
                for (int64_t row = 0; row < ROWS; row++) {
                    double sum = 0;
                    for (int64_t at = 0; at < DEPTH; at++) {
                        sum += (double)unpacked[(size_t)(row * DEPTH + at)] *
                               (double)numbers[(size_t)(column * DEPTH + at)];
                    }
                    made.values.push_back((float)sum);
                }
            }
        }
        out.push_back(std::move(made));
    }
    return out;
}

double distance(const product & one, const product & expected) {
    if (one.values.size() != expected.values.size()) {
        return HUGE_VAL;
    }
    double apart = 0, whole = 0;
    for (size_t i = 0; i < one.values.size(); i++) {
        const double by = (double)one.values[i] - (double)expected.values[i];
        apart += by * by;
        whole += (double)expected.values[i] * (double)expected.values[i];
    }
    return std::isfinite(apart) ? std::sqrt(apart / whole) : HUGE_VAL;
}
