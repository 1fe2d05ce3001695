// What a llamafile says of itself: its manifest (FORMAT.md, section 6).
#pragma once

#include "container.h"

#include <nlohmann/json_fwd.hpp>

#include <optional>
#include <string>

// Of a file without one, or with one that makes no sense, null. `pyllamafile verify` says what is
// wrong with it.
nlohmann::json manifest_of(const container & llamafile);

// A row of `runtimes`: a program that the file has for other machines.
struct packed_program {
    int64_t offset;     // in the llamafile
    size_t packed_size; // of the gzip member there
    size_t size;        // of the program
    std::string sha256; // of the program
};

// The program for a target; nothing where there is none, or what the manifest says makes no sense.
std::optional<packed_program> find_program(const container & llamafile, const std::string & target);

// Bytes of the llamafile, as they stand there; empty if they can't be read, or are not so many.
std::string read_bytes(const container & llamafile, int64_t offset, size_t size);
