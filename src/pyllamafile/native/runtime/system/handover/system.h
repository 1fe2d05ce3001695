// What each system does in its own way when a program is unpacked and handed over to.
#pragma once

#include "system/handover/handover.h"

#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

// Behind the digest that a program is named by.
extern const char * const END_OF_PROGRAM;

// Whether the processor is another than this program was made for.
bool is_emulated();

// Where a user's programs are kept, by the variables that are set; and where they are if there is
// no such place, in folders in which others have theirs. On the way to these there are no links.
using variables = std::filesystem::path (*)(const std::string & name);
std::vector<std::filesystem::path> usual_places(variables set);
std::vector<std::filesystem::path> shared_places(variables set);

// The folder `run` of a place, without links on the way to it, if nobody but this user can have put
// something into it, or another one where it is; else an empty path.
std::filesystem::path trusted_run(const std::filesystem::path & place);

// What was written becomes a program; whether one with this digest is as it then was.
bool make_program(const std::filesystem::path & draft);
bool is_program(const std::filesystem::path & path, const std::string & sha256, uint64_t size);

// What a program for GPUs takes to start and this machine lacks, as far as can be seen without
// unpacking it: "it takes ..."; empty where it may start.
std::string no_gpu_program_because();

// Why this machine starts no such program, in whatever place it is; empty where that is not known.
std::string why_no_program_starts(const std::system_error & error);

// Whether it started none because of the place where that is.
bool lets_none_run(const std::system_error & error);

// While there is one, nothing but SIGKILL ends this process.
class signals_wait {
  public:
    signals_wait();
    ~signals_wait();
    signals_wait(const signals_wait &) = delete;
    signals_wait & operator=(const signals_wait &) = delete;
};

// Returns the exit code of a child, or not at all. Throws std::runtime_error, as put_unpacked does.
int become(const std::filesystem::path & program, const started & here);
