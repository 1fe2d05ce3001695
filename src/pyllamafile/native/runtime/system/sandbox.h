// What a process of the runtime may do on the machine, and that the system holds it to that: a
// model from a stranger that finds a fault in here gets no further than this table.
#pragma once

#include <string>
#include <vector>

// What a process is there for.
enum class duty { PRINTS, COMPUTES, SERVES, ROUTES, CONVERSES, ASKS, QUESTIONS, KEEPS, WORKS };

// Files beside its own llamafile: the ones that were named to it, or all that its user may use.
enum class files { NAMED, ALL };

enum class network {
    NONE,     // no socket at all
    LISTENS,  // on its own ports until it is ready; then it answers, and no more
    ROUTES,   // on its own ports, and connects to those that it hands out to its models
    CONNECTS, // to its own ports
    ANYWHERE, // to any server; names are looked up
};

struct permissions {
    duty what;
    const char * who;
    files reads;
    files writes;
    network net;
    bool starts; // its own program again; nobody starts another one
    bool drives; // has the driver of a GPU, where one is used: what that takes is no one else's
};

// The table. Nobody gets another process's memory, or more rights; nor executable memory, but for a
// process with a driver in it.
const permissions & permissions_of(duty what);

// What the command line has named.
struct named {
    std::vector<std::string> reads;   // files, and folders with all that is below them
    std::vector<std::string> writes;  // the same; what is not there is made, as an empty file
    std::string program;              // its own
    std::vector<int> ports;           // TCP
    std::vector<std::string> sockets; // paths that it listens on
    bool gpu = false;                 // one is used
    std::vector<std::string> drivers; // files and folders of its driver, beside the system's
};

// Must be called first, or enter_sandbox does nothing. `aloud`: it is to say what it did.
void sandbox_names(const named & names, bool aloud);

// There will be none, for this reason; nor for the processes that this one starts.
void sandbox_is_off(const std::string & why, bool aloud);

// Whether the process that started this one has none.
bool sandbox_was_off();

// Confines this process from here on, and those that it starts. Called once, while it has one
// thread: not every system can do it to several. Ends nothing if the system lacks something.
void enter_sandbox(duty what, const std::vector<int> & ports = {},
                   const std::vector<std::string> & sockets = {});

// Its weights are loaded, and its sockets are bound: takes what it needed for that.
void tighten_sandbox();

// Whether this system can hold a process to the folders that are named to it.
bool sandbox_confines_files();

// For people, in one line: "sandbox: Landlock ABI 6, seccomp", or what is missing.
std::string sandbox_line();
