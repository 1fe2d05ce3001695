#include "documents/embedder.h"

#include "common.h"
#include "errors.h"
#include "log.h"
#include "system/threads.h"
#include "text.h"
#include "weights.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <stdexcept>

namespace {

const uint32_t MOST_TOKENS = 2048; // of a text: some times a passage

} // namespace

embedder::embedder(const std::string & name, int threads) : name(name) {
    weights found;
    const std::string problem = find_weights(name, found);
    if (!problem.empty()) {
        throw std::runtime_error(problem);
    }
    llama_model_params how = llama_model_default_params();
    if (!found.mappable()) {
        how.load_mode = LLAMA_LOAD_MODE_NONE;
    }
    // The processor made the vectors of the passages, and nobody has tried a GPU with these
    // weights.
    ggml_backend_dev_t no_gpu = nullptr; // of upstream's, the end of a list
    how.devices = &no_gpu;
    model.reset(llama_model_load_from_file(found.name().c_str(), how));
    if (!model) {
        throw std::runtime_error(name + ": can't be loaded");
    }
    llama_context_params with = llama_context_default_params();
    with.embeddings = true;
    with.n_ctx = std::min(MOST_TOKENS, (uint32_t)llama_model_n_ctx_train(model.get()));
    with.n_batch = with.n_ubatch = with.n_ctx; // where tokens look ahead a text is one batch
    with.n_seq_max = 1;
    with.n_threads = with.n_threads_batch = threads;
    context.reset(llama_init_from_model(model.get(), with));
    const enum llama_pooling_type pooling =
        context ? llama_pooling_type(context.get()) : LLAMA_POOLING_TYPE_NONE;
    if (pooling == LLAMA_POOLING_TYPE_NONE || pooling == LLAMA_POOLING_TYPE_RANK) {
        throw std::runtime_error(name + ": is no model for embeddings");
    }
}

size_t embedder::dimension() const {
    return (size_t)llama_model_n_embd_out(model.get());
}

std::vector<float> embedder::vector_of(const std::string & text) {
    std::vector<llama_token> tokens =
        common_tokenize(llama_model_get_vocab(model.get()), text, true, false);
    const size_t most = llama_n_batch(context.get());
    if (tokens.size() > most) {
        tokens[most - 1] = tokens.back(); // which may be a mark of the end
        tokens.resize(most);
    }
    std::vector<float> out(dimension());
    if (tokens.empty()) {
        return out;
    }
    if (llama_memory_t memory = llama_get_memory(context.get())) {
        llama_memory_clear(memory, true);
    }
    const llama_batch batch = llama_batch_get_one(tokens.data(), (int32_t)tokens.size());
    const float * vector = llama_decode(context.get(), batch) == 0
                               ? llama_get_embeddings_seq(context.get(), 0)
                               : nullptr;
    if (vector == nullptr) {
        throw std::runtime_error(name + ": makes no vector of a text");
    }
    common_embd_normalize(vector, out.data(), (int)out.size(), 2);
    return out;
}

int embed_texts(const std::string & name, const std::string & file) {
    say_the_first_error_of(name);
    common_log_set_verbosity_thold(LOG_LEVEL_ERROR);
    llama_log_set(common_log_default_callback, nullptr);
    embedder model(name, threads_to_use(common_cpu_get_num_math()));
    const uint32_t dimension = (uint32_t)model.dimension();
    fwrite(&dimension, sizeof(dimension), 1, stdout);
    std::istringstream lines(read_text(file));
    for (std::string line; std::getline(lines, line);) {
        const std::vector<float> vector = model.vector_of(nlohmann::json::parse(line));
        fwrite(vector.data(), sizeof(float), vector.size(), stdout);
        fflush(stdout);
    }
    return ferror(stdout) ? 1 : 0;
}
