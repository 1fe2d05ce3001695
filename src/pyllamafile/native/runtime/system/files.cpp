#include "system/files.h"

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#ifdef _WIN32
#include "system/wide.h"

#include <io.h>
#else
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#endif

namespace fs = std::filesystem;

#ifdef _WIN32

FILE * open_own(const std::string & path, bool writes) {
    return _wfopen(wide(path).c_str(), writes ? L"wbx" : L"rb");
}

bool is_on_disk(FILE * file) {
    return _commit(_fileno(file)) == 0;
}

bool put_in_place(const std::string & draft, const std::string & path) {
    if (MoveFileExW(wide(draft).c_str(), wide(path).c_str(),
                    MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) {
        return true;
    }
    errno = GetLastError() == ERROR_DISK_FULL ? ENOSPC : EACCES;
    return false;
}

static FILE * open_to_change(const std::string & path) {
    return _wfopen(wide(path).c_str(), L"r+b");
}

static bool make_one(const std::string & path) {
    return CreateDirectoryW(wide(path).c_str(), nullptr) || GetLastError() == ERROR_ALREADY_EXISTS;
}

bool is_own_folder(const std::string & path) {
    std::error_code error;
    return fs::is_directory(fs::u8path(path), error);
}

void settle_folder(const std::string &) {}

// There is one process on Windows that uses such a folder, and it lets one request in at a time.
folder_lock::folder_lock(const std::string &) : descriptor(-1) {}

folder_lock::~folder_lock() {}

#else

FILE * open_own(const std::string & path, bool writes) {
    const int flags = writes ? O_WRONLY | O_CREAT | O_EXCL : O_RDONLY | O_NONBLOCK;
    const int file = open(path.c_str(), flags | O_CLOEXEC | O_NOFOLLOW, 0600);
    struct stat status;
    if (file >= 0 && (fstat(file, &status) != 0 || !S_ISREG(status.st_mode))) {
        close(file);
        return nullptr;
    }
    return file < 0 ? nullptr : fdopen(file, writes ? "wb" : "rb");
}

bool is_on_disk(FILE * file) {
    return fsync(fileno(file)) == 0;
}

bool put_in_place(const std::string & draft, const std::string & path) {
    return rename(draft.c_str(), path.c_str()) == 0;
}

static FILE * open_to_change(const std::string & path) {
    const int file = open(path.c_str(), O_RDWR | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    return file < 0 ? nullptr : fdopen(file, "r+b");
}

static bool make_one(const std::string & path) {
    return mkdir(path.c_str(), 0700) == 0 || errno == EEXIST;
}

bool is_own_folder(const std::string & path) {
    struct stat it;
    return lstat(path.c_str(), &it) == 0 && S_ISDIR(it.st_mode) && it.st_uid == geteuid() &&
           (it.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

void settle_folder(const std::string & path) {
    const int descriptor = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (descriptor >= 0) {
        fsync(descriptor);
        close(descriptor);
    }
}

folder_lock::folder_lock(const std::string & folder)
    : descriptor(open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC)) {
    while (descriptor >= 0 && flock(descriptor, LOCK_EX) != 0 && errno == EINTR) {
    }
}

folder_lock::~folder_lock() {
    if (descriptor >= 0) {
        close(descriptor);
    }
}

#endif

void touch_own(const std::string & path) {
    FILE * file = open_to_change(path);
    const int first = file != nullptr ? fgetc(file) : EOF;
    if (first != EOF && fseek(file, 0, SEEK_SET) == 0) {
        fputc(first, file);
    }
    if (file != nullptr) {
        fclose(file);
    }
}

std::string make_folder(const std::string & path) {
    int error = ENOTDIR;
    std::error_code ignored;
    for (size_t at = 0; at != std::string::npos;) {
        at = path.find_first_of("/\\", at + 1);
        const std::string part = path.substr(0, at);
        if (!fs::exists(fs::u8path(part), ignored) && !make_one(part)) {
            error = errno;
        }
    }
    return fs::is_directory(fs::u8path(path), ignored)
               ? ""
               : path + " can't be made: " + strerror(error);
}

bool have_own_folder(const std::string & path) {
    return !path.empty() &&
           (is_own_folder(path) || (make_folder(path).empty() && is_own_folder(path)));
}

std::vector<used_file> files_by_use(const std::string & folder,
                                    const std::function<bool(const std::string & name)> & is_ours) {
    std::vector<used_file> out;
    std::error_code error;
    for (fs::directory_iterator entry(fs::u8path(folder), error), last; !error && entry != last;
         entry.increment(error)) {
        std::error_code unknown;
        if (is_ours(entry->path().filename().u8string()) && entry->is_regular_file(unknown)) {
            const used_file it = { entry->last_write_time(unknown), entry->file_size(unknown),
                                   entry->path() };
            if (!unknown) {
                out.push_back(it);
            }
        }
    }
    std::sort(out.begin(), out.end(),
              [](const used_file & a, const used_file & b) { return a.used < b.used; });
    return out;
}

void remove_old_draft(const fs::path & path) {
    std::error_code error;
    const auto written = fs::last_write_time(path, error);
    if (!error && fs::file_time_type::clock::now() - written > std::chrono::hours(1)) {
        fs::remove(path, error);
    }
}
