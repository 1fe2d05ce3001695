#include "rehearsal.h"

#include "common.h"
#include "errors.h"
#include "llama-cpp.h"
#include "log.h"
#include "system/sandbox.h"
#include "weights.h"

#include <algorithm>
#include <cstdio>

int rehearse(const std::string & name) {
    weights found;
    const std::string problem = find_weights(name, found);
    if (!problem.empty()) {
        fprintf(stderr, "error: %s\n", problem.c_str());
        return 1;
    }
    if (found.kind != weights_kind::MODEL) {
        return 0; // what it goes with is not here
    }
    say_the_first_error_of(name);
    common_log_set_verbosity_thold(LOG_LEVEL_ERROR);
    llama_log_set(common_log_default_callback, nullptr);

    llama_model_params how = llama_model_default_params();
    how.no_alloc = true;
    how.load_mode = LLAMA_LOAD_MODE_NONE;
    const llama_model_ptr model(llama_model_load_from_file(found.name().c_str(), how));
    if (!model) {
        return an_error_was_said() ? 1 : 2;
    }
    llama_context_params context_how = llama_context_default_params();
    context_how.n_ctx = std::min(512, llama_model_n_ctx_train(model.get()));
    const llama_context_ptr context(llama_init_from_model(model.get(), context_how));
    if (!context) {
        return an_error_was_said() ? 1 : 2;
    }
    common_tokenize(llama_model_get_vocab(model.get()), "a text", true, true);
    return an_error_was_said() ? 1 : 0;
}
