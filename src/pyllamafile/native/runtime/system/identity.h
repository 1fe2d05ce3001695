// What this machine is, for a report about it.
#pragma once

#include <string>

// The system, its version, and the architecture.
std::string system_name();

// What its maker calls the processor; empty if nobody says.
std::string processor_name();

// Why what this system is asked for may not hold here; empty if it is the system itself.
std::string stand_in();
