// What is kept of conversations: a slot file, or the state of a prefix, which has conditions in
// front of the same bytes. What reads them is the runtime's; this is in the place of states.cpp,
// which has the folder.
#include "slot-files.cpp" // for its sums

#include "chat.h"
#include "common.h"
#include "seams/prefixes.h"
#include "states.h"
#include "system/cpu.h"
#include "ways.h"

const char * cpu_level() {
    return "v2";
}

removed_states remove_states(const std::string &) {
    return {};
}

namespace {

const uint32_t CONTEXT = 512; // tokens: more than a prefix that is worth it has
// Of a state, and of one that is in the llamafile; there it is as the other.
const char * const MAGIC = "llamSTA1";
const char * const OWN = "own STA1";
const char * const TEMPLATE =
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}";

std::shared_ptr<std::vector<uint8_t>> kept; // the one state that there is
bool is_own = false;                        // it is in the llamafile

state_bytes state_if(bool there) {
    return there && kept ? state_bytes{ kept->data(), kept->size(), kept } : state_bytes();
}

common_chat_templates_inputs conversation() {
    common_chat_templates_inputs out;
    std::string text;
    while (text.size() < 400) {
        text += "the notes on it are here, in short. ";
    }
    out.messages.resize(2);
    out.messages[0].role = "system";
    out.messages[0].content = text;
    out.messages[1].role = "user";
    out.messages[1].content = "Is it so?";
    return out;
}

// Reads on behind what the context remembers.
void read_on(llama_context * context, std::vector<llama_token> tokens) {
    for (size_t at = 0; at < tokens.size();) {
        const size_t count = std::min<size_t>(tokens.size() - at, llama_n_batch(context));
        if (llama_decode(context, llama_batch_get_one(&tokens[at], (int32_t)count)) != 0) {
            return;
        }
        at += count;
    }
}

struct beginning {
    std::vector<llama_token> prompt;
    int has = 0;  // tokens that were restored
    int ends = 0; // where the prefix does, if it is to be kept
};

beginning begin(const llama_model * model, llama_context * context) {
    static const common_chat_templates_ptr templates = common_chat_templates_init(model, TEMPLATE);
    static const std::string prompt =
        common_chat_templates_apply(templates.get(), conversation()).prompt;
    common_params params;
    params.model.path = base_path;
    prefix_ends().settle(params, context, false);
    note_prefix(templates.get(), conversation(), prompt, true);
    beginning out;
    out.prompt = common_tokenize(llama_model_get_vocab(model), prompt, true, true);
    out.has = restore_prefix(context, 0, out.prompt, 0, out.ends);
    return out;
}

const llama_model * base() {
    static const llama_model_ptr model = loaded(base_path, true);
    return model.get();
}

} // namespace

state_bytes own_state() {
    return state_if(is_own);
}

state_bytes read_state(const std::string &) {
    return state_if(!is_own);
}

bool keeps_states() {
    return true;
}

void write_state(const std::string &, std::vector<uint8_t> && bytes,
                 const std::function<void(bool)> & then) {
    kept = std::make_shared<std::vector<uint8_t>>(std::move(bytes));
    then(true);
}

void take_slot(const std::string & bytes) {
    const llama_context_ptr context = context_of((llama_model *)base(), CONTEXT);
    is_own = bytes.compare(0, 8, OWN) == 0;
    if (is_own || bytes.compare(0, 8, MAGIC) == 0) {
        kept = std::make_shared<std::vector<uint8_t>>(bytes.begin(), bytes.end());
        memcpy(kept->data(), MAGIC, 8);
        const beginning it = begin(base(), context.get());
        read_on(context.get(), { it.prompt.begin() + it.has, it.prompt.end() });
        return;
    }
    std::vector<llama_token> tokens(CONTEXT);
    size_t count = 0;
    if (slot_file_load(context.get(), in_file(bytes).c_str(), 0, tokens.data(), tokens.size(),
                       &count) == 0) {
        llama_memory_seq_rm(llama_get_memory(context.get()), 0, -1, -1); // as the server does
    } else if (count > tokens.size()) {
        wrong("more tokens than there is room for");
    }
    read_on(context.get(), std::vector<llama_token>(2, 1));
}

void save_slots(const std::string & folder) {
    const llama_context_ptr context = context_of((llama_model *)base(), CONTEXT);
    beginning it = begin(base(), context.get());
    it.prompt.resize((size_t)it.ends);
    read_on(context.get(), it.prompt);
    keep_prefix(context.get(), 0, it.prompt);
    if (!kept || slot_file_save(context.get(), (folder + "/slot").c_str(), 0, it.prompt.data(),
                                it.prompt.size()) == 0) {
        wrong("nothing was kept");
    }
    for (const char * magic : { MAGIC, OWN }) {
        std::ofstream file(folder + (magic == OWN ? "/own" : "/state"), std::ios::binary);
        memcpy(kept->data(), magic, 8);
        file.write((const char *)kept->data(), (std::streamsize)kept->size());
    }
}

namespace {

// Where the bytes of a slot begin, behind a state's conditions.
size_t slot_in(const uint8_t * data, size_t size) {
    uint64_t conditions = 0;
    if (size < 16 || (memcmp(data, MAGIC, 8) != 0 && memcmp(data, OWN, 8) != 0)) {
        return 0;
    }
    memcpy(&conditions, data + 8, sizeof(conditions));
    return conditions <= size - 16 ? 16 + (size_t)conditions : size;
}

// Where its memory does, behind its tokens; the end if there is none.
size_t memory_in(const uint8_t * data, size_t size) {
    const size_t start = slot_in(data, size);
    head it;
    if (size - start < sizeof(it)) {
        return size;
    }
    memcpy(&it, data + start, sizeof(it));
    const size_t rest = size - start - sizeof(it);
    return it.tokens <= rest / sizeof(llama_token) ? size - rest + it.tokens * sizeof(llama_token)
                                                   : size;
}

} // namespace

// Changes mostly the memory, for other tokens are not looked at further, and puts in order how long
// it is and the sum.
size_t mutate_slot(uint8_t * data, size_t size, size_t most, unsigned seed) {
    const size_t memory = seed % 8 < 6 ? memory_in(data, size) : size;
    const size_t from = memory < size ? memory : 0;
    size = from + mutate_bytes(data + from, size - from, most - from, seed);
    const size_t now = memory_in(data, size);
    if (seed % 8 == 7 || now == size) {
        return size;
    }
    const size_t start = slot_in(data, size);
    head it;
    memcpy(&it, data + start, sizeof(it));
    it.bytes = size - now;
    it.sum = sum(it, data + start + sizeof(it), data + now);
    memcpy(data + start, &it, sizeof(it));
    return size;
}
