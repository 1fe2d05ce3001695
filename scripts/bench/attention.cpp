// Attention by one level of the kernels: how fast, how exact, and whether what comes out for a
// token depends on the others. attention.py compiles and starts it.
//
//   attention LEVEL TYPE DEPTH WIDTH HEADS KV_HEADS POSITIONS TOKENS[,TOKENS...] THREADS
//             MILLISECONDS SEQUENCES WINDOW BIAS CAP SINKS
//
// The cache has so many positions of some sequences, in turns that follow no rule, and each token
// is at one of the last of them. It sees those of its sequence up to itself, in a window if that
// isn't 0. Behind them are positions that nobody sees. One line:
//   alone|apart ERROR TOKENS=MICROSECONDS ...
// "alone" if every token gets the same bits as by itself, in one thread, of a cache that has
// nothing but what it sees; ERROR is the distance from what 64-bit numbers give, relative to it.

#include "kernels.h"

#include <cmath>
#include <cstring>

namespace {

struct setting {
    ggml_type type;
    int64_t depth, width, heads, kv_heads;
    int64_t sequences, window;
    float bias, cap;
    bool sinks;
};

// Rows of a type, and what they say.
struct rows {
    size_t bytes; // of one
    std::vector<uint8_t> data;
    std::vector<float> values;

    rows(ggml_type type, int64_t count, int64_t length, uint32_t seed)
        : bytes(ggml_row_size(type, length)), data(bytes * (size_t)count),
          values(numbers(count * length, seed)) {
        ggml_quantize_chunk(type, values.data(), data.data(), 0, count, length, nullptr);
        if (type != GGML_TYPE_F32) {
            ggml_get_type_traits(type)->to_float(data.data(), values.data(), count * length);
        }
    }

    std::vector<uint8_t> of(const std::vector<int64_t> & some) const {
        std::vector<uint8_t> out;
        for (const int64_t i : some) {
            out.insert(out.end(), data.begin() + (long)(bytes * (size_t)i),
                       data.begin() + (long)(bytes * (size_t)(i + 1)));
        }
        return out;
    }
};

struct cache {
    int64_t positions;
    rows keys, values;
    std::vector<float> sinks;

