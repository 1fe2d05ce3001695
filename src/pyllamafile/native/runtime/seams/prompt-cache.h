// Included before upstream's server-context.cpp. The server keeps what the model remembers of
// conversations that have no slot at the moment. Upstream lets that take 8 GiB, on any machine.
#pragma once

#include "llama.h"

#include "../../src/llama-ext.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

// Bytes that the model's memory of all conversations takes.
inline size_t memory_of_context(const llama_context * context) {
    size_t bytes = 0;
    for (const auto & [buffer, memory] : llama_get_memory_breakdown(context)) {
        bytes += memory.context;
    }
    return bytes;
}

// How many MiB they may take. `asked` is --cache-ram, and -2 where nobody gave it
// (invocation.cpp): as much as the context itself then, for which the machine had room.
inline int32_t prompt_cache_mib(const llama_context * context, int32_t asked) {
    return asked != -2 ? asked : std::clamp((int32_t)(memory_of_context(context) >> 20), 64, 8192);
}
