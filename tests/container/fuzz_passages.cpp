// The runtime's reader of documents, by itself: prints of each FILE what is in it, one JSON value a
// line, or null (test_reader_of_documents.py).
#include "container.h"
#include "documents/passages.h"

#include <cstdio>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>

#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STB_IMAGE_IMPLEMENTATION
#include "stb_image.h"

extern "C" FILE * ggml_fopen_upstream(const char * name, const char * mode) {
    return fopen(name, mode);
}

int main(int argc, char ** argv) {
    for (int i = 1; i < argc; i++) {
        std::ifstream file(argv[i], std::ios::binary);
        const std::string bytes(std::istreambuf_iterator<char>(file), {});
        nlohmann::json out;
        try {
            const passages read = read_passages(bytes);
            out = nlohmann::json::array();
            for (const passage & each : read.all) {
                out.push_back({ read.sources[each.source], each.page, each.heading, each.text,
                                read.label(each), read.found_by(each), each.parts });
            }
            out = { read.sources, read.query, read.dimension, read.vectors, out };
        } catch (const std::runtime_error &) {
        }
        puts(out.dump().c_str());
    }
}
