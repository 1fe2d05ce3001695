// What llama.cpp says to weights, without their tensors: for the builder, before it packs
// gigabytes.
#pragma once

#include <string>

// Loads all but the tensors, and makes ready to compute with them. Says what is wrong, in one line,
// and returns an exit code.
int rehearse(const std::string & name);
