// The shaders of a llamafile, unpacked into memory for ggml-vulkan's tables.
#pragma once

#include "container.h"

#include <string>

// What the entry is called.
extern const char * const SHADERS;

// Fills the tables, once. Says why not, in a few words; empty when they are full.
std::string fill_shaders(const container & llamafile);
