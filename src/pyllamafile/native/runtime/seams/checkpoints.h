// Included before upstream's server-context.cpp. Where the model can't take back its last tokens,
// upstream's server copies what it remembers of a conversation twice for each question, up to 32
// times: 0.8 GB each with Phi-3-mini. Here there are none where it can, and they have a bound.
#pragma once

#include "prompt-cache.h"

#include "llama.h"

#include <cstddef>
#include <cstdint>

// Whether layers that look back `window` tokens keep all that there are nevertheless, since their
// cache is as large as the context (src/llama-kv-cache-iswa.cpp). 0: no layer does.
inline bool keeps_all(const llama_context * context, int32_t window) {
    const uint32_t size = llama_n_ctx_seq(context);
    const uint64_t sequences = llama_n_ctx(context) == size ? llama_n_seq_max(context) : 1;
    return window == 0 || window * sequences + llama_n_ubatch(context) >= size;
}

// Whether too little is known of the past to go on: `first` is the first position that is, and
// `window` tokens before the next position begin at `wanted`. The next token is one of its window,
// which ends with it (llama_hparams::is_masked_swa), so that nobody needs the first of these.
inline bool is_too_late(llama_pos first, llama_pos wanted, int32_t window) {
    return first > 0 && (window > 0 ? first > wanted + 1 : first >= wanted);
}

// Forgets the oldest checkpoints of a slot, so that with one more all slots' take no more than the
// context itself, or only the new one is left of this slot.
template <class Slots, class Slot>
void make_room_for_checkpoint(const Slots & slots, Slot & slot, llama_context * context) {
    auto & own = slot.prompt.checkpoints;
    size_t size =
        llama_state_seq_get_size_ext(context, slot.id, LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY);
    for (const auto & each : slots) {
        for (const auto & checkpoint : each.prompt.checkpoints) {
            size += checkpoint.size();
        }
    }
    const size_t most = memory_of_context(context);
    while (size > most && !own.empty()) {
        size -= own.front().size();
        own.erase(own.begin());
    }
}
