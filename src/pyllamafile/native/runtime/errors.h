// What ends the program is said in one line. Where weights can't be loaded, llama.cpp logs the
// reason and then every consequence of it, under the names of its functions; where it finds an
// assertion wrong, it aborts.
#pragma once

#include <string>

// Of what is logged as an error, the first is said, as all of ours are, and the rest is not.
// `what`: what to call the weights.
void say_the_first_error_of(const std::string & what);

// The weights are loaded: from here on, errors are logged as they come.
void say_all_errors();

// What is being done may fail, and is then done in another way: until they are forgotten, errors
// are not said, unless all that happens is logged.
void hold_errors();
void forget_errors();

// Whether this line of the log has been taken care of. For log.cpp.
bool error_is_said(const char * line);

// Whether one was said, and there is no need for another.
bool an_error_was_said();

// Ends this process in the middle of what it does, with one line.
[[noreturn]] void end_with_error(const std::string & why);

// A failed assertion of llama.cpp's is an error like any other: a line, and exit code 1.
void end_without_abort();
