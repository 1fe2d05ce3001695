// Included before upstream's server-context.cpp. The slot of a client that leaves is free when the
// batch that is being computed has ended, and on a slow machine the batch of a prompt takes half a
// minute. Here such a batch is given up. What it was to add to the slots is taken back, and those
// who stay have their tokens computed in the next one.
#pragma once

#include "ggml.h"
#include "llama.h"

#include <algorithm>
#include <atomic>
#include <cstdint>

class leavers {
    static constexpr int64_t PATIENCE = 400 * 1000; // µs; most batches end in that time
    static constexpr int32_t LEAST = 8;             // tokens

    std::atomic<bool> watching = false;
    std::atomic<int64_t> since = 0; // when the first of them left during this batch, µs; 0: nobody
    int halved = 0;                 // how often the batch is to be halved
    bool patient = false;           // whether the next one is computed to its end

    // Asked between two operations of the model.
    static bool gives_up(void * data) {
        const int64_t since = ((const leavers *)data)->since;
        return since != 0 && ggml_time_us() - since > PATIENCE;
    }

  public:
    // Batches of this context are given up from now on. It must be able to forget its last tokens.
    void watch(llama_context * context) {
        llama_set_abort_callback(context, gives_up, this);
    }

    // How many tokens the next batch may have. After one that was given up it has half as many, and
    // one that can't be halved is computed to its end, so that those who stay get on, however many
    // leave. `whole` is whether there is a text that must be computed in one batch.
    int32_t most(int32_t batch, bool whole) {
        const int32_t half = batch >> halved;
        patient = halved > 0 && (whole || half <= LEAST);
        return whole ? batch : std::max(half, std::min(batch, LEAST));
    }

    void begin() {
        since = 0;
        watching = !patient;
    }

    // Any thread says so, for a client whose request has a slot.
    void left() {
        int64_t nobody = 0;
        if (watching) {
            since.compare_exchange_strong(nobody, ggml_time_us());
        }
    }

    void end(bool gave_up) {
        watching = false;
        since = 0;
        halved = gave_up ? std::min(halved + 1, 16) : std::max(halved - 1, 0);
    }

    // Takes the tokens of `batch` from `off` on back from the slots, which were not computed.
    template <class Slots, class Batch, class State>
    static void take_back(Slots & slots, Batch & batch, int32_t off, State read, State reads) {
        for (auto & slot : slots) {
            const auto its = [&slot](const auto & token) { return token.id_slot == slot.id; };
            const auto end = batch.tokens.end();
            const auto first = std::find_if(batch.tokens.begin() + off, end, its);
            if (first == end) {
                continue;
            }
            if (const llama_memory_t memory = llama_get_memory(slot.ctx_tgt)) {
                llama_memory_seq_rm(memory, slot.id, first->pos, -1);
            }
            slot.prompt.tokens.keep_first(slot.prompt.n_tokens() -
                                          (int)std::count_if(first, end, its));
            slot.state = slot.state == read ? reads : slot.state;
            slot.i_batch = -1;
            slot.spec_i_batch.clear();
        }
        batch.tokens.resize(off);
        batch.embd.resize(batch.has_embd ? (size_t)off * batch.n_embd : 0);
    }
};
