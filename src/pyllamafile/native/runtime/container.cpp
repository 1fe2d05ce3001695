#include "container.h"

#include <algorithm>
#include <climits>
#include <cstring>

extern "C" FILE * ggml_fopen_upstream(const char * name, const char * mode);
// stb_image.h, which llama.cpp links in to read PNG files
extern "C" int stbi_zlib_decode_noheader_buffer(char * out, int out_size, const char * in,
                                                int size);

static const uint64_t DIRECTORY_LIMIT = 1 << 28; // bytes: a million entries take less
static const size_t HEADER = 46;                 // bytes of an entry in the directory, at least
static const uint64_t TEXT_LIMIT = 1 << 28;      // bytes of an entry that is inflated here

file_ptr open_file(const std::string & path) {
    return file_ptr(ggml_fopen_upstream(path.c_str(), "rb"));
}

bool file_seek(FILE * file, int64_t offset, int whence) {
#ifdef _WIN32
    return _fseeki64(file, offset, whence) == 0;
#else
    return fseeko(file, offset, whence) == 0;
#endif
}

int64_t file_tell(FILE * file) {
#ifdef _WIN32
    return _ftelli64(file);
#else
    return ftello(file);
#endif
}

// Little-endian numbers at any address (APPNOTE 4.4.1.1).
template <typename T> static T number(const char * at) {
    T value = 0;
    for (size_t i = sizeof(T); i-- > 0;) {
        value = T(value << 8) | (unsigned char)at[i];
    }
    return value;
}

static bool read_at(FILE * file, uint64_t offset, void * out, size_t size) {
    return file_seek(file, (int64_t)offset) && fread(out, 1, size, file) == size;
}

