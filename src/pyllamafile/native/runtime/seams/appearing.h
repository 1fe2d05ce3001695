// In front of llama-quant.cpp: a file gets its name when it is complete (system/appearing.cpp).
#pragma once

#include <string>
#include <vector>

class appearing_files {
  public:
    appearing_files() = default;
    appearing_files(const appearing_files &) = delete;
    appearing_files & operator=(const appearing_files &) = delete;

    // Removes what has no name yet. Its streams are closed by then.
    ~appearing_files();

    // Where to write what is to have this name: beside it, or there if it names no file, but a
    // device or a pipe.
    std::string draft_of(const std::string & path);

    // All that was written gets its name. Throws std::runtime_error where that fails.
    void appear();

    // Throws std::runtime_error if somebody has interrupted it, where nothing ends it before.
    void go_on() const;

  private:
    struct file {
        std::string draft, path;
    };
    std::vector<file> files;
};
