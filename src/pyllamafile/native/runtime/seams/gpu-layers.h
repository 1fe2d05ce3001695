// In front of llama-model.cpp and of upstream's server-context.cpp: gpu/room.cpp knows how many
// layers are on GPUs.
#pragma once

#include <string>
#include <vector>

void layers_are_on_gpus(int layers, int of);

// Of the model's layers, how many are on GPUs, and on which. The output counts as one.
struct gpu_share {
    int layers = 0, of = 0;
    std::vector<std::string> devices = {};
};

// Of the model that is loaded; that of a draft, or of another one beside it, counts no more.
gpu_share share_of_gpus();