    cache(const setting & s, int64_t count)
        : positions(count), keys(s.type, count, s.depth * s.kv_heads, 1),
          values(s.type, count, s.width * s.kv_heads, 2), sinks(numbers(s.heads, 4)) {}
};

bool sees(const setting & s, int64_t token, int64_t position) {
    const auto sequence_of = [&](int64_t i) {
        return (int64_t)(((uint32_t)(i / 3) * 2654435761u) >> 16) % s.sequences;
    };
    return position <= token && (s.window == 0 || token - position < s.window) &&
           sequence_of(position) == sequence_of(token);
}

// Attention of some tokens, by their positions, over some of the cache and as much that none sees;
// and the least microseconds that it took.
std::vector<float> attend(ggml_backend_t backend, const setting & s, const cache & all,
                          const std::vector<float> & queries, const std::vector<int64_t> & tokens,
                          const std::vector<int64_t> & seen, int64_t unseen, int milliseconds,
                          double & least) {
    const ggml_context_ptr context(
        ggml_init({ 32 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true }));
    ggml_context * const c = context.get();
    const int64_t count = (int64_t)tokens.size(), positions = (int64_t)seen.size() + unseen;
    ggml_tensor * const q = ggml_new_tensor_3d(c, GGML_TYPE_F32, s.depth, s.heads, count);
    ggml_tensor * const k = ggml_new_tensor_2d(c, s.type, s.depth * s.kv_heads, positions);
    ggml_tensor * const v = ggml_new_tensor_2d(c, s.type, s.width * s.kv_heads, positions);
    ggml_tensor * const mask = ggml_new_tensor_2d(c, GGML_TYPE_F16, positions, count);
    ggml_tensor * const sinks = ggml_new_tensor_1d(c, GGML_TYPE_F32, s.heads);
    const auto by_head = [&](ggml_tensor * tensor, int64_t length) {
        return ggml_view_3d(c, tensor, length, positions, s.kv_heads, tensor->nb[1],
                            ggml_row_size(s.type, length), 0);
    };
    ggml_tensor * const out = ggml_flash_attn_ext(
        c, ggml_permute(c, q, 0, 2, 1, 3), by_head(k, s.depth), by_head(v, s.width), mask,
        1.0f / std::sqrt((float)s.depth) * 8, s.bias, s.cap);
    if (s.sinks) {
        ggml_flash_attn_ext_add_sinks(out, sinks);
    }
    ggml_cgraph * const graph = ggml_new_graph(c);
    ggml_build_forward_expand(graph, out);
    const ggml_backend_buffer_ptr buffer(ggml_backend_alloc_ctx_tensors(c, backend));
    std::vector<float> asked;
    std::vector<ggml_fp16_t> masked;
    for (const int64_t token : tokens) {
        const float * const query = queries.data() + token * s.depth * s.heads;
        asked.insert(asked.end(), query, query + s.depth * s.heads);
        for (int64_t i = 0; i < positions; i++) {
            const bool is_seen = i < (int64_t)seen.size() && sees(s, token, seen[(size_t)i]);
            // With a bias the mask says how far away a position is.
            const float far = s.bias > 0 && is_seen ? (float)(seen[(size_t)i] - token) : 0.0f;
            masked.push_back(ggml_fp32_to_fp16(is_seen ? far : -INFINITY));
        }
    }
    const auto set = [&](ggml_tensor * tensor, const void * data, size_t bytes) {
        ggml_backend_tensor_set(tensor, data, 0, bytes);
    };
    set(q, asked.data(), asked.size() * sizeof(float));
    set(mask, masked.data(), masked.size() * sizeof(ggml_fp16_t));
    set(sinks, all.sinks.data(), all.sinks.size() * sizeof(float));
    const std::vector<uint8_t> keys = all.keys.of(seen), values = all.values.of(seen);
    ggml_backend_tensor_memset(k, 0x55, 0, ggml_nbytes(k));
    ggml_backend_tensor_memset(v, 0x55, 0, ggml_nbytes(v));
    set(k, keys.data(), keys.size());
    set(v, values.data(), values.size());
    least = least_microseconds(backend, graph, milliseconds);
    std::vector<float> result((size_t)(s.width * s.heads * count));
    ggml_backend_tensor_get(out, result.data(), 0, result.size() * sizeof(float));
    return result;
}

// What 64-bit numbers give.
std::vector<double> exactly(const setting & s, const cache & all,
                            const std::vector<float> & queries, int64_t token) {
    std::vector<double> out((size_t)(s.width * s.heads));
    for (int64_t head = 0; head < s.heads; head++) {
        const int64_t shared = head / (s.heads / s.kv_heads);
        const int whole = 1 << (int)std::log2((double)s.heads);
        const double slope =
            s.bias == 0    ? 1
            : head < whole ? std::pow(2.0, -s.bias / whole * (double)(head + 1))
                           : std::pow(2.0, -s.bias / 2 / whole * (double)(2 * (head - whole) + 1));
        std::vector<double> scores((size_t)all.positions, -INFINITY);
        double most = s.sinks ? all.sinks[(size_t)head] : -INFINITY;
        for (int64_t i = 0; i < all.positions; i++) {
            if (!sees(s, token, i)) {
                continue;
            }
            double score = 0;
            for (int64_t d = 0; d < s.depth; d++) {
                score += (double)queries[(size_t)((token * s.heads + head) * s.depth + d)] *
                         all.keys.values[(size_t)((i * s.kv_heads + shared) * s.depth + d)];
            }
            score *= 8 / std::sqrt((double)s.depth);
            score = s.cap == 0 ? score : s.cap * std::tanh(score / s.cap);
            scores[(size_t)i] = score + (s.bias > 0 ? slope * (double)(i - token) : 0);
            most = std::max(most, scores[(size_t)i]);
        }
        double sum = s.sinks ? std::exp(all.sinks[(size_t)head] - most) : 0;
        for (int64_t i = 0; i < all.positions; i++) {
            const double weight = std::exp(scores[(size_t)i] - most);
            sum += weight;
            for (int64_t d = 0; d < s.width && weight > 0; d++) {
                out[(size_t)(head * s.width + d)] +=
                    weight * all.values.values[(size_t)((i * s.kv_heads + shared) * s.width + d)];
            }
        }
        for (int64_t d = 0; d < s.width; d++) {
            out[(size_t)(head * s.width + d)] /= sum;
        }
    }
    return out;
}

} // namespace

