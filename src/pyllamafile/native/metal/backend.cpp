#include "gpu/backend.h"

#include "ggml-metal.h"
#include "system/identity.h"
#include "texts.h"

#include <climits>
#include <stdexcept>
#include <sys/stat.h>
#include <unistd.h>

// Metal comes with macOS.
std::string gpu_drivers() {
    return "Darwin " + system_name();
}

int number_of_gpu(size_t device) {
    return (int)device;
}

// A Mac has one, whatever its number. Upstream takes its kernels' texts as soon as it lists it.
ggml_backend_reg_t start_gpu_drivers(const std::vector<int> &, gpu_duty) {
    if (!unpack_kernel_texts()) {
        throw std::runtime_error("its kernels are damaged");
    }
    const ggml_backend_reg_t out = ggml_backend_metal_reg();
    // Where macOS has no device for it, upstream has one without a name.
    if (*ggml_backend_dev_description(ggml_backend_reg_dev_get(out, 0)) == 0) {
        throw std::runtime_error("macOS offers no device for Metal");
    }
    return out;
}

// macOS compiles the kernels in a process of its own, and keeps them in a folder of the program, by
// the identifier in Info.plist. Where it can't write there, it compiles them at each start.
void name_gpu_drivers(named & names) {
    names.gpu = true;
#ifdef __APPLE__
    char caches[PATH_MAX];
    const size_t size = confstr(_CS_DARWIN_USER_CACHE_DIR, caches, sizeof(caches));
    if (size > 0 && size <= sizeof(caches)) {
        names.writes.push_back(std::string(caches) + "/pyllamafile");
        mkdir(names.writes.back().c_str(), 0700);
    }
#endif
}
