// Tries the GPUs that GGML_VK_VISIBLE_DEVICES names with the shaders of a zip:
//   vulkan_trial FILE TYPE...
// One line for each thing that was tried: device, what, the error, right or wrong.

#include "container.h"
#include "ggml-backend.h"
#include "ggml.h"
#include "loader.h"
#include "shaders.h"
#include "trial.h"

#include <cstdio>
#include <string>

#define STB_IMAGE_IMPLEMENTATION
#include "stb/stb_image.h" // container.cpp inflates with it

container own_container;

extern "C" ggml_backend_reg_t ggml_backend_vk_reg();

int main(int argc, char ** argv) {
    if (argc < 2 || !read_container(argv[1], own_container)) {
        fputs("error: no file\n", stderr);
        return 1;
    }
    for (const std::string & problem : { open_vulkan_loader(), fill_shaders(own_container) }) {
        if (!problem.empty()) {
            fprintf(stderr, "%s\n", problem.c_str());
            return 2;
        }
    }
    const ggml_backend_reg_t gpus = ggml_backend_vk_reg();
    if (gpus == nullptr) {
        fputs("no devices\n", stderr);
        return 3;
    }
    std::vector<ggml_type> types;
    for (int i = 2; i < argc; i++) {
        for (int type = 0; type < GGML_TYPE_COUNT; type++) {
            const char * name = ggml_type_name((ggml_type)type);
            if (name != nullptr && name == std::string(argv[i])) {
                types.push_back((ggml_type)type);
            }
        }
    }
    for (size_t i = 0; i < ggml_backend_reg_dev_count(gpus); i++) {
        const ggml_backend_dev_t device = ggml_backend_reg_dev_get(gpus, i);
        try_gpu(device, types, [&](const verdict & found) {
            printf("%s\t%s\t%g\t%s\n", ggml_backend_dev_name(device), found.what.c_str(),
                   found.error, found.is_right() ? "right" : "wrong");
        });
    }
    return 0;
}
