// Models by name: FILE.gguf, FILE.llamafile, or FILE.llamafile@MEMBER.gguf.
#pragma once

#include <cstdint>
#include <string>

struct weights {
    std::string path;   // the file that holds them
    std::string member; // the entry's name, empty when the file is a bare GGUF
    uint64_t offset;    // where the GGUF starts in the file
    uint64_t size;      // its bytes

    // What to hand to llama.cpp so that it finds the same bytes, and the parts of a split
    // model beside them.
    std::string name() const {
        return member.empty() ? path : path + "@" + member;
    }
};

// Finds the weights that a name means and walks through their header. Returns what is wrong,
// in one line, or an empty string; the header is checked so that a damaged file is refused
// here, with a reason, and not somewhere deep inside llama.cpp.
std::string find_weights(const std::string & name, weights & out);
