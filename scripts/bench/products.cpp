// Products of weights with columns, by one level of the kernels: how fast each type
// is, and whether a column's product depends on the others. products.py compiles and starts it.
//
//   products LEVEL TYPE ROWS DEPTH COLUMNS[,COLUMNS...] MILLISECONDS THREADS
//
// A line for the weights as they are in a file, and one for an expert of a mixture to which all
// columns go; and two more as repack.cpp arranges the weights, if it does:
//   TYPE file|expert|repacked|repacked-expert alone|apart ERROR COLUMNS=MICROSECONDS ...
// "alone" if every column's product has the same bits as the product of that column alone; ERROR is
// the distance from the products of the same weights with unrounded columns, relative to those.

#include "kernels.h"

#include <cmath>
#include <cstring>

namespace {

// Weights in memory of one kind.
struct matrix {
    ggml_context_ptr context;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor * tensor;
};

matrix weights_in(ggml_backend_buffer_type_t kind, ggml_type type, int64_t rows, int64_t depth,
                  const std::vector<uint8_t> & data, int64_t experts = 1) {
    matrix out;
    out.context.reset(ggml_init({ 2 * ggml_tensor_overhead(), nullptr, true }));
    out.tensor = ggml_new_tensor_3d(out.context.get(), type, depth, rows, experts);
    out.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(out.context.get(), kind));
    ggml_backend_buffer_set_usage(out.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    ggml_backend_tensor_set(out.tensor, data.data(), 0, data.size());
    return out;
}

// The product with some columns, and the least microseconds that it took. Of experts it is the
// last.
std::vector<float> multiply(ggml_backend_t backend, const matrix & weights, const float * columns,
                            int64_t count, int milliseconds, double & least) {
    const ggml_context_ptr context(
        ggml_init({ 8 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    const int64_t depth = weights.tensor->ne[0], rows = weights.tensor->ne[1];
    const int64_t experts = weights.tensor->ne[2];
    ggml_tensor * const b =
        ggml_new_tensor_3d(context.get(), GGML_TYPE_F32, depth, experts > 1 ? experts : count,
                           experts > 1 ? count : 1);
    ggml_tensor * const ids = ggml_new_tensor_2d(context.get(), GGML_TYPE_I32, experts, count);
    ggml_tensor * const c = experts > 1 ? ggml_mul_mat_id(context.get(), weights.tensor, b, ids)
                                        : ggml_mul_mat(context.get(), weights.tensor, b);
    ggml_cgraph * const graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, c);
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(context.get(), backend));
    std::vector<float> all((size_t)(depth * experts * count));
    std::vector<int32_t> each;
    for (int64_t i = 0; i < experts * count; i++) {
        each.push_back((int32_t)(i % experts));
        if (i % experts == experts - 1) {
            std::copy_n(columns + i / experts * depth, depth, all.data() + i * depth);
        }
    }
    ggml_backend_tensor_set(b, all.data(), 0, all.size() * sizeof(float));
    ggml_backend_tensor_set(ids, each.data(), 0, each.size() * sizeof(int32_t));
    least = least_microseconds(backend, graph, milliseconds) / (double)experts;
    std::vector<float> products((size_t)(rows * experts * count)), out;
    ggml_backend_tensor_get(c, products.data(), 0, products.size() * sizeof(float));
    for (int64_t i = experts - 1; i < experts * count; i += experts) {
        const auto from = products.begin() + i * rows;
        out.insert(out.end(), from, from + rows);
    }
    return out;
}

// The distance of some products from those of unpacked weights, relative to these.
double error_of(const std::vector<float> & products, const std::vector<float> & weights,
                const std::vector<float> & columns, int64_t rows, int64_t depth) {
    double apart = 0, whole = 0;
    for (size_t at = 0; at < products.size(); at++) {
        const float * const row = weights.data() + (int64_t)at % rows * depth;
        const float * const column = columns.data() + (int64_t)at / rows * depth;
        double exact = 0;
        for (int64_t i = 0; i < depth; i++) {
            exact += (double)row[i] * (double)column[i];
        }
        apart += (products[at] - exact) * (products[at] - exact);
        whole += exact * exact;
    }
    return std::sqrt(apart / whole);
}

void report(ggml_backend_t backend, const char * name, const char * kind, const matrix & weights,
            const std::vector<float> & unpacked, const std::vector<int64_t> & counts,
            int milliseconds) {
    const int64_t depth = weights.tensor->ne[0], rows = weights.tensor->ne[1];
    int64_t most = 0;
    for (const int64_t count : counts) {
        most = std::max(most, count);
    }
    const std::vector<float> columns = numbers(depth * most, 3);
    std::vector<float> alone;
    double took;
    for (int64_t c = 0; c < std::min<int64_t>(most, 64); c++) {
        const std::vector<float> one =
            multiply(backend, weights, columns.data() + c * depth, 1, 0, took);
        alone.insert(alone.end(), one.begin(), one.end());
    }
    std::string times;
    bool same = true;
    double error = 0;
    for (const int64_t count : counts) {
        const std::vector<float> all =
            multiply(backend, weights, columns.data(), count, milliseconds, took);
        const size_t compared = std::min(all.size(), alone.size());
        same = same && memcmp(all.data(), alone.data(), compared * sizeof(float)) == 0;
        if (count == most) {
            error =
                error_of({ all.begin(), all.begin() + (long)std::min(compared, (size_t)rows * 8) },
                         unpacked, columns, rows, depth);
        }
        times += " " + std::to_string(count) + "=" + std::to_string(took);
    }
    printf("%s %s %s %.5f%s\n", name, kind, same ? "alone" : "apart", error, times.c_str());
    fflush(stdout);
}

} // namespace

int main(int argc, char ** argv) {
    if (argc != 8 || LEVELS.count(argv[1]) == 0) {
        fprintf(stderr, "products LEVEL TYPE ROWS DEPTH COLUMNS[,COLUMNS...] MILLISECONDS "
                        "THREADS\n");
        return 1;
    }
    ggml_backend_reg_t const kernels = LEVELS.at(argv[1])();
    const int64_t rows = atoll(argv[3]), depth = atoll(argv[4]);
    std::vector<int64_t> counts;
    for (const char * at = argv[5]; at != nullptr; at = strchr(at, ',')) {
        at += *at == ',';
        counts.push_back(atoll(at));
    }
    ggml_type type = GGML_TYPE_COUNT;
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        if (ggml_type_name((ggml_type)i) != nullptr &&
            strcasecmp(ggml_type_name((ggml_type)i), argv[2]) == 0) {
            type = (ggml_type)i;
        }
    }
    if (type == GGML_TYPE_COUNT) {
        fprintf(stderr, "products: no such type: %s\n", argv[2]);
        return 1;
    }
    const std::vector<float> values = numbers(rows * depth, 1);
    std::vector<uint8_t> data(ggml_row_size(type, depth) * (size_t)rows);
    const std::vector<float> alike((size_t)depth, 1); // some types ask what matters more
    ggml_quantize_chunk(type, values.data(), data.data(), 0, rows, depth, alike.data());
    std::vector<float> unpacked = values;
    if (type != GGML_TYPE_F32) {
        ggml_get_type_traits(type)->to_float(data.data(), unpacked.data(), rows * depth);
    }

