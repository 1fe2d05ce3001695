// The flags of llama.cpp's tools, out of its own table.
#pragma once

#include "arguments.h"

#include <initializer_list>
#include <map>
#include <optional>
#include <set>

// Knows how many values each flag takes, so that a value that looks like a flag (-p --help) is not
// taken for one, and which tools know it.
class flag_table {
  public:
    using names = std::initializer_list<const char *>;

    flag_table() = default;
    // `ours`: the flags that we add for every tool, and how many values each takes.
    explicit flag_table(const std::map<std::string, size_t> & ours);
    // Spells flags as llama.cpp's table does: --lora_scaled is --lora-scaled.
    void spell(arguments & args) const;
    // Index of the flag in `args`, or args.size(); of several the last, which is the one that
    // counts. With an origin only those that came from there.
    size_t find(const arguments & args, names flags, std::optional<origin> from = {}) const;
    bool has(const arguments & args, names flags, std::optional<origin> from = {}) const;
    // What is said behind the last of them, or else by a variable, or otherwise.
    std::string value(const arguments & args, names flags, const char * variable,
                      const std::string & otherwise = "") const;
    // Takes every occurrence of a flag out, with its values; says whether there was one.
    bool take(arguments & args, names flags, std::optional<origin> from = {}) const;
    // Takes out what only other tools know, of what `.args` say.
    void leave_to_others(arguments & args, int tool) const;
    // Refuses the first word in `args` that a tool would not understand, and the variables that it
    // would not; a whole number that ends in k is a multiple of 1024, and is written out.
    // Without `files` it is all the same whether there are the files that are named.
    void check(arguments & args, int tool, bool files = true) const;
    // Whether a tool has a flag.
    bool knows(int tool, const std::string & name) const;
    // How many values a flag takes; 0 for what is none.
    size_t values(const std::string & name) const;
    // Whether its value is the name of a file or a folder, or several.
    bool names_file(const std::string & name) const;
    // Those flags that a variable may stand for, with its name.
    std::map<std::string, std::string> variables_for_files() const;

  private:
    struct flag {
        size_t values;
        std::set<int> tools; // llama_example; empty for ours
        bool file = false;   // its value is the name of one
        std::string variable = {};
    };
    const flag * look_up(const std::string & name) const;
    std::map<std::string, flag> known;
};
