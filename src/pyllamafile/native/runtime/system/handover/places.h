// Where programs that a file unpacks are kept, and what is believed there: FORMAT.md, section 2.2,
// which the launch script keeps to as well.
#pragma once

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

// Those that don't lie where every user may write; the best is first. Each may have a folder `run`,
// and others beside it.
std::vector<std::filesystem::path> places_of_user();

// The program with this digest, in a place that is trusted; empty if there is none.
std::filesystem::path find_unpacked(const std::string & sha256, uint64_t size);

// The system starts no such program, in whatever place it is.
struct does_not_run : std::runtime_error {
    explicit does_not_run(const std::string & why)
        : std::runtime_error("does not run here: " + why) {}
};

// Writes it to the first place that takes it and lets it run. However many do so at once, and
// however they end, nobody sees half of it. Throws std::runtime_error that goes on with "the
// program ...".
std::filesystem::path put_unpacked(const std::string & sha256, const std::string & bytes);
