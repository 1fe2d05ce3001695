// libFuzzer's bytes as what the runtime loads; WAYS has the names for --what=. A model, an adapter,
// a projector go the runtime's own way: our check of the header first, and what it takes is handed
// to llama.cpp, up to the first tokens. What is no model goes with the one that --base=FILE names.
// --seeds=FOLDER writes states or slots there, and ends.

#include "chat.h"
#include "clip-impl.h"
#include "common.h"
#include "ggml-backend.h"
#include "llama-arch.h"
#include "llama.h"
#include "log.h"
#include "mtmd.h"
#include "mutating.h"
#include "preset.h"
#include "seams/bounded.h"
#include "ways.h"
#include "weights.h"

#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <unistd.h>

#define STB_IMAGE_IMPLEMENTATION
#include "stb_image.h"

container own_container; // as main.cpp has it: none

// The registry's way to the kernels, which system/cpu.cpp has in the runtime.
extern "C" ggml_backend_reg_t ggml_backend_cpu_reg();
extern "C" ggml_backend_reg_t chosen_cpu_reg() {
    return ggml_backend_cpu_reg();
}

// The server's router is not here.
std::optional<common_presets> presets_of_llamafile(const common_preset_context &,
                                                   const std::string &) {
    abort();
}

// More than a machine has is an exception for a program, and would be the end of it for ASan.
static const size_t MOST_MEMORY = (size_t)1 << 30;

void * operator new(size_t size) {
    void * out = size < MOST_MEMORY ? malloc(size > 0 ? size : 1) : nullptr;
    if (out == nullptr) {
        throw std::bad_alloc();
    }
    return out;
}
void * operator new[](size_t size) {
    return operator new(size);
}
void operator delete(void * what) noexcept {
    free(what);
}
void operator delete[](void * what) noexcept {
    free(what);
}
void operator delete(void * what, size_t) noexcept {
    free(what);
}
void operator delete[](void * what, size_t) noexcept {
    free(what);
}

void say_loaded(size_t, size_t) {} // of machines/machines.cpp, to whom it may concern

namespace {

jmp_buf out_of_noexcept;

// A failed assertion ends the runtime with a line and exit code 1 (main.cpp).
void refuse(const char * message) {
    throw refused(message);
}

void leave() {
    longjmp(out_of_noexcept, 1);
}

void silent(ggml_log_level, const char *, void *) {}

std::string input_path;

struct free_projector {
    void operator()(mtmd_context * projector) const {
        mtmd_free(projector);
    }
};
struct free_chunks {
    void operator()(mtmd_input_chunks * chunks) const {
        mtmd_input_chunks_free(chunks);
    }
};
struct free_bitmap {
    void operator()(mtmd_bitmap * bitmap) const {
        mtmd_bitmap_free(bitmap);
    }
};
} // namespace

std::string base_path;

const std::string & in_file(const std::string & bytes) {
    FILE * file = fopen(input_path.c_str(), "wb");
    if (file == nullptr || fwrite(bytes.data(), 1, bytes.size(), file) != bytes.size() ||
        fclose(file) != 0) {
        _Exit(3);
    }
    return input_path;
}

void wrong(const char * what) {
    fprintf(stderr, "wrong: %s\n", what);
    abort();
}

llama_model_ptr loaded(const std::string & path, bool mapped) {
    llama_model_params how = llama_model_default_params();
    how.load_mode = mapped ? LLAMA_LOAD_MODE_MMAP : LLAMA_LOAD_MODE_NONE;
    llama_model_ptr model(llama_model_load_from_file(path.c_str(), how));
    if (!model) {
        throw refused("no model");
    }
    return model;
}

llama_context_ptr context_of(llama_model * model, uint32_t tokens) {
    llama_context_params how = llama_context_default_params();
    how.n_ctx = tokens;
    how.n_batch = how.n_ubatch = 16;
    how.n_seq_max = 1;
    how.n_threads = how.n_threads_batch = 1;
    llama_context_ptr context(llama_init_from_model(model, how));
    if (!context) {
        throw refused("no context");
    }
    return context;
}

void answer(llama_context * context) {
    const llama_model * model = llama_get_model(context);
    const llama_vocab * vocabulary = llama_model_get_vocab(model);
    const int32_t known = llama_vocab_n_tokens(vocabulary);
    std::vector<llama_token> tokens =
        common_tokenize(vocabulary, "Once upon <s>a \xe2\x82\xac t1me,\n\xff", true, true);
    for (const llama_token token : tokens) {
        common_token_to_piece(vocabulary, token, true);
    }
    common_detokenize(vocabulary, tokens, true);
    if (tokens.empty() && known > 0) {
        tokens.push_back(0);
    }
    if (tokens.size() > 8) {
        tokens.resize(8);
    }
    llama_batch batch = llama_batch_get_one(tokens.data(), (int32_t)tokens.size());
    if (llama_model_has_encoder(model)) {
        llama_encode(context, batch);
        llama_token start = llama_model_decoder_start_token(model);
        if (!llama_model_has_decoder(model)) {
            return;
        }
        batch = llama_batch_get_one(&start, 1);
        llama_decode(context, batch);
        return;
    }
    llama_decode(context, batch);
}

