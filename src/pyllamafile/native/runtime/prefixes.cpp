// The beginnings that conversations share, and what the model remembers of them.

// Some headers of the templates have functions that are used elsewhere.
#pragma clang diagnostic push
#pragma clang diagnostic ignored "-Wunused-function"
#include "seams/prefixes.h"
#pragma clang diagnostic pop

#include "build-info.h"
#include "common.h"
#include "log.h"
#include "slot-files.h"
#include "states.h"
#include "system/cpu.h"
#include "system/system.h"
#include "weights.h"

#include <hash/hash.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <list>
#include <mutex>
#include <sstream>
#include <stdexcept>

namespace {

const size_t LEAST = 256;     // tokens of a prefix that is worth it; none is shorter than a byte
const size_t MOST_KNOWN = 16; // prefixes, of those that came last
const int REPEATED = 2;       // so often a client's own comes before it is kept
const int MOST_AGAIN = 64;    // tokens that are evaluated again for that

// What no user begins with, in a private area of Unicode.
const char * const OTHER_WORDS = "\xEE\xA2\xA8";

const char MAGIC[] = "llamSTA1";
const size_t MOST_CONDITIONS = 1 << 20; // bytes

struct prefix {
    size_t hash;
    std::string text; // until it is tokens
    std::vector<llama_token> tokens;
    std::string key = {}; // of its state
    bool own;
    int came = 0;
    bool asked = false; // whether there is a state
    bool kept = false;  // there is one
};

std::mutex one_at_a_time;
std::list<prefix> known; // the last one that came in front
std::string conditions;  // a line for each; empty if no state fits anything

// What a state depends on besides the tokens. All that would make the model remember something
// else, or in another form.
std::string conditions_of(const common_params & params, const llama_context * context) {
    std::string out;
    const auto add = [&](const std::string & name, const std::string & value) {
        std::string line = name + " " + value;
        std::replace(line.begin(), line.end(), '\n', ' ');
        out += line + "\n";
    };
    const auto number = [](double value) {
        char text[32];
        snprintf(text, sizeof(text), "%.9g", value);
        return std::string(text);
    };
    const auto file = [&](const std::string & path, float scale) {
        const std::string adapter = identity_of_weights(path);
        std::error_code error;
        const auto date = std::filesystem::last_write_time(std::filesystem::u8path(path), error);
        return (adapter.empty()
                    ? path + " " + std::to_string((long long)date.time_since_epoch().count())
                    : adapter) +
               " " + number(scale);
    };
    add("weights", identity_of_weights(params.model.path));
    add("engine",
        std::string(RUNTIME_VERSION) + ", llama.cpp " + llama_version() + " " + llama_commit());
    const std::string program = own_path();
    add("program",
        std::string(RUNTIME_TARGET) + " " + program.substr(program.find_last_of("/\\") + 1));
    add("level", cpu_level());
    add("keys", ggml_type_name(params.cache_type_k));
    add("values", ggml_type_name(params.cache_type_v));
    add("attention", std::to_string(params.flash_attn_type));
    add("streams", std::to_string(params.kv_unified ? 1 : params.n_parallel));
    add("window", params.swa_full ? "full" : "of the model");
    add("rope", std::to_string(params.rope_scaling_type) + " " + number(params.rope_freq_base) +
                    " " + number(params.rope_freq_scale) + " " + number(params.yarn_ext_factor) +
                    " " + number(params.yarn_attn_factor) + " " + number(params.yarn_beta_fast) +
                    " " + number(params.yarn_beta_slow) + " " +
                    std::to_string(params.yarn_orig_ctx));
    // Some models turn their positions otherwise where the context is longer than they were first
    // trained on.
    const llama_model * model = llama_get_model(context);
    char text[128] = {};
    llama_model_meta_val_str(model, "general.architecture", text, sizeof(text));
    const std::string first = std::string(text) + ".rope.scaling.original_context_length";
    if (llama_model_meta_val_str(model, first.c_str(), text, sizeof(text)) > 0) {
        add("long", (long)llama_n_ctx_seq(context) > atol(text) ? "yes" : "no");
    }
    for (const common_adapter_lora_info & adapter : params.lora_adapters) {
        add("adapter", file(adapter.path, adapter.scale));
    }
    for (const common_control_vector_load_info & vector : params.control_vectors) {
        add("control", file(vector.fname, vector.strength) + " " +
                           std::to_string(params.control_vector_layer_start) + " " +
                           std::to_string(params.control_vector_layer_end));
    }
    for (const llama_model_kv_override & each : params.kv_overrides) {
        if (each.key[0] != '\0') {
            add("override", hash_sha256_hex(&each, sizeof(each)));
        }
    }
    return out;
}

// Up to the last token that no words behind it can change. What stands behind such a token of the
// template is some letters.
std::vector<llama_token> settled(const llama_vocab * vocab, std::vector<llama_token> tokens) {
    const size_t least = tokens.size() > 64 ? tokens.size() - 64 : 0;
    for (size_t end = tokens.size(); end > least; end--) {
        if (llama_vocab_is_control(vocab, tokens[end - 1])) {
            tokens.resize(end);
            return tokens;
        }
    }
    tokens.resize(tokens.size() - std::min<size_t>(tokens.size(), 8)); // some words
    return tokens;
}

void become_tokens(const llama_vocab * vocab, prefix & it) {
    if (it.text.empty()) {
        return;
    }
    it.tokens = settled(vocab, common_tokenize(vocab, it.text, true, true));
    it.text.clear();
    it.text.shrink_to_fit();
    const std::string by = conditions + std::string((const char *)it.tokens.data(),
                                                    it.tokens.size() * sizeof(llama_token));
    it.key = hash_sha256_hex(by.data(), by.size()).substr(0, 32);
}

// The longest known one that the prompt begins with.
prefix * prefix_in(const llama_vocab * vocab, const std::vector<llama_token> & prompt) {
    prefix * best = nullptr;
    for (prefix & it : known) {
        become_tokens(vocab, it);
        const std::vector<llama_token> & its = it.tokens;
        if (its.size() >= LEAST && its.size() < prompt.size() &&
            (best == nullptr || its.size() > best->tokens.size()) &&
            std::equal(its.begin(), its.end(), prompt.begin())) {
            best = &it;
        }
    }
    return best;
}

// In front of a slot's bytes: the magic number, and the conditions with their length. A multiple of
// 8 bytes.
std::string front() {
    std::string lines = conditions;
    lines.resize((lines.size() + 7) / 8 * 8, '\n');
    const uint64_t size = lines.size();
    return std::string(MAGIC, 8) + std::string((const char *)&size, sizeof(size)) + lines;
}

const char * const DAMAGED = "it is damaged";
const char * const NO_ROOM = "there is no room for it in the context now";

// A state's conditions, and the slot's bytes behind them; empty if it is none.
struct parts {
    std::string conditions;
    const uint8_t * slot = nullptr;
    size_t size = 0;
};

parts parts_of(const state_bytes & bytes) {
    uint64_t size = 0;
    const size_t start = 8 + sizeof(size);
    if (bytes.size < start || memcmp(bytes.data, MAGIC, 8) != 0) {
        return {};
    }
    memcpy(&size, bytes.data + 8, sizeof(size));
    if (size > std::min(bytes.size - start, MOST_CONDITIONS)) {
        return {};
    }
    std::string lines((const char *)bytes.data + start, size);
    lines.resize(lines.find_last_not_of('\n') + 1); // there are some at the end to fill it up
    return { lines + "\n", bytes.data + start + size, bytes.size - start - size };
}

// Why these bytes are no state of these tokens; empty if they were, and it is restored.
std::string restore(llama_context * context, llama_seq_id sequence, const parts & from,
                    const std::vector<llama_token> & tokens) {
    std::vector<llama_token> found;
    try {
        switch (restore_slot(context, sequence, from.slot, from.size, found, &tokens)) {
        case outcome::RESTORED:
            return llama_memory_seq_pos_max(llama_get_memory(context), sequence) + 1 ==
                           (llama_pos)tokens.size()
                       ? ""
                       : DAMAGED;
        case outcome::NO_ROOM:
            return NO_ROOM;
        case outcome::NO_SLOT:
            break;
        }
    } catch (const std::exception & problem) {
        return problem.what();
    }
    return DAMAGED;
}

// Of the state in the file.
std::vector<llama_token> own_tokens; // none if it is not used

// The first line that differs and that all of this program's kind should have in common: what was
// evaluated by other kernels differs by its rounding alone.
std::string difference(const std::string & theirs) {
    std::istringstream ours(conditions), others(theirs);
    std::string line, other;
    while (std::getline(ours, line)) {
        std::getline(others, other);
        const std::string name = line.substr(0, line.find(' '));
        if (line != other && name != "program" && name != "level") {
            return "it was made with \"" + other + "\", and here is \"" + line + "\"";
        }
    }
    return std::getline(others, other) ? "it was made with \"" + other + "\"" : "";
}

void settle_own() {
    own_tokens.clear();
    const state_bytes bytes = own_state();
    if (bytes.data == nullptr) {
        return;
    }
    const parts from = parts_of(bytes);
    const std::string wrong = from.slot == nullptr ? DAMAGED : difference(from.conditions);
    if (wrong.empty()) {
        own_tokens = slot_tokens(from.slot, from.size);
    } else {
        LOG_WRN("state: that in the file is not used: %s\n", wrong.c_str());
    }
}

// Whether the context can forget its last tokens and nothing else.
bool can_shorten(const llama_context * context) {
    const llama_model * model = llama_get_model(context);
    return llama_model_n_swa(model) == 0 && !llama_model_is_recurrent(model) &&
           !llama_model_is_hybrid(model);
}

size_t common_length(const std::string & a, const std::string & b) {
    const size_t most = std::min(a.size(), b.size());
    size_t size = 0;
    while (size < most && a[size] == b[size]) {
        size++;
    }
    while (size > 0 && size < a.size() && ((unsigned char)a[size] & 0xC0) == 0x80) {
        size--; // in the middle of a letter
    }
    return size;
}

} // namespace

