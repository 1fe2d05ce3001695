// In front of llama-model-loader.cpp: of what type a tensor may be for what is computed with it.
// Upstream asks no further than whether ggml has the type; a product with one that has no kernel is
// a call of no function. And what may be a way of pooling, for which upstream takes any number, as
// it does for the type of a file and for how many heads there are (seams.toml).
#pragma once

#include "ggml.h"
#include "llama.h"

#include <cstdint>
#include <stdexcept>
#include <string>

static inline enum llama_pooling_type way_of_pooling(const std::string & key, uint32_t number) {
    const uint32_t none = (uint32_t)LLAMA_POOLING_TYPE_UNSPECIFIED; // which upstream writes, too
    if (number > LLAMA_POOLING_TYPE_RANK && number != none) {
        throw std::runtime_error(key + " is " + std::to_string(number) +
                                 ", which is no way of pooling");
    }
    return (enum llama_pooling_type)number;
}

static inline bool is_computed_with(ggml_op op, const ggml_tensor * tensor) {
    const bool numbers =
        tensor->type == GGML_TYPE_F32 || ggml_get_type_traits(tensor->type)->to_float != nullptr;
    switch (op) {
    case GGML_OP_MUL_MAT:
    case GGML_OP_MUL_MAT_ID:
        return numbers;
    case GGML_OP_GET_ROWS:
        return numbers || tensor->type == GGML_TYPE_I32; // such as the experts of a token
    case GGML_OP_ADD:
    case GGML_OP_ADD_ID:
    case GGML_OP_DIV:
    case GGML_OP_MUL:
    case GGML_OP_SUB: // element by element, with what was computed, which is in F32
        return ggml_n_dims(tensor) == 1 ? tensor->type == GGML_TYPE_F32 : numbers;
    default:
        return true;
    }
}
