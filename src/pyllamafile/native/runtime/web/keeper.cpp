#include "keeper.h"

#include "../container.h"
#include "../persona.h"
#include "../system/pipes.h"
#include "../system/sandbox.h"
#include "../system/split-off.h"
#include "pages.h"

#include <hash/hash.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <mutex>

#ifdef _WIN32
#include "../system/sandbox/system.h"
#else
#include <unistd.h>
#endif

namespace fs = std::filesystem;

extern container own_container; // main.cpp

namespace {

std::string variable(const char * name) {
    const char * value = getenv(name);
    return value != nullptr ? value : "";
}

// Where a user's programs keep what they made; empty where the system doesn't say.
std::string data_folder() {
#if defined(_WIN32)
    const std::string local = variable("LOCALAPPDATA");
    return local.empty() ? "" : local + "\\pyllamafile";
#else
    const std::string home = variable("HOME");
#if defined(__APPLE__)
    return home.empty() ? "" : home + "/Library/Application Support/pyllamafile";
#else
    const std::string data = variable("XDG_DATA_HOME"); // its specification wants no relative one
    return data[0] == '/' ? data + "/pyllamafile"
           : home.empty() ? ""
                          : home + "/.local/share/pyllamafile";
#endif
#endif
}

bool is_device(const std::string & name) {
    std::string stem = name.substr(0, name.find('.'));
    for (char & c : stem) {
        c = c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c;
    }
    const bool numbered = stem.size() == 4 && isdigit((unsigned char)stem[3]) != 0;
    const std::string kind = numbered ? stem.substr(0, 3) : stem;
    return numbered ? kind == "COM" || kind == "LPT"
                    : kind == "CON" || kind == "PRN" || kind == "AUX" || kind == "NUL";
}

// What a file system takes as the name of a folder, on every system.
std::string as_folder(std::string name) {
    for (char & c : name) {
        if ((unsigned char)c < 0x20 || c == 0x7f || strchr("<>:\"/\\|?*", c) != nullptr) {
            c = '_';
        }
    }
    const size_t most = 100; // bytes
    if (name.size() > most) {
        size_t end = most;
        while (end > 0 && ((unsigned char)name[end] & 0xC0) == 0x80) { // in the middle of a letter
            end--;
        }
        name.resize(end);
    }
    while (!name.empty() && (name.back() == ' ' || name.back() == '.')) {
        name.pop_back();
    }
    // a hidden one is not found again, and Windows has devices such as CON
    return name.empty() || name[0] == '.' || is_device(name) ? "_" + name : name;
}

// Who the file says it is, or else what it is called.
std::string own_name(const std::string & model) {
    const std::string said = persona_of(own_container).name;
    const fs::path path = fs::u8path(own_container.path);
    return !said.empty() ? said : own_container.path.empty() ? model : path.stem().u8string();
}

// Whether the folder, or what it would be made in, can be written to; 0, or the system's error.
int write_error(const std::string & folder) {
#ifdef _WIN32
    (void)folder;
    return 0;
#else
    std::error_code ignored;
    fs::path at = fs::u8path(folder);
    while (!fs::exists(at, ignored) && at.has_relative_path()) {
        at = at.parent_path();
    }
    if (!fs::is_directory(at, ignored)) {
        return fs::exists(at, ignored) ? ENOTDIR : ENOENT;
    }
    return access(at.c_str(), W_OK | X_OK) == 0 ? 0 : errno;
#endif
}

enum class action : int32_t { LIST, READ, WRITE, ERASE };

struct request {
    action what = action::LIST;
    std::string id = {}, expected = {}, text = {};
};

chat_answer obey(const chat_folder & folder, const request & asked) {
    const bool named = asked.what != action::LIST;
    if (named && !is_chat_id(asked.id)) {
        return { 400, "", "no conversation has such an ID" };
    }
    if (asked.text.size() > chat_folder::LARGEST) {
        return { 413, "", "the conversation has more than 64 MiB" };
    }
    switch (asked.what) {
    case action::LIST:
        return folder.list();
    case action::READ:
        return folder.read(asked.id);
    case action::WRITE:
        return folder.write(asked.id, asked.expected, asked.text);
    case action::ERASE:
        return folder.erase(asked.id);
    }
    return { 400, "", "" };
}

std::string folder_path;
std::mutex one_at_a_time;

#ifdef _WIN32

chat_answer ask(const request & asked) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    return obey(chat_folder(folder_path), asked);
}

#else

int to_keeper = -1, from_keeper = -1;

