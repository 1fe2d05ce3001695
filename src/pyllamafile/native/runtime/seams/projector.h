// Included before upstream's clip.cpp, which opens a projector a second time, as a file by its
// path, to read tensors from places that count from the file's start. So it needs the file alone.
#pragma once

#include "clip-impl.h"

#include <string>

std::string file_of_weights(const std::string & name); // weights.cpp

static std::ifstream open_projector(const std::string & name) {
    return open_ifstream_binary(file_of_weights(name));
}

#define open_ifstream_binary open_projector
