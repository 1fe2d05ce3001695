// What the control groups of Linux, a container's among them, leave to this process.
#pragma once

#include <string>

// The least that its group or one above it allows, 0 if there is no limit. `limit` reads that of
// one group out of its folder; `controller` is what version 1 calls what is limited.
double least_of_groups(const std::string & controller, double (*limit)(const std::string & folder));
