// How fast this machine computes with weights, which says how many of a model's layers it gets.
#pragma once

#include "ggml-backend.h"

#include <string>

// The processor, with as many threads as a model would have. Null if it can't be had.
ggml_backend_t processor(int threads);

// A speed as it is kept and compared: the nearest of 1, 1.5, 2, 3, 4, 6, 8 and so on, for what is
// measured changes a little every time, and the shares must not. 0 of what is 0 or less.
double rounded_speed(double measured);

// Bytes of weights of a type, in GB, that a product with one token takes in a second, rounded; 0 if
// that can't be measured. It takes a third of a second, once: what was measured is kept in
// `folder`, unless that is empty. `type` is one that ggml names so.
double speed_of(const std::string & type, ggml_backend_t backend, int threads,
                const std::string & folder);