void note_prefix(const common_chat_templates * templates, common_chat_templates_inputs inputs,
                 const std::string & prompt, bool own) {
    const auto user =
        std::find_if(inputs.messages.begin(), inputs.messages.end(),
                     [](const common_chat_msg & each) { return each.role == "user"; });
    // Also where no states are kept: a batch ends at the same place then, and sums are the same.
    if (prompt.size() < LEAST || user == inputs.messages.end()) {
        return;
    }
    user->content = OTHER_WORDS;
    user->content_parts.clear();
    inputs.messages.erase(user + 1, inputs.messages.end());
    inputs.continue_final_message = COMMON_CHAT_CONTINUATION_NONE;
    inputs.add_generation_prompt = true;
    std::string text;
    try {
        const std::string other = common_chat_templates_apply(templates, inputs).prompt;
        text = prompt.substr(0, common_length(prompt, other));
    } catch (const std::exception &) {
        return; // a template that wants more of a conversation
    }
    if (text.size() < LEAST) {
        return;
    }
    own = own && inputs.tools.empty(); // which are the client's
    const size_t hash = std::hash<std::string>()(text);
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    const auto found = std::find_if(known.begin(), known.end(),
                                    [&](const prefix & each) { return each.hash == hash; });
    if (found != known.end()) {
        found->own = found->own || own;
        known.splice(known.begin(), known, found);
        return;
    }
    known.push_front({ hash, text, {}, {}, own });
    if (known.size() > MOST_KNOWN) {
        known.pop_back();
    }
}

