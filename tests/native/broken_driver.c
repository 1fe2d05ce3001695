// A driver of Vulkan's that is broken, in the way that BROKEN_DRIVER names. It is lavapipe
// (LAVAPIPE is its library), but for the one thing that it does otherwise.

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static PFN_vkGetInstanceProcAddr lavapipe;
static PFN_vkGetDeviceProcAddr of_device;

static int is(const char * how) {
    const char * wanted = getenv("BROKEN_DRIVER");
    return wanted != NULL && strcmp(wanted, how) == 0;
}

__attribute__((constructor)) static void load(void) {
    if (is("aborts when it is loaded")) {
        abort();
    }
    while (is("hangs when it is loaded")) {
        sleep(1);
    }
    void * library = dlopen(getenv("LAVAPIPE"), RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        _exit(99);
    }
    lavapipe = (PFN_vkGetInstanceProcAddr)dlsym(library, "vk_icdGetInstanceProcAddr");
}

static VKAPI_ATTR VkResult VKAPI_CALL no_devices(VkInstance instance, uint32_t * count,
                                                 VkPhysicalDevice * devices) {
    (void)instance, (void)devices;
    *count = 0;
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL nothing(VkCommandBuffer buffer, uint32_t x, uint32_t y,
                                          uint32_t z) {
    (void)buffer, (void)x, (void)y, (void)z;
}

static VKAPI_ATTR void VKAPI_CALL crash(VkCommandBuffer buffer, uint32_t x, uint32_t y,
                                        uint32_t z) {
    (void)buffer, (void)x, (void)y, (void)z;
    *(volatile int *)8 = 0;
}

static VKAPI_ATTR VkResult VKAPI_CALL no_memory(VkDevice device, const VkMemoryAllocateInfo * info,
                                                const VkAllocationCallbacks * callbacks,
                                                VkDeviceMemory * memory) {
    (void)device, (void)info, (void)callbacks, (void)memory;
    return VK_ERROR_OUT_OF_DEVICE_MEMORY;
}

// Whether this process is the runtime's trial of GPUs, by its arguments.
static int is_trial(void) {
    char words[4096] = "";
    FILE * file = fopen("/proc/self/cmdline", "r");
    const size_t size = file != NULL ? fread(words, 1, sizeof(words) - 1, file) : 0;
    for (size_t i = 0; i < size; i++) {
        words[i] = words[i] == '\0' ? ' ' : words[i];
    }
    if (file != NULL) {
        fclose(file);
    }
    return strstr(words, "--try-gpus") != NULL;
}

// ggml-vulkan writes as many of a set's buffers as a shader has, and leaves the others as they
// were: of buffers that may be gone by now. Vulkan allows that. lavapipe counts who uses those,
// too, and ends with SIGSEGV a while later. Here the last buffer stands in for them.
enum { BUFFERS = 12 }; // MAX_PARAMETER_COUNT

static PFN_vkUpdateDescriptorSets update;

static VKAPI_ATTR void VKAPI_CALL whole_sets(VkDevice device, uint32_t count,
                                             const VkWriteDescriptorSet * writes, uint32_t copies,
                                             const VkCopyDescriptorSet * copied) {
    for (uint32_t i = 0; i < count; i++) {
        VkWriteDescriptorSet whole = writes[i];
        VkDescriptorBufferInfo buffers[BUFFERS];
        for (uint32_t at = 0; at < BUFFERS; at++) {
            const uint32_t last = whole.descriptorCount - 1;
            buffers[at] = whole.pBufferInfo[at < last ? at : last];
        }
        whole.descriptorCount = BUFFERS;
        whole.pBufferInfo = buffers;
        update(device, 1, &whole, 0, NULL);
    }
    update(device, 0, NULL, copies, copied);
}

static PFN_vkAllocateMemory allocate;

static VKAPI_ATTR VkResult VKAPI_CALL for_trial(VkDevice device, const VkMemoryAllocateInfo * info,
                                                const VkAllocationCallbacks * callbacks,
                                                VkDeviceMemory * memory) {
    return is_trial() ? allocate(device, info, callbacks, memory)
                      : no_memory(device, info, callbacks, memory);
}

static PFN_vkVoidFunction ours(const char * name) {
    const struct {
        const char *how, *name;
        PFN_vkVoidFunction what;
    } all[] = {
        { "has no device", "vkEnumeratePhysicalDevices", (PFN_vkVoidFunction)no_devices },
        { "computes nothing", "vkCmdDispatch", (PFN_vkVoidFunction)nothing },
        { "crashes when it computes", "vkCmdDispatch", (PFN_vkVoidFunction)crash },
        { "has no memory", "vkAllocateMemory", (PFN_vkVoidFunction)no_memory },
        { "has memory for a trial", "vkAllocateMemory", (PFN_vkVoidFunction)for_trial },
        { "is mended", "vkUpdateDescriptorSets", (PFN_vkVoidFunction)whole_sets },
    };
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++) {
        if (is(all[i].how) && strcmp(all[i].name, name) == 0) {
            return all[i].what;
        }
    }
    return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL device_function(VkDevice device,
                                                                const char * name) {
    const PFN_vkVoidFunction own = ours(name);
    if (strcmp(name, "vkAllocateMemory") == 0) {
        allocate = (PFN_vkAllocateMemory)of_device(device, name);
    }
    if (strcmp(name, "vkUpdateDescriptorSets") == 0) {
        update = (PFN_vkUpdateDescriptorSets)of_device(device, name);
    }
    return own != NULL ? own : of_device(device, name);
}

VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL vk_icdGetInstanceProcAddr(VkInstance instance,
                                                                   const char * name) {
    const PFN_vkVoidFunction own = ours(name), theirs = lavapipe(instance, name);
    if (theirs != NULL && strcmp(name, "vkGetDeviceProcAddr") == 0) {
        of_device = (PFN_vkGetDeviceProcAddr)theirs;
        return (PFN_vkVoidFunction)device_function;
    }
    return own != NULL ? own : theirs;
}

// The loader's interface of drivers, version 5, which is as far as this one goes.
VKAPI_ATTR VkResult VKAPI_CALL vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t * version) {
    *version = *version < 5 ? *version : 5;
    return VK_SUCCESS;
}
