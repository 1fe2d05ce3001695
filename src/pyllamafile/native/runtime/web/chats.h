// The folder that conversations are kept in: a JSON file for each, which nobody ever sees half of.
#pragma once

#include <cstdint>
#include <string>

// What came of it, as HTTP says it.
struct chat_answer {
    int status = 200;
    std::string version = {}; // of the conversation; another one whenever it is written
    std::string body = {};    // JSON; of an error, what is wrong, in one line
};

class chat_folder {
  public:
    static const uint64_t LARGEST = 64u << 20; // bytes of a conversation
    static const size_t MOST = 10000;          // conversations

    // What a request may want to hold for a conversation before it is written, beside a version.
    static constexpr const char * ABSENT = "absent";

    // `path` is UTF-8. The folder need not be there.
    explicit chat_folder(const std::string & path) : path(path) {}

    bool exists() const;

    // Makes the folder and those that it is in, for this user alone. Returns what is wrong, or
    // nothing.
    std::string make() const;

    // All versions: {"exists": true, "chats": [{"id": …, "version": …}, …]}.
    chat_answer list() const;
    chat_answer read(const std::string & id) const;

    // Writes the text of a JSON object, if the conversation is of the version `expected` still.
    chat_answer write(const std::string & id, const std::string & expected,
                      const std::string & text) const;
    chat_answer erase(const std::string & id) const;

  private:
    std::string file_of(const std::string & id) const;

    const std::string path;
};

// Whether it may name a conversation, and so a file: 5 to 64 of the characters of a UUID, or of
// what upstream's GUI makes where there is none.
bool is_chat_id(const std::string & id);
