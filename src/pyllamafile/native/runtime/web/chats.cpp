#include "chats.h"

#include "../system/files.h"

#include <hash/hash.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <vector>

namespace fs = std::filesystem;

namespace {

const std::string EXTENSION = ".json", DRAFT = ".draft";

// What a file of ours begins with, in front of a version and what else is in the object.
const std::string HEAD = "{\"version\":\"";
const size_t DIGITS = 16;                            // of a version
const size_t MOST_BYTES = chat_folder::LARGEST + 64; // of a file

chat_answer refuse(int status, const std::string & why) {
    return { status, "", why };
}

// What a system says that can't write.
chat_answer failed(int error) {
    const bool full = error == ENOSPC || error == EFBIG
#ifdef EDQUOT
                      || error == EDQUOT
#endif
        ;
    return refuse(full ? 507 : 500,
                  std::string("the conversation can't be written: ") + strerror(error));
}

std::string random_digits() {
    static const char HEX[] = "0123456789abcdef";
    std::random_device random;
    std::string out;
    while (out.size() < DIGITS) {
        out += HEX[random() % 16];
    }
    return out;
}

// As much of a file as `most` bytes; false where there is no such file.
bool read_file(const std::string & path, size_t most, std::string & out) {
    FILE * file = open_own(path, false);
    if (file == nullptr) {
        return false;
    }
    out.clear();
    std::vector<char> buffer(std::min<size_t>(most, 1u << 16));
    for (size_t count;
         out.size() < most &&
         (count = fread(buffer.data(), 1, std::min(buffer.size(), most - out.size()), file)) > 0;) {
        out.append(buffer.data(), count);
    }
    const bool fine = ferror(file) == 0;
    fclose(file);
    return fine;
}

// Of a file that somebody else put there, the version is made of what is in it.
std::string version_of(const std::string & path) {
    std::string text;
    if (!read_file(path, HEAD.size() + DIGITS + 1, text)) {
        return "";
    }
    const std::string digits = text.substr(std::min(HEAD.size(), text.size()), DIGITS);
    if (text.compare(0, HEAD.size(), HEAD) == 0 && digits.size() == DIGITS && text.back() == '"' &&
        digits.find_first_not_of("0123456789abcdef") == std::string::npos) {
        return digits;
    }
    return read_file(path, MOST_BYTES, text)
               ? hash_sha256_hex(text.data(), text.size()).substr(0, DIGITS)
               : "";
}

bool ends_with(const std::string & text, const std::string & end) {
    return text.size() > end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// 0, or why not.
int write_draft(const std::string & draft, const std::string & head, const std::string & text) {
    FILE * file = open_own(draft, true);
    if (file == nullptr) {
        return errno;
    }
    errno = 0;
    const bool whole = fwrite(head.data(), 1, head.size(), file) == head.size() &&
                       fwrite(text.data(), 1, text.size(), file) == text.size() &&
                       fflush(file) == 0 && is_on_disk(file);
    const int error = whole ? 0 : errno != 0 ? errno : EIO;
    return fclose(file) == 0 ? error : error != 0 ? error : errno;
}

} // namespace

bool is_chat_id(const std::string & id) {
    return id.size() >= 5 && id.size() <= 64 && id[0] != '-' &&
           id.find_first_not_of("0123456789abcdefghijklmnopqrstuvwxyz-") == std::string::npos;
}

std::string chat_folder::file_of(const std::string & id) const {
    return path + "/" + id + EXTENSION;
}

bool chat_folder::exists() const {
    std::error_code error;
    return fs::is_directory(fs::u8path(path), error);
}

std::string chat_folder::make() const {
    return make_folder(path);
}

chat_answer chat_folder::list() const {
    std::string out;
    size_t count = 0;
    std::error_code error;
    for (fs::directory_iterator entry(fs::u8path(path), error), end;
         !error && entry != end && count < MOST; entry.increment(error)) {
        const std::string name = entry->path().filename().u8string();
        if (name[0] == '.' && ends_with(name, DRAFT)) {
            remove_old_draft(entry->path());
        }
        const std::string id =
            ends_with(name, EXTENSION) ? name.substr(0, name.size() - EXTENSION.size()) : "";
        const std::string version = is_chat_id(id) ? version_of(file_of(id)) : "";
        if (!version.empty()) {
            out += (count++ > 0 ? "," : "") + ("{\"id\":\"" + id) + "\",\"version\":\"" + version +
                   "\"}";
        }
    }
    return { 200, "",
             std::string("{\"exists\":") + (exists() ? "true" : "false") + ",\"chats\":[" + out +
                 "]}" };
}

chat_answer chat_folder::read(const std::string & id) const {
    const std::string file = file_of(id);
    std::string text;
    const folder_lock lock(path);
    if (!read_file(file, MOST_BYTES + 1, text)) {
        return refuse(404, "there is no such conversation");
    }
    if (text.size() > MOST_BYTES) {
        return refuse(413, "the conversation has more than 64 MiB");
    }
    return { 200, version_of(file), text };
}

chat_answer chat_folder::write(const std::string & id, const std::string & expected,
                               const std::string & text) const {
    const std::string wrong = make();
    if (!wrong.empty()) {
        return refuse(500, wrong);
    }
    const folder_lock lock(path);
    const std::string file = file_of(id);
    const std::string held = version_of(file);
    if ((held.empty() ? ABSENT : held) != expected) {
        return { 412, held, "somebody else has written this conversation meanwhile" };
    }
    if (held.empty()) {
        std::error_code error;
        const auto files = std::distance(fs::directory_iterator(fs::u8path(path), error),
                                         fs::directory_iterator());
        if ((size_t)files >= MOST) {
            return refuse(507, path + " has " + std::to_string(MOST) + " files, and takes no more");
        }
    }
    const std::string version = random_digits();
    const std::string draft = path + "/." + id + "." + version + DRAFT;
    int error = write_draft(draft, HEAD + version + "\",", text.substr(text.find('{') + 1));
    if (error == 0 && !put_in_place(draft, file)) {
        error = errno;
    }
    if (error != 0) {
        std::error_code ignored;
        fs::remove(fs::u8path(draft), ignored);
        return failed(error);
    }
    settle_folder(path);
    return { 200, version, "{\"version\":\"" + version + "\"}" };
}

chat_answer chat_folder::erase(const std::string & id) const {
    std::error_code error;
    const folder_lock lock(path);
    if (!fs::remove(fs::u8path(file_of(id)), error)) {
        return error ? refuse(500, "the conversation can't be removed: " + error.message())
                     : refuse(404, "there is no such conversation");
    }
    settle_folder(path);
    return { 200, "", "{}" };
}
