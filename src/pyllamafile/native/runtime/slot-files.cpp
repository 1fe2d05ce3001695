// The files in which the server keeps conversations (--slot-save-path): what a model remembers of
// one, and its tokens. These functions are in the place of llama_state_seq_save_file and
// llama_state_seq_load_file, which write through links, take a file that was cut short for one that
// ends in zeros, and abort where sizes in it don't agree. Whatever is wrong with a file, here it is
// no slot file: both say 0, and the server answers 400 to whoever wanted to restore it.
//
// A file is its head, the tokens, and what llama_state_seq_get_data_ext gives.

#include "slot-files.h"

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

namespace fs = std::filesystem;

struct head {
    char magic[8];
    uint64_t sum; // of all behind it
    uint64_t tokens;
    uint64_t bytes; // of memory
};

const uint64_t START = 0xcbf29ce484222325, PRIME = 0x100000001b3;

// 64-bit FNV-1a, which finds what broke by accident.
uint64_t sum_bytes(uint64_t start, const void * data, size_t size) {
    const auto * bytes = (const unsigned char *)data;
    for (size_t i = 0; i < size; i++) {
        start = (start ^ bytes[i]) * PRIME;
    }
    return start;
}

// The same of words in four lanes, so that no multiplication waits for another: word i is for lane
// i % 4. The last word is filled up with zeros. The sum is that of the lanes.
uint64_t sum_words(uint64_t start, const void * data, size_t size) {
    const auto * bytes = (const unsigned char *)data;
    uint64_t lanes[4] = { start, start, start, start }, words[4];
    size_t i = 0;
    for (; i + sizeof(words) <= size; i += sizeof(words)) {
        memcpy(words, bytes + i, sizeof(words));
        for (int lane = 0; lane < 4; lane++) {
            lanes[lane] = (lanes[lane] ^ words[lane]) * PRIME;
        }
    }
    memset(words, 0, sizeof(words));
    memcpy(words, bytes + i, size - i);
    for (size_t lane = 0; lane * sizeof(uint64_t) < size - i; lane++) {
        lanes[lane] = (lanes[lane] ^ words[lane]) * PRIME;
    }
    return sum_bytes(start, lanes, sizeof(lanes));
}

// By slot_sum.
const struct {
    char magic[8];
    uint64_t (*sum)(uint64_t start, const void * data, size_t size);
} KINDS[] = {
    { { 'l', 'l', 'a', 'm', 'S', 'L', 'T', '1' }, sum_bytes },
    { { 'l', 'l', 'a', 'm', 'S', 'L', 'T', '2' }, sum_words },
};

bool is_known(const head & of) {
    return std::any_of(std::begin(KINDS), std::end(KINDS), [&](const auto & kind) {
        return memcmp(kind.magic, of.magic, sizeof(of.magic)) == 0;
    });
}

uint64_t sum(const head & of, const void * tokens, const void * memory) {
    const auto add =
        memcmp(of.magic, KINDS[1].magic, sizeof(of.magic)) == 0 ? KINDS[1].sum : KINDS[0].sum;
    const uint64_t sizes = add(START, &of.tokens, sizeof(of.tokens) + sizeof(of.bytes));
    return add(add(sizes, tokens, of.tokens * sizeof(llama_token)), memory, of.bytes);
}

// Whether so many bytes are as much as a head says.
bool adds_up(const head & it, uint64_t size) {
    return is_known(it) && it.tokens <= size / sizeof(llama_token) && it.bytes <= size &&
           size == sizeof(it) + it.tokens * sizeof(llama_token) + it.bytes;
}

// Opens a file that is one, no link and no pipe, and reads its head. False if that is no slot
// file's.
bool open(const char * name, std::ifstream & file, head & out, uint64_t & size) {
    const fs::path path = fs::u8path(name);
    if (fs::symlink_status(path).type() != fs::file_type::regular) {
        return false;
    }
    size = fs::file_size(path);
    file.open(path, std::ios::binary);
    return file.read((char *)&out, sizeof(out)) && adds_up(out, size);
}

size_t save(llama_context * context, const char * name, llama_seq_id sequence,
            const llama_token * tokens, size_t count) {
    const std::vector<uint8_t> bytes =
        slot_bytes(context, sequence, tokens, count, slot_sum::BYTES, "");
    // A link that lies in its place is replaced, and what it leads to stays as it is.
    const fs::path path = fs::u8path(name);
    if (fs::is_directory(fs::symlink_status(path))) {
        return 0;
    }
    const fs::path draft = fs::u8path(name + std::string(".part"));
    fs::remove(draft);
#ifdef _WIN32
    FILE * file = _wfopen(draft.c_str(), L"wbx");
#else
    FILE * file = fopen(draft.c_str(), "wbx");
#endif
    if (file == nullptr) {
        return 0;
    }
    bool whole = fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size();
    whole = fclose(file) == 0 && whole;
    std::error_code error;
    if (whole) {
        fs::rename(draft, path, error);
    }
    if (!whole || error) {
        fs::remove(draft, error);
        return 0;
    }
    return bytes.size();
}