int main(int argc, char ** argv) {
    if (argc != 16 || LEVELS.count(argv[1]) == 0) {
        fprintf(stderr, "attention LEVEL TYPE DEPTH WIDTH HEADS KV_HEADS POSITIONS TOKENS,... "
                        "THREADS MILLISECONDS SEQUENCES WINDOW BIAS CAP SINKS\n");
        return 1;
    }
    setting s = {};
    s.type = GGML_TYPE_COUNT;
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        if (ggml_type_name((ggml_type)i) != nullptr &&
            strcasecmp(ggml_type_name((ggml_type)i), argv[2]) == 0) {
            s.type = (ggml_type)i;
        }
    }
    if (s.type == GGML_TYPE_COUNT) {
        fprintf(stderr, "attention: no such type: %s\n", argv[2]);
        return 1;
    }
    s.depth = atoll(argv[3]);
    s.width = atoll(argv[4]);
    s.heads = atoll(argv[5]);
    s.kv_heads = atoll(argv[6]);
    const int64_t positions = atoll(argv[7]);
    const int threads = atoi(argv[9]), milliseconds = atoi(argv[10]);
    s.sequences = atoll(argv[11]);
    s.window = atoll(argv[12]);
    s.bias = (float)atof(argv[13]);
    s.cap = (float)atof(argv[14]);
    s.sinks = atoi(argv[15]) != 0;

    ggml_backend_reg_t const kernels = LEVELS.at(argv[1])();
    const ggml_backend_ptr backend(
        ggml_backend_dev_init(ggml_backend_reg_dev_get(kernels, 0), nullptr));
    const auto set_threads = (ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(
        kernels, "ggml_backend_set_n_threads");

    const cache all(s, positions);
    const std::vector<float> queries = numbers(positions * s.depth * s.heads, 3);
    std::vector<int64_t> everything;
    for (int64_t i = 0; i < positions; i++) {
        everything.push_back(i);
    }
    const int64_t padding = (positions + 255) / 256 * 256 - positions;
    const size_t of_token = (size_t)(s.width * s.heads);
    std::map<int64_t, std::vector<float>> alone;
    bool same = true;
    double apart = 0, whole = 0, took;
    std::string times;
    for (const char * at = argv[8]; at != nullptr; at = strchr(at, ',')) {
        at += *at == ',';
        const int64_t count = atoll(at);
        const std::vector<int64_t> tokens(everything.end() - (long)count, everything.end());
        set_threads(backend.get(), threads);
        const std::vector<float> got =
            attend(backend.get(), s, all, queries, tokens, everything, padding, milliseconds, took);
        times += " " + std::to_string(count) + "=" + std::to_string(took);
        set_threads(backend.get(), 1);
        for (int64_t i = 0; i < std::min<int64_t>(count, 100); i++) {
            const int64_t token = tokens[(size_t)(count - 1 - i)];
            if (alone.count(token) == 0) {
                std::vector<int64_t> seen;
                for (const int64_t position : everything) {
                    if (sees(s, token, position)) {
                        seen.push_back(position);
                    }
                }
                alone[token] = attend(backend.get(), s, all, queries, { token }, seen, 0, 0, took);
                const std::vector<double> exact = exactly(s, all, queries, token);
                for (size_t d = 0; d < of_token; d++) {
                    apart += std::pow(alone[token][d] - exact[d], 2);
                    whole += std::pow(exact[d], 2);
                }
            }
            same = same && memcmp(got.data() + (size_t)(count - 1 - i) * of_token,
                                  alone[token].data(), of_token * sizeof(float)) == 0;
        }
    }
    printf("%s %.7f%s\n", same ? "alone" : "apart", std::sqrt(apart / whole), times.c_str());
}
