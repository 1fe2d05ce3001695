#pragma once

#include <string>
#include <vector>

// The addresses at which other machines may reach this one, in numbers; those of IPv6 only where
// there is no other.
std::vector<std::string> machine_addresses();
