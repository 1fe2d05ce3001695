#include "machines/tensors.h"

#include "seams/worker-messages.h"
#include "seams/worker-tensors.h"
#include "system/cache.h"
#include "system/files.h"
#include "weights.h"

#include <hash/hash.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <thread>
#include <unordered_map>

namespace fs = std::filesystem;

namespace {

const size_t PART = 1 << 20; // bytes that one thread makes a digest of
const unsigned MOST_THREADS = 8;
const int MOST_DRAFTS = 8; // of workers that keep the same
const char DRAFT[] = ".draft";

std::string kept_in;      // empty: nothing is kept
fs::file_time_type began; // what was used since is wanted at the next start
uint64_t own_bytes = 0;   // in the folder, as far as this process knows
bool is_full = false;     // of what is wanted

file_ptr own_weights; // of this machine, if it has any
std::unordered_map<std::string, tensor_place> own_tensors;

std::string path_of(const rpc_digest & digest) {
    return kept_in + "/" + std::string(digest.hex, sizeof(digest.hex));
}

bool is_digest(const rpc_digest & digest) {
    return std::all_of(digest.hex, digest.hex + sizeof(digest.hex),
                       [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

bool is_same(const rpc_digest & one, const rpc_digest & other) {
    return memcmp(one.hex, other.hex, sizeof(one.hex)) == 0;
}

// Whether there is room for so much more. All together have half of what the disk would have free
// without them at most; those that nobody has used for the longest time go.
bool make_room(uint64_t size) {
    std::error_code error;
    const fs::space_info space = fs::space(fs::u8path(kept_in), error);
    if (error || is_full) {
        return false;
    }
    if (own_bytes + size <= (own_bytes + space.available) / 2) {
        return true;
    }
    const std::vector<used_file> all = files_by_use(kept_in, is_tensor);
    own_bytes = 0;
    for (const used_file & each : all) {
        own_bytes += each.size;
    }
    const uint64_t most = (own_bytes + space.available) / 2;
    for (const used_file & each : all) {
        if (own_bytes + size <= most) {
            return true;
        }
        if (each.used < began && fs::remove(each.path, error)) {
            own_bytes -= each.size;
        }
    }
    is_full = own_bytes + size > most;
    return !is_full;
}

bool has_digest(const std::vector<uint8_t> & data, const rpc_digest & digest) {
    return is_same(rpc_digest_of(data.data(), data.size()), digest);
}

// Whoever asks knows what they are called in the file, too.
bool read_own(const rpc_digest & digest, const std::string & name, std::vector<uint8_t> & data) {
    const auto found = own_tensors.find(name);
    if (found == own_tensors.end() || found->second.size > rpc_longest_message ||
        !file_seek(own_weights.get(), (int64_t)found->second.offset)) {
        return false;
    }
    data.resize(found->second.size);
    return fread(data.data(), 1, data.size(), own_weights.get()) == data.size() &&
           has_digest(data, digest);
}

} // namespace

bool keep_tensors_in(const std::string & folder) {
    if (!have_own_folder(folder)) {
        return false;
    }
    kept_in = folder;
    began = fs::file_time_type::clock::now();
    own_bytes = 0;
    for (const used_file & each : files_by_use(folder, is_tensor)) {
        own_bytes += each.size;
    }
    for (const used_file & each : files_by_use(folder, is_draft_of_tensor)) {
        remove_old_draft(each.path);
    }
    return true;
}

void tensors_are_in(const std::string & name) {
    weights found;
    std::vector<tensor_place> tensors;
    for (const std::string & path : { name, name.substr(0, name.rfind('@')) }) {
        std::error_code error;
        const fs::file_status there = fs::status(fs::u8path(path), error);
        if (fs::exists(there) && !fs::is_regular_file(there)) {
            return; // a pipe would be waited for
        }
    }
    if (!find_weights(name, found, &tensors).empty()) {
        return;
    }
    own_weights = open_file(found.path);
    for (size_t i = 0; own_weights != nullptr && i < tensors.size(); i++) {
        own_tensors[tensors[i].name] = tensors[i];
    }
}

// SHA-256 of those of the parts, for one processor alone would be slower than a network.
rpc_digest rpc_digest_of(const void * data, size_t size) {
    const size_t parts = (size + PART - 1) / PART;
    std::vector<std::string> digests(parts);
    std::atomic<size_t> next{ 0 };
    const auto work = [&] {
        for (size_t i; (i = next++) < parts;) {
            digests[i] =
                hash_sha256_hex((const char *)data + i * PART, std::min(PART, size - i * PART));
        }
    };
    const size_t most = std::min(std::thread::hardware_concurrency(), MOST_THREADS);
    std::vector<std::thread> others;
    for (size_t i = 1; i < std::min(most, parts); i++) {
        others.emplace_back(work);
    }
    work();
    for (std::thread & other : others) {
        other.join();
    }
    std::string all = std::to_string(size);
    for (const std::string & digest : digests) {
        all += digest;
    }
    rpc_digest out;
    memcpy(out.hex, hash_sha256_hex(all.data(), all.size()).data(), sizeof(out.hex));
    return out;
}

bool rpc_kept(const rpc_digest & digest, const std::string & name, std::vector<uint8_t> & data) {
    if (read_own(digest, name, data)) {
        return true;
    }
    if (kept_in.empty() || !is_digest(digest)) {
        return false;
    }
    const std::string path = path_of(digest);
    FILE * file = open_own(path, false);
    if (file == nullptr) {
        return false;
    }
    std::error_code error;
    const uint64_t size = fs::file_size(fs::u8path(path), error);
    bool whole = !error && size <= rpc_longest_message;
    if (whole) {
        data.resize(size);
        whole = fread(data.data(), 1, size, file) == size;
    }
    fclose(file);
    if (!whole || !has_digest(data, digest)) {
        fs::remove(fs::u8path(path), error); // damaged: it is sent again
        return false;
    }
    touch_own(path);
    return true;
}

void rpc_keep(const void * data, size_t size) {
    if (kept_in.empty() || !make_room(size)) {
        return;
    }
    const std::string path = path_of(rpc_digest_of(data, size));
    std::string draft;
    FILE * file = nullptr;
    for (int i = 0; file == nullptr && i < MOST_DRAFTS; i++) {
        draft = path + "." + std::to_string(i) + DRAFT;
        file = open_own(draft, true);
    }
    if (file == nullptr) {
        return;
    }
    const bool written = fwrite(data, 1, size, file) == size;
    if (fclose(file) == 0 && written && put_in_place(draft, path)) {
        own_bytes += size;
    } else {
        std::error_code error;
        fs::remove(fs::u8path(draft), error);
        is_full = true; // whatever it was, it may be so again
    }
}
