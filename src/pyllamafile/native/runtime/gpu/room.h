// GPUs that have too little memory for what was to go there: less goes there, and nothing ends.
#pragma once

#include "ggml-backend.h"
#include "seams/gpu-layers.h"

#include <string>

// From here on this device fails where its driver throws, and it is known that it has.
void watch_gpu(ggml_backend_dev_t device);

// Says that the processor computes, or ends this process where a GPU is needed, for nobody catches
// here what llama.cpp's tools don't know.
void say_none_is_used(const std::string & why);
