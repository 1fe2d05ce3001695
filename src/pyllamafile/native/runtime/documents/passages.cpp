#include "documents/passages.h"

#include "container.h"

#include <nlohmann/json.hpp>

#include <cstring>
#include <stdexcept>

namespace {

using json = nlohmann::json;

// passages.py has the same limits.
const uint64_t MOST_TEXT = 64 << 20;
const uint32_t MOST_PASSAGES = 200000;
const uint32_t MOST_DIMENSION = 8192;

const size_t HEADER = 64; // bytes
const size_t ALIGNMENT = 64;

struct header {
    char magic[8];
    uint32_t version, count, dimension, unused;
    uint64_t stored, size, vectors;
};
static_assert(sizeof(header) == 48, "as it stands in the entry, without gaps");

// Whether the parts are where the header says, and nothing else is there.
bool fits(const header & head, uint64_t size) {
    if (memcmp(head.magic, "passages", 8) != 0 || head.version != 1 || head.unused != 0 ||
        head.count == 0 || head.count > MOST_PASSAGES || head.dimension > MOST_DIMENSION ||
        head.size > MOST_TEXT || head.stored > size - HEADER) {
        return false;
    }
    const uint64_t end = HEADER + head.stored;
    if (head.dimension == 0) {
        return head.vectors == 0 && end == size;
    }
    const uint64_t rows = (uint64_t)head.count * head.dimension * sizeof(uint16_t);
    return head.vectors >= end && head.vectors <= size && head.vectors % ALIGNMENT == 0 &&
           size - head.vectors == rows;
}

json parsed(const std::string & text) {
    const auto shallow = [](int depth, json::parse_event_t, json &) { return depth <= 3; };
    return json::parse(text, shallow, false);
}

bool is_passage(const json & row, size_t sources) {
    return row.is_array() && row.size() == 4 && row[0].is_number_unsigned() &&
           row[0].get<uint64_t>() < sources && row[1].is_number_unsigned() &&
           row[1].get<uint64_t>() <= INT32_MAX && row[2].is_string() && row[3].is_string();
}

bool take_texts(const json & said, uint32_t count, passages & out) {
    if (!said.is_object() || !said.contains("sources") || !said["sources"].is_array() ||
        !said.contains("query") || !said["query"].is_string() || !said.contains("passages") ||
        !said["passages"].is_array() || said["passages"].size() != count) {
        return false;
    }
    for (const json & name : said["sources"]) {
        if (!name.is_string()) {
            return false;
        }
        out.sources.push_back(name);
    }
    out.query = said["query"];
    out.all.reserve(count);
    for (const json & row : said["passages"]) {
        if (!is_passage(row, out.sources.size())) {
            return false;
        }
        out.all.push_back({ row[0], row[1], row[2], row[3] });
    }
    return true;
}

// It stands in brackets.
std::string plain(std::string text) {
    for (char & c : text) {
        c = c == '[' ? '(' : c == ']' ? ')' : c;
    }
    return text;
}

} // namespace

std::string passages::label(const passage & of) const {
    const size_t last = of.heading.rfind(" > ");
    const std::string heading =
        last == std::string::npos ? of.heading : of.heading.substr(last + 3);
    const std::string place = of.page > 0 ? "p. " + std::to_string(of.page) : heading;
    return plain(sources[of.source] + (place.empty() ? "" : ", ") + place);
}

passages read_passages(const std::string & bytes) {
    header head = {};
    passages out;
    if (bytes.size() >= HEADER) {
        memcpy(&head, bytes.data(), sizeof(head)); // every target has the lowest byte first
    }
    if (bytes.size() < HEADER || !fits(head, bytes.size()) ||
        !take_texts(parsed(inflated(bytes.data() + HEADER, head.stored, head.size)), head.count,
                    out)) {
        throw std::runtime_error("holds no passages");
    }
    out.dimension = head.dimension;
    out.vectors.resize((size_t)head.count * head.dimension);
    if (head.dimension > 0) {
        memcpy(out.vectors.data(), bytes.data() + head.vectors,
               out.vectors.size() * sizeof(uint16_t));
    }
    return out;
}