namespace {

struct directory {
    uint64_t offset;
    uint64_t size;
    uint64_t entries;
    uint64_t position; // of the end records, before which the directory ends
};

// The end record is 22 bytes and a comment of at most 65,535 (APPNOTE 4.3.16), so it starts
// within the last 65,557 bytes; the last signature whose comment fits the file is the one.
bool find_directory(FILE * file, uint64_t file_size, directory & out) {
    const uint64_t tail_size = std::min<uint64_t>(file_size, 22 + 65535);
    const uint64_t tail_at = file_size - tail_size;
    std::vector<char> tail(tail_size);
    if (tail_size < 22 || !read_at(file, tail_at, tail.data(), tail.size())) {
        return false;
    }
    size_t i = tail.size() - 22 + 1;
    const auto fits = [&] {
        const char * end = tail.data() + i;
        return memcmp(end, "PK\5\6", 4) == 0 && i + 22 + number<uint16_t>(end + 20) <= tail.size();
    };
    do {
        if (i-- == 0) {
            return false;
        }
    } while (!fits());
    const char * end = tail.data() + i;
    uint64_t disk = number<uint16_t>(end + 4), first_disk = number<uint16_t>(end + 6),
             here = number<uint16_t>(end + 8);
    out.entries = number<uint16_t>(end + 10);
    out.size = number<uint32_t>(end + 12);
    out.offset = number<uint32_t>(end + 16);
    out.position = tail_at + i;
    // zip64 where a locator stands right before (APPNOTE 4.3.14, 4.3.15), with what has no room in
    // the end record
    char locator[20];
    char record[56];
    if (out.position >= 20 && read_at(file, out.position - 20, locator, 20) &&
        memcmp(locator, "PK\6\7", 4) == 0) {
        const uint64_t locator_at = out.position - 20;
        if (number<uint32_t>(locator + 4) != 0 || number<uint32_t>(locator + 16) > 1 ||
            locator_at < 56) {
            return false; // on several disks, or there is no room for the record
        }
        out.position = number<uint64_t>(locator + 8);
        if (out.position > locator_at - 56 || !read_at(file, out.position, record, 56) ||
            memcmp(record, "PK\6\6", 4) != 0) {
            return false;
        }
        const auto widen = [&](uint64_t & field, uint64_t most, uint64_t wide) {
            field = field == most ? wide : field;
        };
        widen(disk, UINT16_MAX, number<uint32_t>(record + 16));
        widen(first_disk, UINT16_MAX, number<uint32_t>(record + 20));
        widen(here, UINT16_MAX, number<uint64_t>(record + 24));
        widen(out.entries, UINT16_MAX, number<uint64_t>(record + 32));
        widen(out.size, UINT32_MAX, number<uint64_t>(record + 40));
        widen(out.offset, UINT32_MAX, number<uint64_t>(record + 48));
    }
    // a file with holes can claim more than there is memory
    const bool holds = out.size <= DIRECTORY_LIMIT && out.entries <= out.size / HEADER &&
                       (out.entries > 0 || out.size == 0);
    return disk == 0 && first_disk == 0 && here == out.entries && holds &&
           out.offset <= out.position && out.size <= out.position - out.offset;
}

struct wide_field {
    uint64_t * value;
    uint64_t full;
    size_t size;
};

// Replaces the fields that are full by those of the zip64 extra field, which holds only these, in
// this order (APPNOTE 4.5.3).
bool widen(const char * extra, size_t extra_size, const std::vector<wide_field> & fields) {
    std::string wide;
    while (extra_size >= 4) {
        const size_t length = number<uint16_t>(extra + 2);
        if (length > extra_size - 4) {
            return false;
        }
        if (number<uint16_t>(extra) == 1) {
            wide.append(extra + 4, length);
        }
        extra += 4 + length;
        extra_size -= 4 + length;
    }
    size_t at = 0;
    for (const wide_field & field : fields) {
        if (*field.value == field.full) {
            if (wide.size() - at < field.size) {
                return false;
            }
            *field.value = field.size == 8 ? number<uint64_t>(wide.data() + at)
                                           : number<uint32_t>(wide.data() + at);
            at += field.size;
        }
    }
    return true;
}

// RFC 3629.
bool is_utf8(const std::string & text) {
    for (size_t i = 0; i < text.size();) {
        const unsigned char c = (unsigned char)text[i];
        const size_t more = c < 0x80                ? 0
                            : c >= 0xC2 && c < 0xE0 ? 1
                            : c >= 0xE0 && c < 0xF0 ? 2
                            : c >= 0xF0 && c < 0xF5 ? 3
                                                    : 4;
        if (more == 4 || text.size() - i <= more) {
            return false;
        }
        for (size_t k = 1; k <= more; k++) {
            if (((unsigned char)text[i + k] & 0xC0) != 0x80) {
                return false;
            }
        }
        const unsigned char next = more > 0 ? (unsigned char)text[i + 1] : 0;
        if ((c == 0xE0 && next < 0xA0) || (c == 0xED && next >= 0xA0) ||
            (c == 0xF0 && next < 0x90) || (c == 0xF4 && next >= 0x90)) {
            return false;
        }
        i += 1 + more;
    }
    return true;
}

// Where an entry's bytes are, whether it can be read here or not.
struct extent {
    uint64_t start, end;
};

} // namespace

