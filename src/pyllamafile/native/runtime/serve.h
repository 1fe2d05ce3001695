// The server with the web GUI, as somebody meets it who just started the file.
#pragma once

#include "flags.h"

#include <functional>
#include <string>

// Chooses a free port unless one was asked for, says where the server listens as soon as it
// does, and opens the browser there. `several`: it is the router. `run` is upstream's server and
// blocks until it ends.
int serve(arguments args, const flag_table & flags, const std::string & model, bool browser,
          bool several, const std::function<int(const arguments &)> & run);