void prefix_ends::settle(const common_params & params, const llama_context * context,
                         bool has_draft) {
    adapters = params.lora_adapters;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    conditions =
        has_draft || llama_get_memory(context) == nullptr ? "" : conditions_of(params, context);
    known.clear();
    if (!conditions.empty()) {
        settle_own();
    }
}

// Restores the state of a prefix. If that fails, all is forgotten.
static outcome restore_of(llama_context * context, llama_seq_id sequence, const state_bytes & bytes,
                          const prefix & of, const char * which, bool checked, int64_t began) {
    const parts from = parts_of(bytes);
    const std::string wrong = from.slot == nullptr ? DAMAGED
                              : !checked && from.conditions != conditions
                                  ? "it was made by another model or with other options"
                                  : restore(context, sequence, from, of.tokens);
    if (wrong.empty()) {
        LOG_INF("state: %zu tokens restored in %.1f ms (%s, %.1f MB)\n", of.tokens.size(),
                (double)(ggml_time_us() - began) / 1e3, which, (double)bytes.size / 1e6);
        return outcome::RESTORED;
    }
    LOG_WRN("state: %zu tokens are evaluated anew, for their state (%s) is not used: %s\n",
            of.tokens.size(), which, wrong.c_str());
    llama_memory_seq_rm(llama_get_memory(context), sequence, -1, -1);
    return wrong == NO_ROOM ? outcome::NO_ROOM : outcome::NO_SLOT;
}

