// Included before upstream's server-context.cpp. The server's slots share one context, and each is
// promised all of it. Upstream computes them all until the context is full, and ends every one of
// them with an error then. Here whoever began last is set aside, with what the model remembers of
// the conversation, and goes on from there when the others leave room.
#pragma once

#include "strict-json.h" // hides a function of server-common.h, which the next one includes

#include "llama.h"
#include "server-task.h"

#include <algorithm>
#include <map>
#include <stdexcept>
#include <vector>

template <class Slot> class shared_context {
    using slot_state = decltype(Slot::state);

    struct kept {
        int task;
        slot_state state;
        server_prompt prompt;
        server_prompt_data memory;
    };

    std::map<int, kept> aside; // by slot

    // Tokens that a slot has, or is about to have. A prompt counts as a whole from its start, so
    // that none is set aside in its middle for want of the other half.
    int needs(const Slot & slot, int drafted) const {
        const auto at = aside.find(slot.id);
        const int has = at == aside.end() ? slot.prompt.n_tokens() : at->second.prompt.n_tokens();
        return std::min(std::max(has, slot.task->n_tokens()) + 1 + drafted, slot.n_ctx);
    }

    void set_aside(Slot & slot, slot_state waiting) {
        kept & it = aside[slot.id];
        it.task = slot.task->id;
        it.state = slot.state;
        const auto save = [&slot](llama_context * context, std::vector<uint8_t> & bytes) {
            if (context != nullptr) {
                bytes.resize(llama_state_seq_get_size_ext(context, slot.id, 0));
                llama_state_seq_get_data_ext(context, bytes.data(), bytes.size(), slot.id, 0);
            }
        };
        if (slot.prompt.n_tokens() > 0) {
            save(slot.ctx_tgt, it.memory.main);
            save(slot.ctx_dft, it.memory.drft);
        }
        // Whoever ends the task now finds a slot that remembers nothing, as it is.
        it.prompt = std::move(slot.prompt);
        slot.prompt_clear();
        slot.state = waiting;
    }

    bool bring_back(Slot & slot) {
        kept & it = aside.at(slot.id);
        const auto load = [&slot](llama_context * context, const std::vector<uint8_t> & bytes) {
            return context == nullptr || bytes.empty() ||
                   llama_state_seq_set_data_ext(context, bytes.data(), bytes.size(), slot.id, 0) >
                       0;
        };
        if (!load(slot.ctx_tgt, it.memory.main) || !load(slot.ctx_dft, it.memory.drft)) {
            slot.prompt_clear();
            return false;
        }
        slot.prompt = std::move(it.prompt);
        slot.state = it.state;
        aside.erase(slot.id);
        return true;
    }

  public:
    // The slots, by who came first; those without a task behind.
    static std::vector<Slot *> in_order(std::vector<Slot> & slots) {
        std::vector<Slot *> out;
        for (Slot & slot : slots) {
            out.push_back(&slot);
        }
        std::stable_sort(out.begin(), out.end(), [](const Slot * a, const Slot * b) {
            return a->task && (!b->task || a->task->id < b->task->id);
        });
        return out;
    }

    // Decides who computes next: in the order in which they came, as many as `capacity` tokens have
    // room for, and the first in any case. `waiting` is a state in which upstream lets a slot be.
    void share(std::vector<Slot> & slots, slot_state waiting, int capacity, int drafted) {
        std::vector<Slot *> busy;
        for (Slot * each : in_order(slots)) {
            Slot & slot = *each;
            const auto at = aside.find(slot.id);
            const bool here = at != aside.end();
            if (here && (!slot.task || slot.task->id != at->second.task)) {
                aside.erase(at); // it was ended
                if (slot.is_processing() && slot.state != waiting) {
                    busy.push_back(&slot);
                }
            } else if (here || (slot.is_processing() && slot.state != waiting)) {
                busy.push_back(&slot);
            }
        }
        int left = capacity;
        std::vector<Slot *> returning;
        for (Slot * slot : busy) {
            const int wanted = needs(*slot, drafted);
            const bool is_aside = aside.count(slot->id) > 0;
            if (slot == busy.front() || wanted <= left) {
                left -= wanted;
                if (is_aside) {
                    returning.push_back(slot);
                }
            } else if (!is_aside) {
                set_aside(*slot, waiting);
            }
        }
        for (Slot & slot : slots) {
            if (!slot.is_processing() && slot.prompt.n_tokens() > left) {
                slot.prompt_clear(); // what it had answered to others
            } else if (!slot.is_processing()) {
                left -= slot.prompt.n_tokens();
            }
        }
        for (Slot * slot : returning) {
            if (!bring_back(*slot) && slot == busy.front()) {
                throw std::runtime_error("a conversation that was set aside has no room");
            }
        }
    }
};
