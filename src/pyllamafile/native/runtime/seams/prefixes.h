// In front of upstream's server-common.cpp and server-context.cpp. Many conversations begin with
// the same long text: a system prompt, and what the file has read. What the model remembers of it
// is kept from one start to the next, so that it is evaluated once (prefixes.cpp).
#pragma once

#include "chat.h"
#include "common.h"
#include "llama.h"

#include <algorithm>
#include <string>
#include <vector>

// A conversation as its template writes it down: what stands in front of the first words of the
// user is a prefix. `own` says that all of it is the server's, and not of this one client.
void note_prefix(const common_chat_templates * templates, common_chat_templates_inputs inputs,
                 const std::string & prompt, bool own);

// Restores what the context remembers of the beginning of a prompt, if that is more than `known`
// tokens, and returns how many it has of it then; 0 if it has forgotten all. Where the prompt has a
// prefix that is to be kept, `ends` becomes its end.
int restore_prefix(llama_context * context, llama_seq_id sequence,
                   const std::vector<llama_token> & prompt, int known, int & ends);

// Keeps what the context remembers of these tokens, a prefix.
void keep_prefix(llama_context * context, llama_seq_id sequence,
                 const std::vector<llama_token> & tokens);

// Where a slot is to stop for that: at the end of a prefix.
class prefix_ends {
    std::vector<int> ends; // by slot; 0: nowhere

    template <class Tokens> static std::vector<llama_token> text_of(const Tokens & tokens) {
        std::vector<llama_token> out; // up to the first picture
        while (out.size() < tokens.size() && tokens[out.size()] != LLAMA_TOKEN_NULL) {
            out.push_back(tokens[out.size()]);
        }
        return out;
    }

  public:
    std::vector<common_adapter_lora_info> adapters; // that every state is made with

    // What has to be the same for a state to fit this context. `has_draft`: a second model reads
    // along, whose memory no state has.
    void settle(const common_params & params, const llama_context * context, bool has_draft);

    // How many tokens of its prompt the slot has, which has had `known`. `plain`: by the model as
    // it was loaded.
    template <class Slot> int begin(Slot & slot, bool plain, int known) {
        ends.resize(std::max(ends.size(), (size_t)slot.id + 1));
        int & end = ends[slot.id] = 0;
        if (!plain || !slot.task->params.cache_prompt || slot.task->need_embd()) {
            return known;
        }
        const std::vector<llama_token> prompt = text_of(slot.task->tokens);
        const int has = restore_prefix(slot.ctx_tgt, slot.id, prompt, known, end);
        if (has != known) {
            slot.prompt.clear();
            slot.prompt.tokens.insert({ prompt.begin(), prompt.begin() + has });
        }
        return has;
    }

    template <class Slot> bool is_at(const Slot & slot) const {
        return ends[slot.id] > 0 && slot.prompt.n_tokens() == ends[slot.id];
    }

    // Before the slot reads on.
    template <class Slot> void keep(const Slot & slot) {
        if (is_at(slot)) {
            keep_prefix(slot.ctx_tgt, slot.id, text_of(slot.prompt.tokens));
            ends[slot.id] = 0;
        }
    }
};
