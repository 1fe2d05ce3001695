#include "states.h"

#include "system/cache.h"
#include "system/files.h"
#include "system/pipes.h"
#include "system/sandbox.h"
#include "system/split-off.h"

#include <hash/hash.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#ifdef _WIN32
#include "system/sandbox/system.h"
#else
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace fs = std::filesystem;

namespace {

const uint64_t MOST_BYTES = 2 * MOST_STATE; // in the folder
const uint64_t LEFT_FREE = 2;               // times the size of a state, on the disk
const size_t OF_WEIGHTS = 16, OF_KEY = 32;  // digits
const std::string EXTENSION = ".state", DRAFT = ".draft";

bool is_hex(const std::string & text, size_t digits) {
    return text.size() == digits && text.find_first_not_of("0123456789abcdef") == std::string::npos;
}

// WEIGHTS-KEY.state, or a draft of it
bool is_state(const std::string & name, bool draft) {
    const size_t stem = OF_WEIGHTS + 1 + OF_KEY;
    const std::string end = name.substr(std::min(stem, name.size()));
    return name.size() > stem && is_hex(name.substr(0, OF_WEIGHTS), OF_WEIGHTS) &&
           name[OF_WEIGHTS] == '-' && is_hex(name.substr(OF_WEIGHTS + 1, OF_KEY), OF_KEY) &&
           (draft ? end.rfind(EXTENSION + ".", 0) == 0 : end == EXTENSION);
}

bool is_whole(const std::string & name) {
    return is_state(name, false);
}

bool is_draft(const std::string & name) {
    return is_state(name, true);
}

// A folder, as one process after the other has it.
class state_folder {
  public:
    state_folder(const std::string & path, const std::string & weights)
        : path(path), weights(weights) {}

    bool exists() const {
        return is_own_folder(path);
    }

    bool make() const {
        return exists() || (make_folder(path).empty() && exists());
    }

    // Opens a state to read it; a read one is the last to be removed. Null if there is none.
    FILE * open(const std::string & key, uint64_t & size) const {
        const std::string name = file_of(key);
        FILE * file = exists() ? open_own(name, false) : nullptr;
        std::error_code error;
        size = file != nullptr ? fs::file_size(fs::u8path(name), error) : 0;
        if (file != nullptr && (error || size == 0 || size > MOST_STATE)) {
            fclose(file);
            return nullptr;
        }
        if (file != nullptr) {
            touch_own(name);
        }
        return file;
    }

    // A new file; whoever has written to it says whether that was all.
    FILE * begin(const std::string & key, uint64_t size, std::string & draft) const {
        std::error_code error;
        if (size > MOST_STATE || !make()) {
            return nullptr;
        }
        const fs::space_info space = fs::space(fs::u8path(path), error);
        if (!error && space.available / LEFT_FREE < size) {
            return nullptr;
        }
        FILE * file = nullptr;
        for (int i = 0; file == nullptr && i < 8; i++) { // of others that write the same one
            draft = file_of(key) + "." + std::to_string(i) + DRAFT;
            remove_old_draft(fs::u8path(draft));
            file = open_own(draft, true);
        }
        return file;
    }

    bool end(const std::string & key, FILE * file, const std::string & draft, bool whole) const {
        whole = fclose(file) == 0 && whole && put_in_place(draft, file_of(key));
        std::error_code error;
        if (!whole) {
            fs::remove(fs::u8path(draft), error);
        }
        make_room(file_of(key));
        return whole;
    }

  private:
    std::string file_of(const std::string & key) const {
        return path + "/" + weights + "-" + key + EXTENSION;
    }

    // The ones that nobody has used for the longest time go.
    void make_room(const std::string & but) const {
        for (const used_file & it : files_by_use(path, is_draft)) {
            remove_old_draft(it.path);
        }
        const std::vector<used_file> all = files_by_use(path, is_whole);
        std::error_code error;
        uint64_t bytes = 0;
        for (const used_file & it : all) {
            bytes += it.size;
        }
        for (const used_file & it : all) {
            if (bytes <= MOST_BYTES) {
                break;
            }
            if (it.path != fs::u8path(but) && fs::remove(it.path, error)) {
                bytes -= it.size;
            }
        }
    }

