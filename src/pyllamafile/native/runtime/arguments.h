// The command line before llama.cpp sees it.
#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

using arguments = std::vector<std::string>;

// Splits the text of `.args` into arguments: white space separates, # starts a comment, '…'
// takes everything as it is, "…" knows C's escapes, a backslash takes the next character as
// it is, and $NAME or ${NAME} outside '…' is an environment variable.
arguments parse_args_file(const std::string & text);

// Puts the user's arguments where the first bare `...` stands, or behind the file's own.
arguments merge_args(arguments own, const arguments & user);

// The flags of llama.cpp's tools, out of its own table: how many values each takes, so that a
// value that looks like a flag (-p --help) is not taken for one, and which tools know it.
class flag_table {
  public:
    // `ours`: the flags that we add for every tool, and how many values each takes.
    explicit flag_table(const std::map<std::string, size_t> & ours);
    // Makes `name` another name of a flag of theirs.
    void tie(const std::string & name, const std::string & theirs);
    // Index of the flag in `args`, or args.size(); of several the last, which is the one that
    // counts.
    size_t find(const arguments & args, std::initializer_list<const char *> flags) const;
    bool has(const arguments & args, std::initializer_list<const char *> flags) const;
    // Takes every occurrence of a flag out, with its values; says whether there was one.
    bool take(arguments & args, std::initializer_list<const char *> flags) const;
    // `args` without the flags that only other tools know.
    arguments meant_for(int tool, const arguments & args) const;
    // What a tool would not understand in `args`, in one line; empty if it understands all.
    std::string problem(int tool, const arguments & args) const;
    // How many values a flag takes; 0 for what is none.
    size_t values(const std::string & name) const;

  private:
    struct flag {
        size_t values;
        std::set<int> tools; // llama_example; empty for ours
    };
    const flag * look_up(const std::string & name) const;
    std::map<std::string, flag> known;
};
