// Where a sequence's tokens lie in the cache: those of higher positions behind those of lower ones.
//
// Attention sums over cells from the first to the last, so only then does it sum in one order,
// whatever other sequences left in the cache. Upstream fills holes from anywhere, and goes on at
// the front when it comes to the end. Here new tokens come behind all that is there, and where
// there is no room behind it, what is there moves to the front.
//
// llama-kv-cache.cpp calls this with its own members. It doesn't apply to caches in a GPU's memory,
// to those that other caches share, to models with an index of keys (whose second cache has the
// same cells), and to values that lie a row for each number (without flash attention).
#pragma once

#include "ggml-backend.h"
#include "ggml.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

namespace kv_order {

const uint32_t HOLES = 512; // cells beside as many as are used, that attention has to pass over

template <typename layers_t> bool in_memory(const layers_t & layers) {
    const auto is_host = [](const ggml_tensor * tensor) {
        return tensor == nullptr ||
               (tensor->buffer != nullptr && ggml_backend_buffer_is_host(tensor->buffer));
    };
    return std::all_of(layers.begin(), layers.end(), [&](const auto & layer) {
        return layer.k != nullptr && is_host(layer.k) && is_host(layer.v);
    });
}

// Cells go from places in ascending order to the front.
inline void move_rows(const ggml_tensor * tensor, const std::vector<uint32_t> & from) {
    if (tensor == nullptr) {
        return;
    }
    char * const data = (char *)tensor->data;
    const size_t row = tensor->nb[1];
    for (size_t to = 0, count; to < from.size(); to += count) {
        for (count = 1; to + count < from.size() && from[to + count] == from[to] + count; count++) {
        }
        memmove(data + to * row, data + from[to] * row, count * row);
    }
}

// Cells that no token to come sees any more, until there is room: the lowest positions first, for
// upstream counts on a sequence having all of its positions from some one on.
template <typename cells_t, typename unseen_t>
void forget(cells_t & cells, uint32_t room, unseen_t is_unseen) {
    std::vector<std::pair<int32_t, uint32_t>> found; // position, cell
    for (uint32_t i = 0; i < cells.used_max_p1(); i++) {
        if (!cells.is_empty(i) && is_unseen(i)) {
            found.push_back({ cells.pos_get(i), i });
        }
    }
    std::sort(found.begin(), found.end());
    for (const auto & each : found) {
        if (cells.size() - cells.get_used() >= room) {
            return;
        }
        cells.rm(each.second);
    }
}

// Room for as many tokens behind all that is there, if there is as much at all.
template <typename cells_t, typename layers_t, typename unseen_t>
void make_room(cells_t & cells, const layers_t & layers, uint32_t stream, uint32_t tokens,
               unseen_t is_unseen) {
    const uint32_t end = cells.used_max_p1();
    const bool fits = end + tokens <= cells.size();
    if ((fits && end <= 2 * cells.get_used() + HOLES) || cells.get_has_shift()) {
        return;
    }
    if (!fits) {
        // an eighth at least, so that cells move every so many tokens
        forget(cells, std::max(tokens, cells.size() / 8), is_unseen);
    }
    std::vector<uint32_t> from, to;
    for (uint32_t i = 0; i < end; i++) {
        if (!cells.is_empty(i)) {
            from.push_back(i);
        }
    }
    to.resize(from.size());
    std::iota(to.begin(), to.end(), 0);
    if (from == to) {
        return;
    }
    const cells_t moved = cells.cp(from);
    for (const uint32_t each : from) {
        cells.rm(each);
    }
    cells.set(to, moved);
    for (const auto & layer : layers) {
        move_rows(layer.k_stream[stream], from);
        move_rows(layer.v == nullptr ? nullptr : layer.v_stream[stream], from);
    }
}

} // namespace kv_order
