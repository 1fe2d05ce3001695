// What the amd64 program does on arm64, on any Windows: hands over to the program that the
// llamafile named by $LLAMAFILE has for windows-arm64. Ends with 99 when it would do the work
// itself, and with 98 when it takes the machine for another one than it is compiled for.
#include "system/handover/handover.h"
#include "system/handover/system.h"

#include <cstdlib>

#define STB_IMAGE_IMPLEMENTATION
#include <stb/stb_image.h>

extern "C" FILE * ggml_fopen_upstream(const char * name, const char * mode) {
    return fopen(name, mode);
}

#if defined(__aarch64__)
const bool ON_ARM64 = true;
#else
const bool ON_ARM64 = false;
#endif

// windows.cpp's, by another name: whether this Windows says that it emulates.
bool windows_emulates();

// Every Windows counts as one that does.
bool is_emulated() {
    return true;
}

int main(int argc, char ** argv) {
    container llamafile;
    if (windows_emulates() != ON_ARM64 || !read_container(getenv("LLAMAFILE"), llamafile)) {
        return 98;
    }
    const arguments none;
    return hand_over({ llamafile, argv[0], none, false, [] { return gpu_use::NONE; } })
        .value_or(99);
}
