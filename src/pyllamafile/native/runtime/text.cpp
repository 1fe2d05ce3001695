#include "text.h"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <stdexcept>

namespace {

void append_utf8(std::string & out, uint32_t c) {
    if (c < 0x80) {
        out += (char)c;
    } else if (c < 0x800) {
        out += { (char)(0xC0 | c >> 6), (char)(0x80 | (c & 63)) };
    } else if (c < 0x10000) {
        out += { (char)(0xE0 | c >> 12), (char)(0x80 | (c >> 6 & 63)), (char)(0x80 | (c & 63)) };
    } else {
        out += { (char)(0xF0 | c >> 18), (char)(0x80 | (c >> 12 & 63)),
                 (char)(0x80 | (c >> 6 & 63)), (char)(0x80 | (c & 63)) };
    }
}

// RFC 2781; half a pair and an odd byte become U+FFFD.
std::string from_utf16(const std::string & bytes, bool big) {
    const auto unit = [&](size_t at) -> uint32_t {
        const uint32_t a = (unsigned char)bytes[at], b = (unsigned char)bytes[at + 1];
        return big ? a << 8 | b : b << 8 | a;
    };
    std::string out;
    size_t at = 2; // behind the mark
    for (; at + 1 < bytes.size(); at += 2) {
        uint32_t c = unit(at);
        if (c >= 0xD800 && c < 0xDC00 && at + 3 < bytes.size() && unit(at + 2) >= 0xDC00 &&
            unit(at + 2) < 0xE000) {
            c = 0x10000 + ((c - 0xD800) << 10) + (unit(at + 2) - 0xDC00);
            at += 2;
        } else if (c >= 0xD800 && c < 0xE000) {
            c = 0xFFFD;
        }
        append_utf8(out, c);
    }
    if (at < bytes.size()) {
        append_utf8(out, 0xFFFD);
    }
    return out;
}

} // namespace

std::string as_text(std::string bytes) {
    if (bytes.compare(0, 2, "\xFF\xFE") == 0) {
        bytes = from_utf16(bytes, false);
    } else if (bytes.compare(0, 2, "\xFE\xFF") == 0) {
        bytes = from_utf16(bytes, true);
    } else if (bytes.compare(0, 3, "\xEF\xBB\xBF") == 0) {
        bytes.erase(0, 3);
    }
    size_t end = 0;
    for (size_t i = 0; i < bytes.size(); i++) {
        if (bytes[i] != '\r' || i + 1 == bytes.size() || bytes[i + 1] != '\n') {
            bytes[end++] = bytes[i];
        }
    }
    bytes.resize(end);
    return bytes;
}

std::string read_bytes(const std::string & path) {
    if (path == "-") {
        return { std::istreambuf_iterator<char>(std::cin), {} };
    }
    namespace fs = std::filesystem;
    std::error_code ignored;
    const fs::path file = fs::u8path(path);
    std::ifstream stream(file, std::ios::binary);
    if (!stream || fs::is_directory(file, ignored)) {
        throw std::runtime_error(path + ": can't be read");
    }
    return { std::istreambuf_iterator<char>(stream), {} };
}

std::string read_text(const std::string & path) {
    return as_text(read_bytes(path));
}
