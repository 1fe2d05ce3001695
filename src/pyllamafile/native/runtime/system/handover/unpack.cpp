#include "system/handover/unpack.h"

#include <hash/hash.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <zstd.h>

namespace {

const size_t HEADERS = 8192; // that those of a Windows program may have: FORMAT.md, section 2.3
const size_t SECTION = 40;   // bytes of a row of the section table ("PE Format", Microsoft)

// Ten bytes, a comment ended by NUL, deflated data, checksum and length (FORMAT.md, section 3).
std::string gunzipped(const std::string & member, size_t size) {
    const size_t start = member.find('\0', 10) + 1;
    if (member.compare(0, 4, "\x1f\x8b\x08\x10", 4) != 0 || start == 0 ||
        member.size() < start + 8) {
        return {};
    }
    return inflated(member.data() + start, member.size() - start - 8, size);
}

struct part {
    size_t from, to;
};

template <typename T> T number(const std::string & headers, size_t at) {
    T out = 0; // all of these systems have the lowest byte first
    if (at <= headers.size() && headers.size() - at >= sizeof(T)) {
        memcpy(&out, headers.data() + at, sizeof(T));
    }
    return out;
}

// The sections' data, but for the one that a persona brings: what is in front of them differs from
// file to file.
part sections_of(const std::string & headers) {
    const size_t pe = number<uint32_t>(headers, 60);
    const size_t table = pe + 24 + number<uint16_t>(headers, pe + 20);
    part out = { SIZE_MAX, 0 };
    for (size_t i = 0; i < number<uint16_t>(headers, pe + 6); i++) {
        const size_t at = table + i * SECTION;
        const size_t size = number<uint32_t>(headers, at + 16);
        const size_t from = number<uint32_t>(headers, at + 20);
        if (from != 0 && headers.compare(at, 8, ".persona") != 0) {
            out = { std::min(out.from, from), std::max(out.to, from + size) };
        }
    }
    return out;
}

// What of this program is the same in every file that has it: FORMAT.md, section 13.
std::string common_part(const std::string & path, size_t size) {
    const std::string headers = read_bytes(path, 0, std::min(size, HEADERS));
    const part found = headers.compare(0, 2, "MZ") == 0 ? sections_of(headers) : part{ 0, size };
    return found.from < found.to && found.to <= MOST_OF_PROGRAM
               ? read_bytes(path, (int64_t)found.from, found.to - found.from)
               : "";
}

std::string decompressed(const std::string & frame, size_t size, const std::string & prefix) {
    const std::unique_ptr<ZSTD_DCtx, size_t (*)(ZSTD_DCtx *)> context(ZSTD_createDCtx(),
                                                                      ZSTD_freeDCtx);
    if (!context || prefix.empty() ||
        ZSTD_getFrameContentSize(frame.data(), frame.size()) != size) {
        return {};
    }
    ZSTD_DCtx_refPrefix(context.get(), prefix.data(), prefix.size());
    std::string out(size, '\0');
    const size_t made =
        ZSTD_decompressDCtx(context.get(), out.data(), out.size(), frame.data(), frame.size());
    return made == size ? out : "";
}

} // namespace

std::string unpacked(const container & llamafile, const packed_program & program,
                     const std::string & own) {
    const std::string packed = read_bytes(llamafile.path, program.offset, program.packed_size);
    const std::string out = program.against == 0 ? gunzipped(packed, program.size)
                                                 : decompressed(packed, program.size,
                                                                common_part(own, program.against));
    return hash_sha256_hex(out.data(), out.size()) == program.sha256 ? out : "";
}
