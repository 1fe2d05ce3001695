// GPUs that have too little memory for what was to go there: less goes there, and nothing ends.
#pragma once

#include "ggml-backend.h"
#include "seams/gpu-layers.h"

// From here on this device fails where its driver throws, and it is known that it has.
void watch_gpu(ggml_backend_dev_t device);
