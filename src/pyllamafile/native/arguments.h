// The command line before llama.cpp sees it.
#pragma once

#include <map>
#include <string>
#include <vector>

using arguments = std::vector<std::string>;

// Splits the text of `.args` into arguments: white space separates, # starts a comment, '…'
// takes everything as it is, "…" knows C's escapes, a backslash takes the next character as
// it is, and $NAME or ${NAME} outside '…' is an environment variable.
arguments parse_args_file(const std::string & text);

// Puts the user's arguments where the first bare `...` stands, or behind the file's own.
arguments merge_args(arguments own, const arguments & user);

// How many values each flag takes, out of llama.cpp's own table, so that a value that looks
// like a flag (-p --help) is not taken for one.
class flag_table {
  public:
    flag_table();
    // Index of the flag in `args`, or args.size(); of several the last, which is the one that
    // counts.
    size_t find(const arguments & args, std::initializer_list<const char *> flags) const;
    bool has(const arguments & args, std::initializer_list<const char *> flags) const;

  private:
    size_t values(const std::string & flag) const;
    std::map<std::string, int> known;
};
