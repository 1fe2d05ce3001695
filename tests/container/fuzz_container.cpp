// The runtime's reader of zip directories, by itself, on files that nobody would write.
//   with -fsanitize=fuzzer: libFuzzer's target (scripts/fuzz)
//   with -DPROGRAM: prints what it reads in each FILE, one JSON object a line (test_hostile.py)
#include "container.h"

#include <cinttypes>
#include <cstdlib>
#include <cstring>

#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STB_IMAGE_IMPLEMENTATION
#include "stb_image.h"

// Deflate can't make more than 1032 bytes of one; stb_image grows its buffer by doubling it.
static const uint64_t MOST = 2 * 1032;
// Many entries may be the same bomb, and nobody unpacks them all.
static const uint64_t ENOUGH = 4 << 20;

[[noreturn]] static void wrong(const char * what) {
    fprintf(stderr, "wrong: %s\n", what);
    abort();
}

// What holds of anything that was read, whatever it was read from.
static void check(const container & zip, uint64_t size) {
    uint64_t unpacked = 0;
    for (const entry & member : zip.entries) {
        if (member.offset > size || member.stored_size > size - member.offset) {
            wrong("an entry reaches out of the file");
        }
        if (zip.read(member).size() != member.stored_size) {
            wrong("an entry can't be read");
        }
        if (unpacked < ENOUGH) {
            const uint64_t content_size = zip.content(member).size();
            if (content_size > MOST * (member.stored_size + 64)) {
                wrong("an entry takes more memory than its bytes can make");
            }
            unpacked += content_size;
        }
        const entry * same = zip.find(member.name);
        if (same == nullptr || same->name != member.name) {
            wrong("an entry can't be found");
        }
    }
    for (const entry * weights : zip.weights()) {
        if (weights->deflated || weights < zip.entries.data() ||
            weights >= zip.entries.data() + zip.entries.size()) {
            wrong("weights are none of the stored entries");
        }
    }
}

#ifdef PROGRAM

extern "C" FILE * ggml_fopen_upstream(const char * name, const char * mode) {
    return fopen(name, mode);
}

static void print_text(const std::string & text) {
    putchar('"');
    for (const char c : text) {
        printf("\\u%04x", (unsigned char)c); // a byte each, as Latin-1
    }
    putchar('"');
}

int main(int argc, char ** argv) {
    for (int i = 1; i < argc; i++) {
        container zip;
        if (!read_container(argv[i], zip)) {
            puts("null");
            continue;
        }
        const file_ptr file = open_file(argv[i]);
        file_seek(file.get(), 0, SEEK_END);
        check(zip, (uint64_t)file_tell(file.get()));
        printf("[");
        for (const entry & member : zip.entries) {
            printf(&member == zip.entries.data() ? "[" : ", [");
            print_text(member.name);
            printf(", %" PRIu64 ", %" PRIu64 ", %" PRIu64 ", %" PRIu32 ", ", member.offset,
                   member.stored_size, member.size, member.crc);
            print_text(zip.content(member));
            printf("]");
        }
        puts("]");
    }
}

#else

static const uint8_t * file_data;
static size_t file_size;

// In memory, but never beyond its end: what a read gets there is not a matter of the fuzzer.
extern "C" FILE * ggml_fopen_upstream(const char *, const char *) {
    return file_size > 0 ? fmemopen((void *)file_data, file_size, "rb") : nullptr;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    file_data = data;
    file_size = size;
    container zip;
    if (read_container("fuzzed", zip)) {
        check(zip, size);
    }
    return 0;
}

#endif