const uint64_t SHORT = 1024; // bytes
const uint64_t LONG = chat_folder::LARGEST + SHORT;

// It goes on until the server has ended, and is in the sandbox from when there is a folder.
void keep(int from, int to) {
    const chat_folder folder(folder_path);
    bool confined = sandbox_was_off();
    request asked;
    while (receive(from, asked.what) && receive(from, asked.id, SHORT) &&
           receive(from, asked.expected, SHORT) && receive(from, asked.text, LONG)) {
        if (!confined && (asked.what == action::WRITE ? folder.make().empty() : folder.exists())) {
            confine_to(folder_path);
            confined = true;
        }
        const chat_answer answer = obey(folder, asked);
        if (!send(to, (int32_t)answer.status) || !send(to, answer.version) ||
            !send(to, answer.body)) {
            break;
        }
    }
}

chat_answer ask(const request & asked) {
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    chat_answer answer;
    int32_t status = 0;
    if (!send(to_keeper, asked.what) || !send(to_keeper, asked.id) ||
        !send(to_keeper, asked.expected) || !send(to_keeper, asked.text) ||
        !receive(from_keeper, status) || !receive(from_keeper, answer.version, SHORT) ||
        !receive(from_keeper, answer.body, LONG)) {
        return { 500, "", "the process that keeps conversations is gone" };
    }
    answer.status = status;
    return answer;
}

#endif

void note(const std::string & why) {
    fprintf(stderr, "note: the browser keeps the conversations: %s\n", why.c_str());
}

} // namespace

chats_place settle_chats(arguments & args, const flag_table & flags,
                         const std::vector<std::string> & listens, const std::string & model) {
    const flag_table::names KEEP = { "--chats" }, LEAVE = { "--no-chats" };
    if (flags.take(args, KEEP, origin::file)) {
        fputs("note: .args of this file may not say where conversations are kept; to keep them in "
              "another folder, give --chats yourself\n",
              stderr);
    }
    const size_t given = flags.find(args, KEEP), left = flags.find(args, LEAVE);
    const bool wanted = given < args.size() && (left == args.size() || left < given);
    const bool unwanted = left < args.size() && !wanted;
    std::string folder = wanted && given + 1 < args.size() ? args[given + 1] : "";
    flags.take(args, KEEP);
    flags.take(args, LEAVE);
    const bool local = web_is_local(listens);
    if (unwanted || (!wanted && !local)) {
        return {};
    }
    if (!wanted) {
        const std::string data = data_folder();
        if (data.empty()) {
            return { "", false, "the system names no folder for data; --chats FOLDER does" };
        }
        folder = (fs::u8path(data) / fs::u8path(as_folder(own_name(model)))).u8string();
    } else if (folder.empty()) {
        refuse("--chats", "--chats needs a value: a folder");
    }
    folder = fs::absolute(fs::u8path(folder)).lexically_normal().u8string();
    while (folder.size() > 1 && (folder.back() == '/' || folder.back() == '\\')) {
        folder.pop_back();
    }
    const int error = write_error(folder);
    if (error != 0 && wanted) {
        refuse("--chats", "--chats " + folder + ": " + strerror(error));
    }
    if (error != 0) {
        return { "", false, folder + ": " + strerror(error) };
    }
    return { folder, wanted, "" };
}

void start_keeper(const chats_place & place) {
    if (!place.wrong.empty()) {
        note(place.wrong);
    }
    if (place.folder.empty()) {
        return;
    }
    folder_path = place.folder;
#ifdef _WIN32
    // At a low level of integrity the server writes where the folder says that it may.
    const std::string wrong = chat_folder(folder_path).make();
    if (!wrong.empty()) {
        note(wrong);
        folder_path.clear();
        return;
    }
    open_to_low_integrity(folder_path);
#else
    if (!split_off(keep, to_keeper, from_keeper)) {
        note(std::string("no process keeps them: ") + strerror(errno));
        folder_path.clear();
    }
#endif
}

bool keeps_chats() {
    return !folder_path.empty();
}

std::string chats_name() {
    return hash_sha256_hex(folder_path.data(), folder_path.size()).substr(0, 16);
}

chat_answer list_chats() {
    return ask({ action::LIST });
}

chat_answer read_chat(const std::string & id) {
    return ask({ action::READ, id });
}

chat_answer write_chat(const std::string & id, const std::string & expected,
                       const std::string & text) {
    return ask({ action::WRITE, id, expected, text });
}

chat_answer erase_chat(const std::string & id) {
    return ask({ action::ERASE, id });
}
