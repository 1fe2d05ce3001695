#include "container.h"

#include <algorithm>
#include <climits>
#include <cstring>

extern "C" FILE * ggml_fopen_upstream(const char * name, const char * mode);
// stb_image.h, which llama.cpp links in to read PNG files
extern "C" int stbi_zlib_decode_noheader_buffer(char * out, int out_size, const char * in,
                                                int size);

static const uint64_t DIRECTORY_LIMIT = 1 << 28; // bytes: a million entries take less
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

struct directory {
    uint64_t offset;
    uint64_t size;
    uint64_t entries;
};

// The end record is 22 bytes and a comment of at most 65,535 (APPNOTE 4.3.16), so it starts
// within the last 65,557 bytes; the last signature whose comment fits the file is the one.
static bool find_directory(FILE * file, uint64_t file_size, directory & out) {
    const uint64_t tail_size = std::min<uint64_t>(file_size, 22 + 65535);
    const uint64_t tail_at = file_size - tail_size;
    std::vector<char> tail(tail_size);
    if (tail_size < 22 || !read_at(file, tail_at, tail.data(), tail.size())) {
        return false;
    }
    for (size_t i = tail.size() - 22 + 1; i-- > 0;) {
        const char * end = tail.data() + i;
        if (memcmp(end, "PK\5\6", 4) != 0 || i + 22 + number<uint16_t>(end + 20) > tail.size()) {
            continue;
        }
        out.entries = number<uint16_t>(end + 10);
        out.size = number<uint32_t>(end + 12);
        out.offset = number<uint32_t>(end + 16);
        // zip64 where a locator stands right before (APPNOTE 4.3.14, 4.3.15)
        char locator[20];
        char record[56];
        const uint64_t end_at = tail_at + i;
        if (end_at >= 20 && read_at(file, end_at - 20, locator, 20) &&
            memcmp(locator, "PK\6\7", 4) == 0) {
            const uint64_t record_at = number<uint64_t>(locator + 8);
            if (record_at > end_at || !read_at(file, record_at, record, 56) ||
                memcmp(record, "PK\6\6", 4) != 0) {
                return false;
            }
            out.entries = number<uint64_t>(record + 32);
            out.size = number<uint64_t>(record + 40);
            out.offset = number<uint64_t>(record + 48);
        }
        return out.offset <= end_at && out.size <= end_at - out.offset;
    }
    return false;
}

// Replaces the sizes and the offset that read 0xFFFFFFFF by those of the zip64 extra field,
// which holds only these, in this order (APPNOTE 4.5.3).
static bool widen(const char * extra, size_t extra_size, uint64_t * size, uint64_t * stored_size,
                  uint64_t * offset) {
    uint64_t * fields[] = { size, stored_size, offset };
    while (extra_size >= 4) {
        const uint16_t id = number<uint16_t>(extra);
        const uint16_t length = number<uint16_t>(extra + 2);
        if (length > extra_size - 4) {
            return false;
        }
        if (id == 1) {
            const char * at = extra + 4;
            const char * end = at + length;
            for (uint64_t * field : fields) {
                if (*field == UINT32_MAX) {
                    if (end - at < 8) {
                        return false;
                    }
                    *field = number<uint64_t>(at);
                    at += 8;
                }
            }
            return true;
        }
        extra += 4 + length;
        extra_size -= 4 + (size_t)length;
    }
    return true;
}

bool read_container(const std::string & path, container & out) {
    const file_ptr file = open_file(path);
    if (!file || !file_seek(file.get(), 0, SEEK_END)) {
        return false;
    }
    const int64_t end = file_tell(file.get());
    directory dir = {};
    if (end < 0 || !find_directory(file.get(), (uint64_t)end, dir)) {
        return false;
    }
    const uint64_t file_size = (uint64_t)end;
    if (dir.size > DIRECTORY_LIMIT) {
        return false; // a file with holes can claim more than there is memory
    }

    std::string bytes(dir.size, '\0');
    if (!read_at(file.get(), dir.offset, bytes.data(), bytes.size())) {
        return false;
    }
    out.path = path;
    out.entries.clear();
    const char * at = bytes.data();
    const char * stop = at + bytes.size();
    for (uint64_t i = 0; i < dir.entries; i++) {
        // central header, APPNOTE 4.3.12
        if (stop - at < 46 || memcmp(at, "PK\1\2", 4) != 0) {
            return false;
        }
        const size_t name_size = number<uint16_t>(at + 28);
        const size_t extra_size = number<uint16_t>(at + 30);
        const size_t comment_size = number<uint16_t>(at + 32);
        if ((size_t)(stop - at) < 46 + name_size + extra_size + comment_size) {
            return false;
        }
        const uint16_t flags = number<uint16_t>(at + 8);
        const uint16_t method = number<uint16_t>(at + 10);
        entry member = {};
        member.crc = number<uint32_t>(at + 16);
        member.stored_size = number<uint32_t>(at + 20);
        member.size = number<uint32_t>(at + 24);
        uint64_t header = number<uint32_t>(at + 42);
        member.name.assign(at + 46, name_size);
        member.deflated = method == 8;
        if (!widen(at + 46 + name_size, extra_size, &member.size, &member.stored_size, &header)) {
            return false;
        }
        at += 46 + name_size + extra_size + comment_size;
        if ((flags & 1) != 0 || (method != 0 && method != 8)) {
            continue; // encrypted, or a method that nothing here reads
        }
        if (!member.deflated && member.size != member.stored_size) {
            return false;
        }
        // The data follows the local header, whose extra field may have another length (4.3.7).
        char local[30];
        if (header > file_size || file_size - header < 30 ||
            !read_at(file.get(), header, local, 30) || memcmp(local, "PK\3\4", 4) != 0) {
            return false;
        }
        member.offset = header + 30 + number<uint16_t>(local + 26) + number<uint16_t>(local + 28);
        if (member.offset > file_size || member.stored_size > file_size - member.offset) {
            return false;
        }
        out.entries.push_back(std::move(member));
    }
    return true;
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
    if (member.size > TEXT_LIMIT || bytes.size() > INT_MAX) {
        return {};
    }
    std::string out(member.size, '\0');
    const int size = stbi_zlib_decode_noheader_buffer(out.data(), (int)out.size(), bytes.data(),
                                                      (int)bytes.size());
    return size >= 0 && (uint64_t)size == member.size ? out : "";
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
