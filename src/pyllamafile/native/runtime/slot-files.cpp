// The files in which the server keeps conversations (--slot-save-path): what a model remembers of
// one, and its tokens. These functions are in the place of llama_state_seq_save_file and
// llama_state_seq_load_file, which write through links, take a file that was cut short for one that
// ends in zeros, and abort where sizes in it don't agree. Whatever is wrong with a file, here it is
// no slot file: both say 0, and the server answers 400 to whoever wanted to restore it.
//
// A file is its head, the tokens, and what llama_state_seq_get_data_ext gives.

#include "llama.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <fstream>
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

const char MAGIC[8] = { 'l', 'l', 'a', 'm', 'S', 'L', 'T', '1' };

// 64-bit FNV-1a, which finds what broke by accident.
uint64_t sum(uint64_t start, const void * data, size_t size) {
    const auto * bytes = (const unsigned char *)data;
    for (size_t i = 0; i < size; i++) {
        start = (start ^ bytes[i]) * 0x100000001b3;
    }
    return start;
}

uint64_t sum(const head & of, const void * tokens, const std::vector<uint8_t> & memory) {
    const uint64_t sizes =
        sum(0xcbf29ce484222325, &of.tokens, sizeof(of.tokens) + sizeof(of.bytes));
    return sum(sum(sizes, tokens, of.tokens * sizeof(llama_token)), memory.data(), memory.size());
}

// Opens a file that is one, no link and no pipe, and reads its head. False if that is no slot
// file's.
bool open(const char * name, std::ifstream & file, head & out) {
    const fs::path path = fs::u8path(name);
    if (fs::symlink_status(path).type() != fs::file_type::regular) {
        return false;
    }
    const uint64_t size = fs::file_size(path);
    file.open(path, std::ios::binary);
    return file.read((char *)&out, sizeof(out)) && memcmp(out.magic, MAGIC, sizeof(MAGIC)) == 0 &&
           out.tokens <= size / sizeof(llama_token) && out.bytes <= size &&
           size == sizeof(out) + out.tokens * sizeof(llama_token) + out.bytes;
}

size_t save(llama_context * context, const char * name, llama_seq_id sequence,
            const llama_token * tokens, size_t count) {
    std::vector<uint8_t> memory(llama_state_seq_get_size_ext(context, sequence, 0));
    llama_state_seq_get_data_ext(context, memory.data(), memory.size(), sequence, 0);
    head it = { {}, 0, count, memory.size() };
    memcpy(it.magic, MAGIC, sizeof(MAGIC));
    it.sum = sum(it, tokens, memory);
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
    bool whole = fwrite(&it, sizeof(it), 1, file) == 1 &&
                 fwrite(tokens, sizeof(llama_token), count, file) == count &&
                 fwrite(memory.data(), 1, memory.size(), file) == memory.size();
    whole = fclose(file) == 0 && whole;
    std::error_code error;
    if (whole) {
        fs::rename(draft, path, error);
    }
    if (!whole || error) {
        fs::remove(draft, error);
        return 0;
    }
    return sizeof(it) + count * sizeof(llama_token) + memory.size();
}

size_t load(llama_context * context, const char * name, llama_seq_id sequence, llama_token * tokens,
            size_t capacity, size_t * count) {
    std::ifstream file;
    head it;
    if (!open(name, file, it)) {
        return 0;
    }
    *count = it.tokens;
    if (tokens == nullptr) {
        return sizeof(it);
    }
    std::vector<uint8_t> memory(it.bytes);
    if (it.tokens > capacity ||
        !file.read((char *)tokens, (std::streamsize)(it.tokens * sizeof(llama_token))) ||
        !file.read((char *)memory.data(), (std::streamsize)memory.size()) ||
        sum(it, tokens, memory) != it.sum ||
        llama_state_seq_set_data_ext(context, memory.data(), memory.size(), sequence, 0) !=
            memory.size()) {
        return 0;
    }
    const llama_memory_t restored = llama_get_memory(context);
    const llama_pos first = llama_memory_seq_pos_min(restored, sequence);
    const llama_pos last = llama_memory_seq_pos_max(restored, sequence);
    const bool fits = it.tokens == 0 || (first >= 0 && last < (llama_pos)llama_n_ctx(context));
    return fits ? sizeof(it) + it.tokens * sizeof(llama_token) + memory.size() : 0;
}

} // namespace

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
