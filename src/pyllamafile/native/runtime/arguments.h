// The words of a command line: who gave each of them, and how `.args` are split into them.
#pragma once

#include "container.h"

#include <string>
#include <vector>

// Who gave a word: somebody at the command line, `.args` in the file, or the runtime itself.
enum class origin { user, file, runtime };

// A word with its origin, which it keeps when its text becomes another.
struct word : std::string {
    word(std::string text = {}, origin from = origin::runtime)
        : std::string(std::move(text)), from(from) {}
    word(const char * text) : word(std::string(text)) {}

    word & operator=(const std::string & text) {
        assign(text);
        return *this;
    }
    word & operator=(const char * text) {
        assign(text);
        return *this;
    }

    origin from;
};

using arguments = std::vector<word>;

// Ends the start: throws std::runtime_error, which says so if the word is in `.args`.
[[noreturn]] void refuse(const word & about, const std::string & wrong);

// A flag as llama.cpp's table spells it: it takes --lora_scaled for --lora-scaled.
std::string spelled(std::string flag);

// Splits the text of `.args` into arguments: white space separates, # starts a comment, '…'
// takes everything as it is, "…" knows C's escapes, a backslash takes the next character as
// it is, and $NAME or ${NAME} outside '…' is an environment variable.
arguments parse_args_file(const std::string & text);

// What the `.args` of a llamafile say; nothing where there are none. Throws std::runtime_error when
// they can't be read or are larger than 1 MiB, which is llamafile.py's limit as well.
arguments arguments_in(const container & zip);

// Puts the user's arguments where the first bare `...` stands, or behind the file's own.
arguments merge_args(arguments own, const arguments & user);
