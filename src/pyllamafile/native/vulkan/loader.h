// The Vulkan loader of the system, opened when it is wanted: the program starts without one.
#pragma once

#include <string>

// The library's name.
extern const char * const VULKAN_LOADER;

// Opens it, once. Says why not, in a few words; empty when it is open.
const std::string & open_vulkan_loader();
