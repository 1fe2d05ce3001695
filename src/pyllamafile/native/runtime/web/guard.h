#pragma once

#include "pages.h"

// The rules of this server, for it and for the processes that it starts.
void web_set_policy(const web_policy & rules);

// Those of the server that started this process.
void web_take_over_policy();
