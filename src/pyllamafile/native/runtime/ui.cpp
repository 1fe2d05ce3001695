#include "seams/ui.h"

#include "container.h"

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

// A deflated zip entry is a gzip file but for ten bytes in front and, behind, the checksum
// and the size that the directory knows (RFC 1952): browsers inflate it, nobody here does.
std::string as_gzip(const entry & member, const std::string & deflated) {
    std::string out("\x1f\x8b\x08\0\0\0\0\0\0\xff", 10);
    out += deflated;
    append_number(out, member.crc);
    append_number(out, (uint32_t)member.size);
    return out;
}

const std::string FOLDER = "ui/";

} // namespace

const std::vector<llama_ui_asset> & llama_ui_get_assets() {
    static std::vector<std::string> contents;
    static const std::vector<llama_ui_asset> assets = [] {
        std::vector<llama_ui_asset> out;
        contents.reserve(own_container.entries.size()); // the assets point into it
        for (const entry & member : own_container.entries) {
            if (member.deflated && member.name.compare(0, FOLDER.size(), FOLDER) == 0) {
                const std::string & gzip =
                    contents.emplace_back(as_gzip(member, own_container.read(member)));
                const std::string name = member.name.substr(FOLDER.size());
                char etag[16];
                snprintf(etag, sizeof(etag), "\"%08x\"", (unsigned)member.crc);
                out.push_back(
                    { name, (const unsigned char *)gzip.data(), gzip.size(), etag, type_of(name) });
            }
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
        if (!inflate || member == nullptr) {
            return &asset;
        }
        static thread_local std::string content;
        static thread_local llama_ui_asset inflated;
        content = own_container.content(*member);
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
