#include "gpu/choice.h"

#include "system/system.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>

#ifdef __APPLE__
const char * const GPU_API = "metal";
const char * const GPU_DEVICE = "MTL";
#else
const char * const GPU_API = "vulkan";
const char * const GPU_DEVICE = "Vulkan";
#endif

const char * const GPU_VARIABLE = "PYLLAMAFILE_GPU";

namespace {

std::string choice() {
    const char * value = getenv(GPU_VARIABLE);
    return value != nullptr && *value != '\0' ? value : "auto";
}

bool contains(const std::string & text, const std::string & part) {
    const auto same = [](unsigned char a, unsigned char b) { return tolower(a) == tolower(b); };
    return std::search(text.begin(), text.end(), part.begin(), part.end(), same) != text.end();
}

} // namespace

void choose_gpus(gpus choice, const std::string & name) {
    set_variable(GPU_VARIABLE, choice == gpus::OFF    ? "off"
                               : choice == gpus::AUTO ? "auto"
                               : name.empty()         ? GPU_API
                                                      : name);
}

gpus chosen_gpus() {
    const std::string all = choice();
    return all == "off" ? gpus::OFF : all == "auto" ? gpus::AUTO : gpus::NEEDED;
}

bool is_chosen_gpu(const std::string & called, const std::string & upstreams) {
    const std::string name = choice();
    return chosen_gpus() != gpus::NEEDED || name == GPU_API || contains(called, name) ||
           (name.size() == upstreams.size() && contains(upstreams, name));
}

void say_no_gpu(const std::string & why) {
    if (chosen_gpus() == gpus::NEEDED) {
        throw std::runtime_error("--gpu " + choice() + ": " + why);
    }
    fprintf(stderr, "GPU: not used: %s; --gpu off silences this\n", why.c_str());
}
