// What a llamafile says of itself: its manifest (FORMAT.md, section 6).
#pragma once

#include "container.h"

#include <nlohmann/json_fwd.hpp>

#include <optional>
#include <string>

// Of a file without one, or with one that makes no sense, null. `pyllamafile verify` says what is
// wrong with it.
nlohmann::json manifest_of(const container & llamafile);

const size_t MOST_OF_PROGRAM = 1 << 28; // bytes

// A program that the file has beside the one that runs.
struct packed_program {
    int64_t offset;     // in the llamafile
    size_t packed_size; // of what is there: a gzip member, or a frame of Zstandard
    size_t size;        // of the program
    std::string sha256; // of the program
    size_t against = 0; // the size of the program that the frame was made against
};

// The program for a target, a row of `runtimes`; nothing where there is none, or what the manifest
// says makes no sense.
std::optional<packed_program> find_program(const container & llamafile, const std::string & target);

// The same of the program that the one for a target hands over to where there is a GPU, and the
// entry that it is in.
std::optional<packed_program> find_gpu_program(const container & llamafile,
                                               const std::string & target);
std::string gpu_entry(const std::string & target);

// Bytes of a file, as they stand there; empty if they can't be read, or are not so many.
std::string read_bytes(const std::string & path, int64_t offset, size_t size);
