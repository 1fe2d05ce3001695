#pragma once

#include "../flags.h"
#include "pages.h"

// Settles which pages may use the server, and takes what only says that out of the arguments.
// Listening where other machines reach it takes a key: without one of the user's own one is made,
// put into the arguments and returned.
std::string web_settle(arguments & args, const flag_table & flags,
                       const std::vector<std::string> & listens);

// How many requests have not had the last byte of their answers yet. From web_close on, each new
// one is answered with the status 503.
int web_running();
void web_close();

// What is at this path and below it is for the server's own pages alone and, if `own_user`, for the
// programs of this user (see system/peer.h).
void web_restrict(const std::string & path, bool own_user);

// The rules of the server that started this process, one of the router's.
void web_take_over_policy();
