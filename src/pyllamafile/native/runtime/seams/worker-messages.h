// What a worker believes of a message: upstream's checks, and these.
#pragma once

#include "ggml.h"

#include <algorithm>
#include <cstdint>

// Bytes of the longest message that makes sense: the content of the largest buffer, or a graph.
inline uint64_t rpc_longest_message = 64 << 20;

inline void rpc_has_buffer(uint64_t size) {
    rpc_longest_message = std::max(rpc_longest_message, size + (1 << 20));
}

// Upstream holds ggml_nbytes() against the buffer, which goes round at 2^64. Some operations call a
// function, and its address is a parameter of theirs.
inline bool rpc_makes_sense(const ggml_tensor * tensor, uint32_t op) {
    uint64_t bytes = ggml_type_size(tensor->type);
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        uint64_t part = 0;
        if (tensor->ne[i] > 0 &&
            (__builtin_mul_overflow((uint64_t)tensor->ne[i], tensor->nb[i], &part) ||
             __builtin_add_overflow(bytes, part, &bytes))) {
            return false;
        }
    }
    return op < GGML_OP_COUNT && (op < GGML_OP_MAP_CUSTOM1 || op > GGML_OP_CUSTOM);
}

// What only says how other bytes are looked at needs none.
inline bool rpc_is_view(const ggml_tensor * tensor) {
    return tensor->op == GGML_OP_NONE || tensor->op == GGML_OP_VIEW ||
           tensor->op == GGML_OP_RESHAPE || tensor->op == GGML_OP_PERMUTE ||
           tensor->op == GGML_OP_TRANSPOSE;
}

// Whether a node of a graph can be computed: it has bytes, and so has what it is made of.
inline bool rpc_has_bytes(const ggml_tensor * tensor) {
    if (rpc_is_view(tensor)) {
        return true;
    }
    bool has = tensor->data != nullptr;
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        has = has && (tensor->src[i] == nullptr || tensor->src[i]->data != nullptr);
    }
    return has;
}

// Whether the bytes of one are among those that a copy of it is written to.
inline bool rpc_overlap(const ggml_tensor * from, const ggml_tensor * to) {
    const uint64_t size = ggml_nbytes(from), a = (uint64_t)from->data, b = (uint64_t)to->data;
    return a < b ? b - a < size : a - b < size;
}

// Tensors are made of others, by recursion.
struct rpc_depth {
    rpc_depth() {
        depth++;
    }
    ~rpc_depth() {
        depth--;
    }
    bool is_too_deep() const {
        return depth > 1000;
    }
    static inline int depth = 0;
};
