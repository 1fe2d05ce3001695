#include "loader.h"

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif

namespace {

#if defined(_WIN32)
const char * const LIBRARIES[] = { "vulkan-1.dll" };
void * open_library(const char * name) {
    return (void *)LoadLibraryExA(name, nullptr, LOAD_LIBRARY_SEARCH_SYSTEM32);
}
void * symbol(void * library, const char * name) {
    return (void *)GetProcAddress((HMODULE)library, name);
}
#else
const char * const LIBRARIES[] = {
    "libvulkan.so.1",
    "libvulkan.so",
#ifdef __NetBSD__ // whose linker looks nowhere else than in /usr/lib
    "/usr/pkg/lib/libvulkan.so.1",
    "/usr/X11R7/lib/libvulkan.so.1",
#endif
};
void * open_library(const char * name) {
    return dlopen(name, RTLD_NOW | RTLD_LOCAL);
}
void * symbol(void * library, const char * name) {
    return dlsym(library, name);
}
#endif

// What ggml-vulkan calls by name; it asks the first two for all else.
struct {
    PFN_vkGetInstanceProcAddr of_instance;
    PFN_vkGetDeviceProcAddr of_device;
    PFN_vkGetPhysicalDeviceFeatures2 features;
    PFN_vkCmdCopyBuffer copy;
} loader;

template <typename function> bool find(void * library, const char * name, function & out) {
    out = (function)symbol(library, name);
    return out != nullptr;
}

std::string opened() {
    void * library = nullptr;
    for (const char * name : LIBRARIES) {
        library = library != nullptr ? library : open_library(name);
    }
    if (library == nullptr) {
        return std::string("there is no Vulkan loader (") + VULKAN_LOADER + ")";
    }
    const bool complete = find(library, "vkGetInstanceProcAddr", loader.of_instance) &&
                          find(library, "vkGetDeviceProcAddr", loader.of_device) &&
                          find(library, "vkGetPhysicalDeviceFeatures2", loader.features) &&
                          find(library, "vkCmdCopyBuffer", loader.copy);
    return complete ? "" : "the Vulkan loader is older than Vulkan 1.1";
}

} // namespace

const char * const VULKAN_LOADER = LIBRARIES[0];

const std::string & open_vulkan_loader() {
    static const std::string problem = opened();
    return problem;
}

// ggml-vulkan is linked with these four. It comes to them only where the loader is open: else the
// registry never hears of it.
extern "C" {

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetInstanceProcAddr(VkInstance instance,
                                                               const char * name) {
    return loader.of_instance(instance, name);
}

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vkGetDeviceProcAddr(VkDevice device, const char * name) {
    return loader.of_device(device, name);
}

VKAPI_ATTR void VKAPI_CALL vkGetPhysicalDeviceFeatures2(VkPhysicalDevice device,
                                                        VkPhysicalDeviceFeatures2 * features) {
    loader.features(device, features);
}

VKAPI_ATTR void VKAPI_CALL vkCmdCopyBuffer(VkCommandBuffer commands, VkBuffer source,
                                           VkBuffer target, uint32_t count,
                                           const VkBufferCopy * regions) {
    loader.copy(commands, source, target, count, regions);
}
}
