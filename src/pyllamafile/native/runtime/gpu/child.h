// A process that somebody else's code may end, or hold up. Each system has a file of its own.
// prove/child.h, which reads by threads, is not for this: the sandbox is entered before there is a
// second thread.
#pragma once

#include <string>
#include <vector>

// Bytes: what it may say, the rest is lost, and what is read of that before somebody looks at the
// clock.
const size_t MOST_SAID = 1 << 20;
const size_t MOST_AT_ONCE = 1 << 16;

struct child_end {
    bool late = false; // it was ended, for its time was over
    std::string crash; // what the system ended it with: "SIGSEGV"
    int code = 0;      // its exit status, if it ended by itself
    std::string said;  // on standard output
};

// Starts a program with its arguments, and waits for so many seconds. It has nothing to read, and
// what it says on standard error is lost. Throws std::system_error where it can't be started.
child_end run_for(int seconds, const std::vector<std::string> & words);

// For such a process: if the one that has started it ends first, the system ends this one, where it
// can.
void end_with_parent();
