// In front of llama-model-loader.cpp: of what type a tensor may be for what is computed with it.
// Upstream asks no further than whether ggml has the type; a product with one that has no kernel is
// a call of no function.
#pragma once

#include "ggml.h"

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
