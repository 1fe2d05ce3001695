// Included before upstream's server-context.cpp. Upstream computes a text to embed in one batch,
// and refuses what is longer; a batch as long as the context has matrices for which most machines
// have no memory. Where attention looks back only, a text is computed in parts, and this puts
// together what they give.
#pragma once

#include "common.h"
#include "llama.h"

#include <utility>
#include <vector>

class embedding_parts {
    std::vector<std::vector<float>> vectors; // of each token, or the one of the text
    int parts = 0;
    int tokens = 0;

  public:
    // A slot's tokens must come one behind the other, so that a batch has one part of a text.
    static bool can_split(const llama_context * context) {
        return llama_get_causal_attn(context) && llama_n_ctx_seq(context) == llama_n_ctx(context);
    }

    // Adds what a batch that was computed gives for the text of a slot, if anything.
    void add(llama_context * context, llama_seq_id slot, const common_batch & batch) {
        const auto pooling = llama_pooling_type(context);
        const size_t width = (size_t)llama_model_n_embd_out(llama_get_model(context));
        int here = 0;
        for (int i = 0; i < batch.size(); i++) {
            const auto & token = batch.tokens[i];
            if (token.seq_id != slot) {
                continue;
            }
            if (token.pos[0] == 0) {
                *this = {};
            }
            here++;
            const float * of_token = pooling == LLAMA_POOLING_TYPE_NONE && token.output
                                         ? llama_get_embeddings_ith(context, i)
                                         : nullptr;
            if (of_token != nullptr) {
                vectors.emplace_back(of_token, of_token + width);
            }
        }
        if (here == 0) {
            return;
        }
        parts++;
        tokens += here;
        const float * pooled =
            pooling != LLAMA_POOLING_TYPE_NONE ? llama_get_embeddings_seq(context, slot) : nullptr;
        if (pooled == nullptr) {
            return;
        }
        const std::vector<float> part(pooled, pooled + width);
        if (vectors.empty()) {
            vectors = { part };
        } else if (pooling == LLAMA_POOLING_TYPE_MEAN) {
            for (size_t i = 0; i < width; i++) {
                vectors[0][i] += (part[i] - vectors[0][i]) * (float)here / (float)tokens;
            }
        } else if (pooling == LLAMA_POOLING_TYPE_LAST) {
            vectors = { part };
        } // CLS: the first token is in the first part
    }

    // Puts the vectors of a text that was computed in several parts in the place of those that
    // upstream has, which are the last part's.
    void finish(llama_context * context, int normalization, std::vector<std::vector<float>> & out) {
        if (parts > 1 && llama_pooling_type(context) != LLAMA_POOLING_TYPE_NONE) {
            std::vector<float> & it = vectors.at(0);
            common_embd_normalize(it.data(), it.data(), (int)it.size(), normalization);
        }
        if (parts > 1) {
            out = std::move(vectors);
        }
        *this = {};
    }
};