namespace {

common_chat_templates_inputs conversation(bool tools) {
    common_chat_templates_inputs out;
    const auto say = [&](const char * role, const char * text) {
        common_chat_msg message;
        message.role = role;
        message.content = text;
        out.messages.push_back(message);
    };
    say("system", "Be brief.");
    say("user", "What is 2 + 2?");
    say("assistant", "4");
    say("user", "And <|im_end|> 3?");
    if (tools) {
        out.tools.push_back(
            { "add", "adds", R"({"type":"object","properties":{"a":{"type":"integer"}}})" });
    }
    return out;
}

void talk(const llama_model * model, const std::string & text) {
    const common_chat_templates_ptr templates = common_chat_templates_init(model, text);
    common_chat_format_example(templates.get(), true, {});
    for (const bool tools : { false, true }) {
        common_chat_templates_apply(templates.get(), conversation(tools));
    }
}

// As the runtime does before it looks further.
bool is_sound(const std::string & path, weights_kind kind) {
    weights found;
    return find_weights(path, found).empty() && found.kind == kind;
}

void take_model(const std::string & bytes) {
    in_file(bytes);
    if (!is_sound(input_path, weights_kind::MODEL)) {
        return;
    }
    const llama_model_ptr model = loaded(input_path, bytes.size() % 2 == 0);
    try {
        talk(model.get(), "");
    } catch (const std::exception &) {
        // it stops chats, not the model
    }
    const llama_context_ptr context = context_of(model.get());
    answer(context.get());
}

void take_adapter(const std::string & bytes) {
    in_file(bytes);
    if (!is_sound(input_path, weights_kind::ADAPTER)) {
        return;
    }
    const llama_model_ptr model = loaded(base_path, true);
    llama_adapter_lora * adapter = llama_adapter_lora_init(model.get(), input_path.c_str());
    if (adapter != nullptr) {
        const llama_context_ptr context = context_of(model.get());
        float scale = 0.5;
        llama_set_adapters_lora(context.get(), &adapter, 1, &scale);
        answer(context.get());
    }
}

void take_projector(const std::string & bytes) {
    in_file(bytes);
    if (!is_sound(input_path, weights_kind::PROJECTOR)) {
        return;
    }
    static const llama_model_ptr model = loaded(base_path, true);
    mtmd_context_params how = mtmd_context_params_default();
    how.use_gpu = false;
    how.n_threads = 1;
    how.print_timings = false;
    how.warmup = false; // an image of the largest size, which is what takes the time
    const std::unique_ptr<mtmd_context, free_projector> projector(
        mtmd_init_from_file(input_path.c_str(), model.get(), how));
    if (!projector) {
        return;
    }
    static const std::vector<unsigned char> pixels(24 * 24 * 3, 99);
    static const std::vector<float> sound(4000, 0.1f);
    for (const bool ear : { false, true }) {
        if (ear ? !mtmd_support_audio(projector.get()) : !mtmd_support_vision(projector.get())) {
            continue;
        }
        const std::unique_ptr<mtmd_bitmap, free_bitmap> bitmap(
            ear ? mtmd_bitmap_init_from_audio(sound.size(), sound.data())
                : mtmd_bitmap_init(24, 24, pixels.data()));
        const std::string text = std::string("a ") + mtmd_get_marker(projector.get());
        const mtmd_input_text said = { text.c_str(), text.size(), true, true };
        const std::unique_ptr<mtmd_input_chunks, free_chunks> chunks(mtmd_input_chunks_init());
        const mtmd_bitmap * given = bitmap.get();
        if (mtmd_tokenize(projector.get(), chunks.get(), &said, &given, 1) != 0) {
            continue;
        }
        size_t tokens = 0;
        for (size_t i = 0; i < mtmd_input_chunks_size(chunks.get()); i++) {
            tokens += mtmd_input_chunk_get_n_tokens(mtmd_input_chunks_get(chunks.get(), i));
        }
        for (size_t i = 0; i < mtmd_input_chunks_size(chunks.get()) && tokens < 512; i++) {
            const mtmd_input_chunk * chunk = mtmd_input_chunks_get(chunks.get(), i);
            if (mtmd_input_chunk_get_type(chunk) != MTMD_INPUT_CHUNK_TYPE_TEXT) {
                mtmd_encode_chunk(projector.get(), chunk);
            }
        }
    }
}

// As a slot of the server is restored, and what --prompt-cache reads.
void take_state(const std::string & bytes) {
    in_file(bytes);
    static const llama_model_ptr model = loaded(base_path, true);
    const llama_context_ptr context = context_of(model.get());
    std::vector<llama_token> tokens(llama_n_ctx(context.get()));
    size_t count = 0;
    if (bytes.size() % 2 == 0) { // of all sequences, or of one
        llama_state_load_file(context.get(), input_path.c_str(), tokens.data(), tokens.size(),
                              &count);
    } else {
        llama_state_seq_load_file(context.get(), input_path.c_str(), 0, tokens.data(),
                                  tokens.size(), &count);
    }
    answer(context.get());
}

void save_states(const std::string & folder) {
    const llama_model_ptr model = loaded(base_path, true);
    const llama_context_ptr context = context_of(model.get());
    answer(context.get());
    const std::vector<llama_token> tokens(8, 5);
    llama_state_save_file(context.get(), (folder + "/whole").c_str(), tokens.data(), tokens.size());
    llama_state_seq_save_file(context.get(), (folder + "/sequence").c_str(), 0, tokens.data(),
                              tokens.size());
}

void take_template(const std::string & bytes) {
    template_work::begin();
    talk(nullptr, bytes);
}

const dictionary & known() {
    static const dictionary all = [] {
        dictionary out;
        for (const llm_arch arch : llm_arch_all()) {
            out.architectures.push_back(llm_arch_name(arch));
        }
        const LLM_KV named(LLM_ARCH_UNKNOWN);
        for (int key = 0; key <= LLM_KV_DENSE_3_FEAT_OUT; key++) { // the last of them
            try {
                std::string name = named((llm_kv)key);
                const std::string unknown = "(unknown)";
                const size_t place = name.find(unknown);
                if (place != std::string::npos) {
                    name.replace(place, unknown.size(), "%s");
                }
                out.keys.push_back(name);
            } catch (const std::out_of_range &) {
            }
        }
        for (const auto & type : PROJECTOR_TYPE_NAMES) {
            out.words.push_back(type.second);
        }
        for (const char * word :
             { "llama",          "gpt2",       "bert",    "t5",     "rwkv",         "plamo2",
               "none",           "no_vocab",   "default", "<s>",    "</s>",         "<0x0A>",
               "<0xZZ>",         "<|im_end|>", "<unk>",   "[CLS]",  "\xe2\x96\x81", "a b",
               "lora",           "alora",      "yarn",    "linear", "longrope",     "gelu",
               "{{ messages }}", "chatml" }) {
            out.words.push_back(word);
        }
        return out;
    }();
    return all;
}

size_t mutate_header(uint8_t * data, size_t size, size_t most, unsigned seed) {
    return mutate_gguf(data, size, most, seed, known());
}

struct way {
    void (*take)(const std::string & bytes);
    size_t (*mutate)(uint8_t * data, size_t size, size_t most, unsigned seed);
    void (*save_seeds)(const std::string & folder) = nullptr;
};
const std::map<std::string, way> WAYS = {
    { "model", { take_model, mutate_header } },
    { "adapter", { take_adapter, mutate_header } },
    { "projector", { take_projector, mutate_header } },
    { "state", { take_state, mutate_bytes, save_states } },
    { "slot", { take_slot, mutate_slot, save_slots } },
    { "template", { take_template, mutate_bytes } },
    { "documents", { take_documents, mutate_documents } },
    { "messages", { take_messages, mutate_messages } },
};

way chosen;

} // namespace