bool read_container(const std::string & path, container & out) {
    const file_ptr file = open_file(path);
    if (!file || !file_seek(file.get(), 0, SEEK_END)) {
        return false;
    }
    const int64_t size = file_tell(file.get());
    directory dir = {};
    if (size < 0 || !find_directory(file.get(), (uint64_t)size, dir)) {
        return false;
    }
    std::string bytes(dir.size, '\0');
    if (!read_at(file.get(), dir.offset, bytes.data(), bytes.size())) {
        return false;
    }
    out.path = path;
    out.entries.clear();
    std::vector<extent> extents;
    const char * at = bytes.data();
    const char * stop = at + bytes.size();
    for (uint64_t i = 0; i < dir.entries; i++) {
        // central header, APPNOTE 4.3.12
        if ((size_t)(stop - at) < HEADER || memcmp(at, "PK\1\2", 4) != 0) {
            return false;
        }
        const size_t name_size = number<uint16_t>(at + 28);
        const size_t extra_size = number<uint16_t>(at + 30);
        const size_t comment_size = number<uint16_t>(at + 32);
        if ((size_t)(stop - at) < HEADER + name_size + extra_size + comment_size) {
            return false;
        }
        const uint16_t flags = number<uint16_t>(at + 8);
        const uint16_t method = number<uint16_t>(at + 10);
        entry member = {};
        member.crc = number<uint32_t>(at + 16);
        member.stored_size = number<uint32_t>(at + 20);
        member.size = number<uint32_t>(at + 24);
        uint64_t disk = number<uint16_t>(at + 34);
        uint64_t header = number<uint32_t>(at + 42);
        member.name.assign(at + HEADER, name_size);
        member.deflated = method == 8;
        const std::vector<wide_field> fields = { { &member.size, UINT32_MAX, 8 },
                                                 { &member.stored_size, UINT32_MAX, 8 },
                                                 { &header, UINT32_MAX, 8 },
                                                 { &disk, UINT16_MAX, 4 } };
        if (!widen(at + HEADER + name_size, extra_size, fields)) {
            return false;
        }
        at += HEADER + name_size + extra_size + comment_size;
        const bool encrypted = (flags & 1) != 0;
        if (disk != 0 || member.name.empty() || member.name.find('\0') != std::string::npos ||
            ((flags & 0x800) != 0 && !is_utf8(member.name)) ||
            (method == 0 && !encrypted && member.size != member.stored_size)) {
            return false;
        }
        // The data follows the local header, whose extra field may have another length (4.3.7).
        char local[30];
        const uint64_t limit = dir.offset;
        if (header > limit || limit - header < 30 || !read_at(file.get(), header, local, 30) ||
            memcmp(local, "PK\3\4", 4) != 0) {
            return false;
        }
        member.offset = header + 30 + number<uint16_t>(local + 26) + number<uint16_t>(local + 28);
        if (member.offset > limit || member.stored_size > limit - member.offset) {
            return false;
        }
        extents.push_back({ header, member.offset + member.stored_size });
        if (!encrypted && (method == 0 || method == 8)) { // nothing here reads the others
            out.entries.push_back(std::move(member));
        }
    }
    // No bytes are of two entries, which is a bomb's trick, and none of the directory is of no
    // entry.
    std::sort(extents.begin(), extents.end(),
              [](const extent & a, const extent & b) { return a.start < b.start; });
    const auto overlap = [](const extent & a, const extent & b) { return a.end > b.start; };
    return at == stop &&
           std::adjacent_find(extents.begin(), extents.end(), overlap) == extents.end();
}

const entry * container::find(const std::string & name) const {
    for (const entry & member : entries) {
        if (member.name == name) {
            return &member;
        }
    }
    return nullptr;
}

std::string container::read(const entry & member) const {
    const file_ptr file = open_file(path);
    std::string bytes(member.stored_size, '\0');
    if (!file || !read_at(file.get(), member.offset, bytes.data(), bytes.size())) {
        return {};
    }
    return bytes;
}

std::string container::content(const entry & member) const {
    const std::string bytes = read(member);
    if (!member.deflated) {
        return bytes;
    }
    return inflated(bytes.data(), bytes.size(), member.size);
}

std::string inflated(const char * bytes, uint64_t stored, uint64_t size) {
    if (size > TEXT_LIMIT || stored > INT_MAX) {
        return {};
    }
    std::string out(size, '\0');
    const int made =
        stbi_zlib_decode_noheader_buffer(out.data(), (int)out.size(), bytes, (int)stored);
    return made >= 0 && (uint64_t)made == size ? out : "";
}

static bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() &&
           text.compare(text.size() - end.size(), end.size(), end) == 0;
}

// NAME-00002-of-00003.gguf: llama.cpp finds it by itself once it has the first part.
static bool is_later_part(const std::string & name) {
    static const char shape[] = "-#####-of-#####.gguf";
    const size_t length = sizeof(shape) - 1;
    if (name.size() < length) {
        return false;
    }
    const std::string end = name.substr(name.size() - length);
    for (size_t i = 0; i < length; i++) {
        if (shape[i] == '#' ? (end[i] < '0' || end[i] > '9') : end[i] != shape[i]) {
            return false;
        }
    }
    return end.substr(1, 5) != "00001";
}

std::vector<const entry *> container::weights() const {
    std::vector<const entry *> out;
    for (const entry & member : entries) {
        if (!member.deflated && ends_with(member.name, ".gguf") && !is_later_part(member.name)) {
            out.push_back(&member);
        }
    }
    return out;
}
