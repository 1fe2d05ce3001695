// Says how far the loading of a model is, where other machines are sent parts of it.
#pragma once

#include <cstddef>

void say_loaded(size_t bytes, size_t of);
