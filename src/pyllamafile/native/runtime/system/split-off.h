// A process that is split off from a server to keep files for it, because the server itself may
// write none. The two talk through pipes (pipes.h).
#pragma once

#ifndef _WIN32

#include <functional>
#include <string>

// fork(2) for a process that goes on as this one would. The log's thread, if there is one already,
// would be in one of the two alone; the other would say nothing, and wait for it at its end.
int fork_with_log();

// Splits it off: it answers what comes from one descriptor to the other, until the server is gone.
// `to` and `from` are the server's ends. False, with errno, if there is no such process.
bool split_off(const std::function<void(int from, int to)> & answers, int & to, int & from);

// What such a process does before it uses its folder: from then on it can use nothing else.
void confine_to(const std::string & folder);

#endif
