#include "manifest.h"

#include <climits>
#include <nlohmann/json.hpp>

// Deflate makes of a byte at most this many: 258 out of two bits (RFC 1951, 3.2.5).
static const size_t MOST_INFLATED = 1032;

static const uint64_t MOST_BYTES = 64 << 20; // FORMAT.md, section 6

nlohmann::json manifest_of(const container & llamafile) {
    const entry * manifest = llamafile.find("llamafile.json");
    if (manifest == nullptr || manifest->size > MOST_BYTES) {
        return {};
    }
    const auto json = nlohmann::json::parse(llamafile.content(*manifest), nullptr, false);
    return json.is_object() ? json : nlohmann::json();
}

std::optional<packed_program> find_program(const container & llamafile,
                                           const std::string & target) {
    try {
        const nlohmann::json manifest = manifest_of(llamafile);
        for (const auto & row : manifest.at("runtimes")) {
            if (row.at("target") == target) {
                packed_program found = { row.at("offset"), row.at("packed_size"), row.at("size"),
                                         row.at("sha256") };
                const bool hex =
                    found.sha256.find_first_not_of("0123456789abcdef") == std::string::npos;
                const bool sane = found.packed_size <= INT_MAX && found.size <= INT_MAX &&
                                  found.size / MOST_INFLATED <= found.packed_size;
                return hex && sane ? std::optional(found) : std::nullopt;
            }
        }
    } catch (const nlohmann::json::exception &) {
        // as if there were no such program
    }
    return {};
}

std::string read_bytes(const container & llamafile, int64_t offset, size_t size) {
    const file_ptr file = open_file(llamafile.path);
    if (!file || !file_seek(file.get(), 0, SEEK_END) || file_tell(file.get()) < (int64_t)size) {
        return {};
    }
    std::string out(size, '\0');
    if (!file_seek(file.get(), offset) || fread(out.data(), 1, size, file.get()) != size) {
        return {};
    }
    return out;
}
