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

namespace {

using json = nlohmann::json;

// The row of a target, made into a program; nothing where either makes no sense.
std::optional<packed_program> from_row(const container & llamafile, const std::string & target,
                                       packed_program (*made)(const json & row)) {
    try {
        const json manifest = manifest_of(llamafile);
        for (const auto & row : manifest.at("runtimes")) {
            if (row.at("target") == target) {
                const packed_program found = made(row);
                const std::string & digest = found.sha256;
                const bool hex = digest.size() == 64 &&
                                 digest.find_first_not_of("0123456789abcdef") == std::string::npos;
                return hex && found.size <= INT_MAX ? std::optional(found) : std::nullopt;
            }
        }
    } catch (const json::exception &) {
        // as if there were no such program
    }
    return {};
}

} // namespace

std::optional<packed_program> find_program(const container & llamafile,
                                           const std::string & target) {
    const auto found = from_row(llamafile, target, [](const json & row) {
        return packed_program{ row.at("offset"), row.at("packed_size"), row.at("size"),
                               row.at("sha256") };
    });
    const bool sane =
        found && found->packed_size <= INT_MAX && found->size / MOST_INFLATED <= found->packed_size;
    return sane ? found : std::nullopt;
}

std::string gpu_entry(const std::string & target) {
    return "gpu/" + target + ".zst";
}

std::optional<packed_program> find_gpu_program(const container & llamafile,
                                               const std::string & target) {
    auto found = from_row(llamafile, target, [](const json & row) {
        const json & gpu = row.at("gpu");
        return packed_program{ 0, 0, gpu.at("size"), gpu.at("sha256"), row.at("size") };
    });
    const entry * frame = llamafile.find(gpu_entry(target));
    if (!found || frame == nullptr || frame->deflated || found->size > MOST_OF_PROGRAM ||
        found->against > MOST_OF_PROGRAM || frame->stored_size > MOST_OF_PROGRAM) {
        return {};
    }
    found->offset = (int64_t)frame->offset;
    found->packed_size = frame->stored_size;
    return found;
}

std::string read_bytes(const std::string & path, int64_t offset, size_t size) {
    const file_ptr file = open_file(path);
    if (!file || !file_seek(file.get(), 0, SEEK_END) || file_tell(file.get()) < (int64_t)size) {
        return {};
    }
    std::string out(size, '\0');
    if (!file_seek(file.get(), offset) || fread(out.data(), 1, size, file.get()) != size) {
        return {};
    }
    return out;
}