size_t load(llama_context * context, const char * name, llama_seq_id sequence, llama_token * tokens,
            size_t capacity, size_t * count) {
    std::ifstream file;
    head it;
    uint64_t size = 0;
    if (!open(name, file, it, size)) {
        return 0;
    }
    *count = it.tokens;
    if (tokens == nullptr) {
        return sizeof(it);
    }
    std::vector<uint8_t> bytes(size);
    std::vector<llama_token> found;
    if (it.tokens > capacity || !file.seekg(0) ||
        !file.read((char *)bytes.data(), (std::streamsize)size) ||
        restore_slot(context, sequence, bytes.data(), size, found) != outcome::RESTORED ||
        found.size() > capacity) {
        return 0;
    }
    *count = found.size();
    std::copy(found.begin(), found.end(), tokens);
    return size;
}

} // namespace

std::vector<uint8_t> slot_bytes(llama_context * context, llama_seq_id sequence,
                                const llama_token * tokens, size_t count, slot_sum by,
                                const std::string & front) {
    head it = { {}, 0, count, llama_state_seq_get_size_ext(context, sequence, 0) };
    memcpy(it.magic, KINDS[(int)by].magic, sizeof(it.magic));
    std::vector<uint8_t> out(front.size() + sizeof(it) + count * sizeof(llama_token) + it.bytes);
    uint8_t * const start = out.data() + front.size();
    uint8_t * const memory = start + sizeof(it) + count * sizeof(llama_token);
    llama_state_seq_get_data_ext(context, memory, it.bytes, sequence, 0);
    it.sum = sum(it, tokens, memory);
    std::copy(front.begin(), front.end(), out.data());
    memcpy(start, &it, sizeof(it));
    memcpy(start + sizeof(it), tokens, count * sizeof(llama_token));
    return out;
}

std::vector<llama_token> slot_tokens(const uint8_t * data, size_t size) {
    head it;
    if (size < sizeof(it)) {
        return {};
    }
    memcpy(&it, data, sizeof(it));
    if (!is_known(it) || it.tokens > (size - sizeof(it)) / sizeof(llama_token)) {
        return {};
    }
    std::vector<llama_token> out(it.tokens);
    if (!out.empty()) { // memcpy takes no null
        memcpy(out.data(), data + sizeof(it), it.tokens * sizeof(llama_token));
    }
    return out;
}

outcome restore_slot(llama_context * context, llama_seq_id sequence, const uint8_t * data,
                     size_t size, std::vector<llama_token> & tokens,
                     const std::vector<llama_token> * expected) {
    head it;
    if (size < sizeof(it)) {
        return outcome::NO_SLOT;
    }
    memcpy(&it, data, sizeof(it));
    if (!adds_up(it, size)) {
        return outcome::NO_SLOT;
    }
    tokens.resize(it.tokens);
    if (!tokens.empty()) {
        memcpy(tokens.data(), data + sizeof(it), it.tokens * sizeof(llama_token));
    }
    const uint8_t * const memory = data + sizeof(it) + it.tokens * sizeof(llama_token);
    if ((expected != nullptr && tokens != *expected) || sum(it, tokens.data(), memory) != it.sum) {
        return outcome::NO_SLOT;
    }
    if (llama_state_seq_set_data_ext(context, memory, it.bytes, sequence, 0) != it.bytes) {
        return outcome::NO_ROOM;
    }
    const llama_memory_t restored = llama_get_memory(context);
    const llama_pos first = llama_memory_seq_pos_min(restored, sequence);
    const llama_pos last = llama_memory_seq_pos_max(restored, sequence);
    const bool fits = it.tokens == 0 || (first >= 0 && last < (llama_pos)llama_n_ctx(context));
    return fits ? outcome::RESTORED : outcome::NO_SLOT;
}

extern "C" size_t slot_file_save(llama_context * context, const char * name, llama_seq_id sequence,
                                 const llama_token * tokens, size_t count) {
    try {
        return save(context, name, sequence, tokens, count);
    } catch (const std::exception &) {
        return 0; // the disk is full, or memory is
    }
}

extern "C" size_t slot_file_load(llama_context * context, const char * name, llama_seq_id sequence,
                                 llama_token * tokens, size_t capacity, size_t * count) {
    try {
        return load(context, name, sequence, tokens, capacity, count);
    } catch (const std::exception &) {
        return 0;
    }
}