    const std::string path, weights;
};

const char * const ENTRY = ".state";

std::string folder_path, of_weights;
file_ptr own_file; // open from before the sandbox
entry own_entry;
bool kept = false;
std::mutex one_at_a_time, writers;
std::thread & writer = *new std::thread; // may be at work when the program ends

// As yet without any content; without data where memory is short.
state_bytes room_for(size_t size) {
    auto * const bytes = new (std::nothrow) uint8_t[size];
    return { bytes, size,
             std::shared_ptr<const void>(bytes, [](void * at) { delete[](uint8_t *) at; }) };
}

#ifdef _WIN32

state_bytes ask_for(const std::string & key) {
    uint64_t size = 0;
    FILE * file = state_folder(folder_path, of_weights).open(key, size);
    if (file == nullptr) {
        return {};
    }
    const state_bytes out = room_for(size);
    const bool whole = out.data != nullptr && fread((void *)out.data, 1, size, file) == size;
    fclose(file);
    return whole ? out : state_bytes();
}

bool hand_over(const std::string & key, const std::vector<uint8_t> & bytes) {
    const state_folder folder(folder_path, of_weights);
    std::string draft;
    FILE * file = folder.begin(key, bytes.size(), draft);
    return file != nullptr &&
           folder.end(key, file, draft,
                      fwrite(bytes.data(), 1, bytes.size(), file) == bytes.size());
}

#else

int to_keeper = -1, from_keeper = -1;

bool send_file(int to, FILE * file, uint64_t size) {
    std::vector<char> part(1 << 20);
    bool fine = true; // the other end waits for so many bytes, whatever they are
    while (size > 0) {
        const size_t count = (size_t)std::min<uint64_t>(size, part.size());
        fine = fine && fread(part.data(), 1, count, file) == count;
        if (!transfer(to, true, part.data(), count)) {
            return false;
        }
        size -= count;
    }
    return true;
}

// False if the other end is gone.
bool receive_file(int from, FILE * file, uint64_t size, bool & whole) {
    std::vector<char> part(1 << 20);
    whole = file != nullptr;
    while (size > 0) {
        const size_t count = (size_t)std::min<uint64_t>(size, part.size());
        if (!transfer(from, false, part.data(), count)) {
            whole = false;
            return false;
        }
        whole = whole && fwrite(part.data(), 1, count, file) == count;
        size -= count;
    }
    return true;
}

// It goes on until the server has ended, and is in the sandbox from when there is a folder.
void keep(int from, int to) {
    const state_folder folder(folder_path, of_weights);
    bool confined = sandbox_was_off();
    std::string key;
    uint64_t size = 0; // of what is to be written; 0: to be read
    while (receive(from, key, OF_KEY) && is_hex(key, OF_KEY) && receive(from, size)) {
        if (!confined && (size > 0 ? folder.make() : folder.exists())) {
            confine_to(folder_path);
            confined = true;
        }
        bool fine = true;
        if (size == 0) {
            FILE * file = folder.open(key, size);
            fine = send(to, size) && (file == nullptr || send_file(to, file, size));
            if (file != nullptr) {
                fclose(file);
            }
        } else {
            std::string draft;
            FILE * file = folder.begin(key, size, draft);
            bool whole = false;
            fine = receive_file(from, file, size, whole);
            if (file != nullptr) {
                whole = folder.end(key, file, draft, whole);
            }
            fine = fine && send(to, (uint64_t)whole);
        }
        if (!fine) {
            break;
        }
    }
}

state_bytes ask_for(const std::string & key) {
    uint64_t size = 0;
    if (!send(to_keeper, key) || !send(to_keeper, size) || !receive(from_keeper, size) ||
        size == 0 || size > MOST_STATE) {
        return {};
    }
    const state_bytes out = room_for(size);
    if (out.data == nullptr || !transfer(from_keeper, false, (char *)out.data, size)) {
        kept = false; // what is left in the pipe is no answer to what comes next
        return {};
    }
    return out;
}

bool hand_over(const std::string & key, const std::vector<uint8_t> & bytes) {
    uint64_t written = 0;
    return send(to_keeper, key) && send(to_keeper, (uint64_t)bytes.size()) &&
           transfer(to_keeper, true, (char *)bytes.data(), bytes.size()) &&
           receive(from_keeper, written) && written != 0;
}

#endif

} // namespace

void open_own_state(const container & own) {
    const entry * member = own.find(ENTRY);
    if (member != nullptr && !member->deflated && member->size <= MOST_STATE) {
        own_file = open_file(own.path);
        own_entry = *member;
    }
}

void settle_states(const std::string & program, const std::string & weights) {
    folder_path = weights.empty() ? "" : state_folder_of(program);
    of_weights = hash_sha256_hex(weights.data(), weights.size()).substr(0, OF_WEIGHTS);
}

void start_states() {
    if (folder_path.empty()) {
        return;
    }
#ifdef _WIN32
    // At a low level of integrity the server writes where the folder says that it may.
    kept = state_folder(folder_path, of_weights).make();
    if (kept) {
        open_to_low_integrity(folder_path);
    }
#else
    kept = split_off(keep, to_keeper, from_keeper);
#endif
}

bool keeps_states() {
    return kept;
}

state_bytes own_state() {
    if (own_file == nullptr) {
        return {};
    }
    const size_t size = own_entry.size;
#ifndef _WIN32
    // It begins on a block, unless some zip tool has moved it.
    void * mapped = mmap(nullptr, size, PROT_READ, MAP_PRIVATE, fileno(own_file.get()),
                         (off_t)own_entry.offset);
    if (mapped != MAP_FAILED) {
        return { (const uint8_t *)mapped, size,
                 std::shared_ptr<const void>(mapped, [size](void * at) { munmap(at, size); }) };
    }
#endif
    const state_bytes out = room_for(size);
    const bool whole = out.data != nullptr &&
                       file_seek(own_file.get(), (int64_t)own_entry.offset) &&
                       fread((void *)out.data, 1, size, own_file.get()) == size;
    return whole ? out : state_bytes();
}

state_bytes read_state(const std::string & key) {
    if (!kept) {
        return {};
    }
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    return ask_for(key);
}

void write_state(const std::string & key, std::vector<uint8_t> && bytes,
                 const std::function<void(bool)> & then) {
    if (!kept) {
        return;
    }
    finish_states();
    const std::lock_guard<std::mutex> alone(writers);
    writer = std::thread([key, all = std::move(bytes), then] {
        bool written = false;
        {
            const std::lock_guard<std::mutex> lock(one_at_a_time);
            written = hand_over(key, all);
        }
        then(written);
    });
}

void finish_states() {
    const std::lock_guard<std::mutex> alone(writers);
    if (writer.joinable()) {
        writer.join();
    }
}

removed_states remove_states(const std::string & folder) {
    removed_states out;
    for (const used_file & it : files_by_use(folder, is_draft)) {
        remove_old_draft(it.path);
    }
    for (const used_file & it : files_by_use(folder, is_whole)) {
        std::error_code error;
        if (fs::remove(it.path, error)) {
            out.count++;
            out.bytes += it.size;
        }
    }
    return out;
}
