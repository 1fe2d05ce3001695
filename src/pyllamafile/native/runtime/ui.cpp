#include "seams/ui.h"

#include "container.h"
#include "persona.h"

#include <algorithm>
#include <cstdio>

// Set by main.cpp before the server starts; empty when the runtime has no llamafile around it.
extern container own_container;

// Set by serve.cpp: the server answers below it.
std::string ui_prefix;

namespace {

struct media_type {
    const char * extension;
    const char * type;
};

const media_type MEDIA_TYPES[] = {
    { ".html", "text/html; charset=utf-8" },
    { ".css", "text/css" },
    { ".js", "application/javascript" },
    { ".json", "application/json" },
    { ".webmanifest", "application/manifest+json" },
    { ".svg", "image/svg+xml" },
    { ".png", "image/png" },
    { ".ico", "image/x-icon" },
    { ".woff", "font/woff" },
    { ".woff2", "font/woff2" },
};

std::string type_of(const std::string & name) {
    const size_t dot = name.rfind('.');
    const std::string extension = dot == std::string::npos ? "" : name.substr(dot);
    for (const media_type & known : MEDIA_TYPES) {
        if (extension == known.extension) {
            return known.type;
        }
    }
    return "application/octet-stream";
}

void append_number(std::string & out, uint32_t value) {
    for (int i = 0; i < 4; i++) {
        out += (char)(value >> (8 * i));
    }
}

std::string etag_of(uint32_t crc) {
    char etag[16];
    snprintf(etag, sizeof(etag), "\"%08x\"", (unsigned)crc);
    return etag;
}

// Deflated bytes are a gzip file but for ten bytes in front and, behind, the checksum and the size
// of what they are inflated (RFC 1952). Browsers inflate the pages, nobody here does.
std::string as_gzip(const std::string & deflated, uint32_t crc, uint64_t size) {
    std::string out("\x1f\x8b\x08\0\0\0\0\0\0\xff", 10);
    out += deflated;
    append_number(out, crc);
    append_number(out, (uint32_t)size);
    return out;
}

uint32_t crc_of(const std::string & content) {
    uint32_t crc = ~0u;
    for (const unsigned char c : content) {
        crc ^= c;
        for (int i = 0; i < 8; i++) {
            crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320 : 0);
        }
    }
    return ~crc;
}

// Deflated into no less: in blocks of the bytes as they are (RFC 1951, section 3.2.4).
std::string as_blocks(const std::string & content) {
    std::string out;
    size_t at = 0;
    do {
        const size_t size = std::min<size_t>(content.size() - at, 0xffff);
        const bool last = at + size == content.size();
        for (const size_t byte : { (size_t)last, size, size >> 8, ~size, ~size >> 8 }) {
            out += (char)byte;
        }
        out.append(content, at, size);
        at += size;
    } while (at < content.size());
    return out;
}

const std::string FOLDER = "ui/";
const std::string PERSONA = "persona.json"; // page.js asks for it, and for every file there is one

} // namespace

const std::vector<llama_ui_asset> & llama_ui_get_assets() {
    static std::vector<std::string> contents;
    static const std::vector<llama_ui_asset> assets = [] {
        std::vector<llama_ui_asset> out;
        contents.reserve(own_container.entries.size() + 1); // the assets point into it
        for (const entry & member : own_container.entries) {
            if (member.deflated && member.name.compare(0, FOLDER.size(), FOLDER) == 0) {
                const std::string & gzip = contents.emplace_back(
                    as_gzip(own_container.read(member), member.crc, member.size));
                const std::string name = member.name.substr(FOLDER.size());
                out.push_back({ name, (const unsigned char *)gzip.data(), gzip.size(),
                                etag_of(member.crc), type_of(name) });
            }
        }
        if (!out.empty()) {
            const std::string text = persona_of(own_container).text;
            const std::string & gzip =
                contents.emplace_back(as_gzip(as_blocks(text), crc_of(text), text.size()));
            out.push_back({ PERSONA, (const unsigned char *)gzip.data(), gzip.size(),
                            etag_of(crc_of(text)), type_of(PERSONA) });
        }
        // Pages need no API key, but upstream forgets the prefix when it looks for their names.
        if (!ui_prefix.empty() && !out.empty()) {
            const std::string folder = ui_prefix.substr(1) + "/";
            for (size_t i = 0, count = out.size(); i < count; i++) {
                llama_ui_asset twin = out[i];
                twin.name.insert(0, folder);
                out.push_back(std::move(twin));
            }
            for (const std::string & name : { folder, ui_prefix.substr(1) }) { // the index
                out.push_back(out.front());
                out.back().name = name;
            }
        }
        return out;
    }();
    return assets;
}

static thread_local bool inflate = false;

const llama_ui_asset * llama_ui_find_asset(const std::string & name) {
    for (const llama_ui_asset & asset : llama_ui_get_assets()) {
        if (asset.name != name) {
            continue;
        }
        const entry * member = own_container.find(FOLDER + name);
        if (!inflate || (member == nullptr && name != PERSONA)) {
            return &asset;
        }
        static thread_local std::string content;
        static thread_local llama_ui_asset inflated;
        content = name == PERSONA ? persona_of(own_container).text : own_container.content(*member);
        inflated = { name, (const unsigned char *)content.data(), content.size(),
                     asset.etag.substr(0, asset.etag.size() - 1) + "-inflated\"", asset.type };
        return &inflated;
    }
    return nullptr;
}

// The server asks for every request, before it looks whether the client takes gzip.
bool llama_ui_use_gzip() {
    inflate = false;
    return true;
}

void llama_ui_inflate() {
    inflate = true;
}
