// The runtime's frame for GPUs over Metal: what main.cpp does of it, without a model.
//
//   frame FILE [WEIGHTS]                        takes the trial, and lists the devices
//   frame --llamafile FILE --try-gpus [WEIGHTS] is how that starts it again
#include "container.h"
#include "ggml.h"
#include "gpu/gpu.h"
#include "gpu/room.h"
#include "system/cache.h"
#include "weights.h"

#define STB_IMAGE_IMPLEMENTATION // of it, the runtime takes what inflates
#include "stb/stb_image.h"

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>

extern "C" void bridge_start(void);

container own_container;

// What the frame asks of the rest of the program: it keeps no findings here, and loads no model.
std::string gpu_folder_of(const std::string &) {
    return "";
}
bool is_finding(const std::string &) {
    return false;
}
int32_t common_cpu_get_num_math() {
    return 1;
}
const char * llama_commit() {
    return "none";
}
void watch_gpu(ggml_backend_dev_t) {}
void say_none_is_used(const std::string & why) {
    say_no_gpu(why); // main catches it
}

int main(int argc, char ** argv) {
    bridge_start();
    const arguments words(argv + 1, argv + argc);
    if (words.size() > 2 && words[2] == TRY_GPUS) {
        own_container.path = words[1];
        return trial_of_gpus(arguments(words.begin() + 2, words.end()));
    }
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr); // of what it registers
    try {
        choose_gpus(getenv("NEEDED") != nullptr ? gpus::NEEDED : gpus::AUTO);
        const std::vector<std::string> weights(words.begin() + 1, words.end());
        try_gpus(argv[0], words[0], weights,
                 true); // a Metal over the processor is slower than that
        list_gpus();
        return 0;
    } catch (const std::exception & problem) {
        fprintf(stderr, "%s\n", problem.what());
        return 1;
    }
}
