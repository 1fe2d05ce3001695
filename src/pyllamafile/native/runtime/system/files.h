// Files in folders of this program's own, which several of its processes may use at once.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

// Opens a file in such a folder, or makes a new one for this user alone. Of what somebody else put
// there, nothing but a file is opened: no link, and no pipe, which would be waited for. Null and
// errno when it fails.
FILE * open_own(const std::string & path, bool writes);

// Dates a file now, by writing what is there already: the sandbox lets nobody set a date.
void touch_own(const std::string & path);

// What was written is on the disk.
bool is_on_disk(FILE * file);

// A draft gets its name, in place of what had it. False and errno when it fails.
bool put_in_place(const std::string & draft, const std::string & path);

// Makes a folder for this user alone, and those that it is in. Returns why not, or nothing.
std::string make_folder(const std::string & path);

// Whether it is a folder of this user's that nobody else may write to: what is in others might be
// what they have made.
bool is_own_folder(const std::string & path);

// Makes such a folder where there is none. Whether there is one now; none has an empty name.
bool have_own_folder(const std::string & path);

struct used_file {
    std::filesystem::file_time_type used;
    uint64_t size; // bytes
    std::filesystem::path path;
};

// The files of a folder whose names are some of this program's; what nobody has used for the
// longest time is first.
std::vector<used_file> files_by_use(const std::string & folder,
                                    const std::function<bool(const std::string & name)> & is_ours);

// The names in a folder are on the disk.
void settle_folder(const std::string & path);

// Removes what a process that was ended left behind; another one may be writing its own at this
// moment.
void remove_old_draft(const std::filesystem::path & path);

// Two processes look and write in turn. Where a file system has no locks, they may not.
class folder_lock {
  public:
    explicit folder_lock(const std::string & folder);
    ~folder_lock();
    folder_lock(const folder_lock &) = delete;
    folder_lock & operator=(const folder_lock &) = delete;

  private:
    [[maybe_unused]] const int descriptor; // Windows locks none
};
