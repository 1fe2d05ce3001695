// What the amd64 program does on arm64, on any Windows: hands over to the program that the
// llamafile named by $LLAMAFILE has for windows-arm64. Ends with 99 when it would do the work
// itself, and with 98 when it takes the machine for another one than it is compiled for.
#include "system/handover.h"

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

int main() {
    container llamafile;
    if (is_emulated() != ON_ARM64 || !read_container(getenv("LLAMAFILE"), llamafile)) {
        return 98;
    }
    return hand_over(llamafile, "windows-arm64").value_or(99);
}
