// --gpu-trial: what the GPUs of this machine compute, and how fast, as a report to send in.
#pragma once

#include "arguments.h"
#include "container.h"

#include <string>

// What starts the process in which drivers are, behind --llamafile FILE.
inline constexpr char GPU_PRODUCTS[] = "--gpu-products";

// Tries them in processes of their own, and prints. `user`: this word, and whatever goes with the
// file's own weights, like -m. 0 where a GPU is used and right, else 1.
int report_gpus(const container & file, const std::string & program, const arguments & user);

// That process: 0 where all that a device can is right.
int print_products_of_gpus();
