// The entry .documents: read, searched by its words and its vectors, and put in front of a
// question.
#include "documents/library.h"

#include "own.h"
#include "seams/documents.h"
#include "ways.h"

#include <algorithm>
#include <cstring>

void take_documents(const std::string & bytes) {
    own_container = { in_file(bytes),
                      { { ".documents", 0, bytes.size(), bytes.size(), 0, false } } };
    const std::shared_ptr<library> own = open_library();
    if (!own) {
        wrong("what was read has no passages");
    }
    const passages & texts = own->texts;
    const std::string question = texts.query + texts.found_by(texts.all.back());
    for (const ranked & each : own->find(question, MOST_PASSAGES)) {
        if (each.number >= texts.all.size()) {
            wrong("a passage is found that is none");
        }
        texts.label(texts.all[each.number]);
    }
    common_json body;
    body["messages"] = common_json::array();
    body["messages"].push_back({ { "role", "user" }, { "content", question } });
    put_passages_in(body);
    body.dump();
    if (texts.dimension > 0) {
        std::vector<uint32_t> owners; // as in documents/library.cpp
        for (uint32_t i = 0; i < texts.all.size(); i++) {
            owners.insert(owners.end(), texts.all[i].parts, i);
        }
        vector_index vectors(texts.vectors, owners, texts.dimension, 1);
        const scores cosines = vectors.fit(std::vector<float>(texts.dimension, 0.5f));
        merged(word_index({ "a text" }).fit(question), cosines, MOST_PASSAGES);
    }
}

namespace {

struct header {
    char magic[8];
    uint32_t version, count, dimension, unused;
    uint64_t stored, size, vectors;
};

const size_t TEXTS = 64, ALIGNMENT = 64, MOST_BLOCK = 65535;

// Deflated as it is, in blocks of bytes.
std::string stored(const std::string & text) {
    std::string out;
    size_t at = 0;
    do {
        const size_t size = std::min(text.size() - at, MOST_BLOCK);
        out += at + size == text.size() ? '\1' : '\0';
        for (const size_t length : { size, ~size }) {
            out += (char)length;
            out += (char)(length >> 8);
        }
        out += text.substr(at, size);
        at += size;
    } while (at < text.size());
    return out;
}

void change(std::string & bytes, size_t more) {
    const size_t size = bytes.size();
    bytes.resize(size + more);
    bytes.resize(mutate_bytes((uint8_t *)&bytes[0], size, bytes.size(), 0));
}

} // namespace

// Changes the texts or the vectors, and what says how many and how long they are with them.
size_t mutate_documents(uint8_t * data, size_t size, size_t most, unsigned seed) {
    header head;
    if (size >= TEXTS) {
        memcpy(&head, data, sizeof(head));
    }
    if (seed % 8 == 0 || size < TEXTS || head.stored > size - TEXTS) {
        return mutate_bytes(data, size, most, seed);
    }
    std::string text = inflated((const char *)data + TEXTS, head.stored, head.size);
    std::string rows;
    if (head.dimension > 0 && head.vectors <= size) {
        rows.assign((const char *)data + head.vectors, size - head.vectors);
    }
    if (seed % 8 == 1) {
        change(rows, 16);
    } else {
        change(text, 64);
    }
    const std::string between = "],["; // two passages
    head.count = 1;
    for (size_t at = 0; (at = text.find(between, at)) != std::string::npos; at++) {
        head.count++;
    }
    if (seed % 8 == 2) {
        head.dimension = (seed >> 8) % 40;
    }
    rows.resize(std::min<uint64_t>((uint64_t)head.count * head.dimension * 2, most), '\x3c');
    const std::string packed = stored(text);
    head.stored = packed.size();
    head.size = text.size();
    const size_t end = TEXTS + packed.size();
    head.vectors = head.dimension == 0 ? 0 : (end + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    std::string out((const char *)&head, sizeof(head));
    out.resize(TEXTS);
    out += packed;
    out.resize(std::max<size_t>(end, head.vectors));
    out += rows;
    if (out.size() > most) {
        return mutate_bytes(data, size, most, seed);
    }
    memcpy(data, out.data(), out.size());
    return out.size();
}
