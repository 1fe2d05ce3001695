// Upstream's own test of single operations, on the GPUs that the variables name, with the reference
// code of a runtime's kernels on the other side:
//   vulkan_operations FILE ...        test-backend-ops, with the shaders of a zip
//   vulkan_operations export ...      test-export-graph-ops: what a model computes

#include "container.h"
#include "gpu/backend.h"

#include <cstdio>
#include <exception>
#include <string>

extern container own_container; // main.cpp

// Upstream's, which are called main there.
int export_main(int argc, char ** argv);
int operations_main(int argc, char ** argv);

int main(int argc, char ** argv) {
    if (argc > 1 && std::string(argv[1]) == "export") {
        return export_main(argc - 1, argv + 1);
    }
    if (argc < 2 || !read_container(argv[1], own_container)) {
        fputs("error: no file\n", stderr);
        return 2;
    }
    try {
        ggml_backend_register(start_gpu_drivers({}, gpu_duty::COMPUTES));
    } catch (const std::exception & problem) {
        fprintf(stderr, "error: %s\n", problem.what());
        return 2;
    }
    return operations_main(argc - 1, argv + 1);
}