int restore_prefix(llama_context * context, llama_seq_id sequence,
                   const std::vector<llama_token> & prompt, int has, int & ends) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    const llama_vocab * vocab = llama_model_get_vocab(llama_get_model(context));
    prefix * it = conditions.empty() ? nullptr : prefix_in(vocab, prompt);
    if (it == nullptr) {
        return has;
    }
    it->came++;
    const int size = (int)it->tokens.size();
    const int64_t began = ggml_time_us();
    if (has < size && it->tokens == own_tokens) {
        const outcome it_is =
            restore_of(context, sequence, own_state(), *it, "in the file", true, began);
        if (it_is == outcome::NO_SLOT) {
            own_tokens.clear();
        }
        it->kept = it_is != outcome::NO_SLOT;
        has = it_is == outcome::RESTORED ? size : 0;
        if (it->kept) {
            return has;
        }
    } else if (has < size && it->own && it->came == 1 && !own_tokens.empty()) {
        LOG_WRN("state: that in the file is not used: it is of another text or template\n");
    }
    if (has < size && (it->kept || !it->asked)) {
        it->asked = true;
        it->kept = false;
        const state_bytes bytes = read_state(it->key);
        if (bytes.data != nullptr) {
            const outcome it_is =
                restore_of(context, sequence, bytes, *it, it->key.c_str(), false, began);
            it->kept = it_is != outcome::NO_SLOT;
            has = it_is == outcome::RESTORED ? size : 0;
        }
    }
    if (it->kept || (!it->own && it->came < REPEATED)) {
        return has;
    }
    if (has > size && has - size <= MOST_AGAIN && can_shorten(context)) {
        has = size;
    }
    ends = has <= size ? size : 0;
    return has;
}

void keep_prefix(llama_context * context, llama_seq_id sequence,
                 const std::vector<llama_token> & tokens) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    const auto it = std::find_if(known.begin(), known.end(),
                                 [&](const prefix & each) { return each.tokens == tokens; });
    if (it == known.end() || it->kept) {
        return;
    }
    it->kept = true; // or it would be tried again and again
    try {
        if (!keeps_states() || llama_state_seq_get_size_ext(context, sequence, 0) > MOST_STATE) {
            return;
        }
        std::vector<uint8_t> bytes =
            slot_bytes(context, sequence, tokens.data(), tokens.size(), slot_sum::WORDS, front());
        const size_t size = bytes.size();
        write_state(it->key, std::move(bytes),
                    [count = tokens.size(), size, key = it->key](bool written) {
                        LOG_INF("state: of %zu tokens %s (%s, %.1f MB)\n", count,
                                written ? "kept" : "not kept, for it can't be written", key.c_str(),
                                (double)size / 1e6);
                    });
    } catch (const std::exception & problem) {
        LOG_WRN("state: of %zu tokens not kept: %s\n", tokens.size(), problem.what());
    }
}
