// A llamafile as its own runtime sees it: the zip directory at its end.
// The format is specified in launcher/FORMAT.md.
#pragma once

#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

struct file_closer {
    void operator()(FILE * file) const {
        fclose(file);
    }
};
using file_ptr = std::unique_ptr<FILE, file_closer>;

// Opens a file for reading; the path is UTF-8 on every system. Null and errno when it fails.
file_ptr open_file(const std::string & path);

// fseek and ftell with 64-bit offsets on every system.
bool file_seek(FILE * file, int64_t offset, int whence = SEEK_SET);
int64_t file_tell(FILE * file);

struct entry {
    std::string name;
    uint64_t offset;      // of the data, from the start of the file
    uint64_t stored_size; // bytes in the file
    uint64_t size;        // bytes when inflated
    uint32_t crc;         // CRC-32 of the inflated bytes
    bool deflated;        // else stored
};

struct container {
    std::string path;
    std::vector<entry> entries; // stored and deflated ones, in the directory's order

    const entry * find(const std::string & name) const;
    // The bytes of an entry as they stand in the file; empty when they can't be read.
    std::string read(const entry & member) const;
    // The same, inflated; empty when that is not possible.
    std::string content(const entry & member) const;
    // The stored entries that are weights: `.gguf`, without the later parts of a split model.
    std::vector<const entry *> weights() const;
};

// Reads the directory of a zip. False when the file is none; every number in it is checked
// against the file's size, so that a damaged directory can't lead outside the file.
bool read_container(const std::string & path, container & out);

// Deflated bytes as they were; empty where they are of another size than said, or damaged.
std::string inflated(const char * bytes, uint64_t stored, uint64_t size);