    ggml_backend_dev_t const device = ggml_backend_reg_dev_get(kernels, 0);
    const ggml_backend_ptr backend(ggml_backend_dev_init(device, nullptr));
    const auto set_threads = (ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(
        kernels, "ggml_backend_set_n_threads");
    set_threads(backend.get(), atoi(argv[7]));
    const int milliseconds = atoi(argv[6]);
    ggml_backend_buffer_type_t const plain = ggml_backend_dev_buffer_type(device);
    report(backend.get(), argv[2], "file", weights_in(plain, type, rows, depth, data), unpacked,
           counts, milliseconds);
    std::vector<uint8_t> two(data.size()); // the first of which has only zeros
    two.insert(two.end(), data.begin(), data.end());
    report(backend.get(), argv[2], "expert", weights_in(plain, type, rows, depth, two, 2), unpacked,
           counts, milliseconds);
    const auto extra = (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
        kernels, "ggml_backend_dev_get_extra_bufts");
    for (ggml_backend_buffer_type_t * kind = extra(device); kind && *kind; kind++) {
        const matrix probe = weights_in(plain, type, rows, depth, data);
        matrix there;
        there.context.reset(ggml_init({ 2 * ggml_tensor_overhead(), nullptr, true }));
        there.tensor = ggml_new_tensor_2d(there.context.get(), type, depth, rows);
        there.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(there.context.get(), *kind));
        if (there.tensor->extra == nullptr) {
            continue;
        }
        report(backend.get(), argv[2], "repacked", weights_in(*kind, type, rows, depth, data),
               unpacked, counts, milliseconds);
        report(backend.get(), argv[2], "repacked-expert",
               weights_in(*kind, type, rows, depth, two, 2), unpacked, counts, milliseconds);
    }
}