extern "C" int LLVMFuzzerInitialize(int * argc, char *** argv) {
    std::string what, seeds;
    for (int i = 1; i < *argc; i++) {
        const std::string word = (*argv)[i];
        if (word.rfind("--what=", 0) == 0) {
            what = word.substr(7);
        } else if (word.rfind("--base=", 0) == 0) {
            base_path = word.substr(7);
        } else if (word.rfind("--seeds=", 0) == 0) {
            seeds = word.substr(8);
        }
    }
    if (WAYS.count(what) == 0) {
        fputs("--what= needs one of:", stderr);
        for (const auto & each : WAYS) {
            fprintf(stderr, " %s", each.first.c_str());
        }
        fputs("\n", stderr);
        exit(2);
    }
    chosen = WAYS.at(what);
    input_path = "/dev/shm/fuzz-" + what + "-" + std::to_string(getpid());
    ggml_set_abort_callback(refuse);
    std::set_terminate(leave);
    llama_log_set(silent, nullptr);
    mtmd_log_set(silent, nullptr);
    common_log_set_verbosity_thold(-1);
    llama_backend_init();
    if (!seeds.empty()) {
        chosen.save_seeds(seeds);
        exit(0);
    }
    return 0;
}

extern "C" size_t LLVMFuzzerMutate(uint8_t * data, size_t size, size_t most);

size_t mutate_bytes(uint8_t * data, size_t size, size_t most, unsigned) {
    return LLVMFuzzerMutate(data, size, most);
}

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t * data, size_t size, size_t most, unsigned seed) {
    return chosen.mutate(data, size, most, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    if (setjmp(out_of_noexcept) != 0) {
        return 0;
    }
    try {
        chosen.take(std::string((const char *)data, size));
    } catch (const std::exception &) {
        // refused
    }
    unlink(input_path.c_str());
    return 0;
}
