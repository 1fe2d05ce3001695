// The server with the web GUI, as somebody meets it who just started the file.
#pragma once

#include "invocation.h"

#include <functional>

// Chooses a free port unless one was asked for, says where the server listens as soon as it
// does, and opens the browser there. `run` is upstream's server and blocks until it ends.
int serve(const invocation & asked, const std::function<int(const arguments &)> & run);
