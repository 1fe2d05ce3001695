#include "documents/passages.h"

#include "container.h"

#include <nlohmann/json.hpp>

#include <algorithm>
#include <cstring>
#include <set>
#include <stdexcept>

namespace {

using json = nlohmann::json;

// passages.py has the same limits.
const uint64_t MOST_TEXT = 64 << 20;
const uint32_t MOST_PASSAGES = 200000;
const uint32_t MOST_DIMENSION = 8192;
const uint32_t MOST_VECTORS = 2000000;

const size_t HEADER = 64; // bytes
const size_t ALIGNMENT = 64;

struct header {
    char magic[8];
    uint32_t version, count, dimension, parts;
    uint64_t stored, size, vectors;
};
static_assert(sizeof(header) == 48, "as it stands in the entry, without gaps");

uint64_t rows_of(const header & head) {
    return head.parts > 0 ? head.parts : head.count;
}

// Whether all is where the header says, and nothing else is there.
bool fits(const header & head, uint64_t size) {
    const bool in_parts = head.version == 2 && head.dimension > 0 && head.parts >= head.count &&
                          head.parts <= MOST_VECTORS;
    if (memcmp(head.magic, "passages", 8) != 0 ||
        !(in_parts || (head.version == 1 && head.parts == 0)) || head.count == 0 ||
        head.count > MOST_PASSAGES || head.dimension > MOST_DIMENSION || head.size > MOST_TEXT ||
        head.stored > size - HEADER) {
        return false;
    }
    const uint64_t end = HEADER + head.stored;
    if (head.dimension == 0) {
        return head.vectors == 0 && end == size;
    }
    return head.vectors >= end && head.vectors <= size && head.vectors % ALIGNMENT == 0 &&
           size - head.vectors == rows_of(head) * head.dimension * sizeof(uint16_t);
}

// Takes the texts as they are parsed: in a tree of its own JSON takes many times its size.
class texts_reader : public json::json_sax_t {
  public:
    // `in_parts`: each passage says how many it has.
    texts_reader(passages & out, bool in_parts) : out(out), fields(in_parts ? 5 : 4) {}

    // Whether all is there, once it was parsed.
    bool complete(uint32_t count, uint64_t rows) const {
        uint64_t parts = 0;
        for (const passage & each : out.all) {
            parts += each.parts;
        }
        const auto is_of_one = [this](const passage & each) {
            return each.source < out.sources.size();
        };
        return seen == std::set<std::string>{ "sources", "query", "passages" } &&
               out.all.size() == count && parts == rows &&
               std::all_of(out.all.begin(), out.all.end(), is_of_one);
    }

    bool start_object(size_t) override {
        return depth++ == 0;
    }
    bool end_object() override {
        depth--;
        return true;
    }
    bool key(std::string & name) override {
        part = name;
        return seen.insert(name).second;
    }
    bool start_array(size_t) override {
        const bool outer = depth == 1 && (part == "sources" || part == "passages");
        if (depth == 2 && part == "passages") {
            out.all.emplace_back();
            field = 0;
        } else if (!outer) {
            return false;
        }
        depth++;
        return true;
    }
    bool end_array() override {
        return --depth == 1 || field == fields;
    }
    bool string(std::string & text) override {
        if (depth == 1 && part == "query") {
            out.query = std::move(text);
        } else if (depth == 2 && part == "sources") {
            out.sources.push_back(std::move(text));
        } else if (depth == 3 && (field == 2 || field == 3)) {
            (field++ == 2 ? out.all.back().heading : out.all.back().text) = std::move(text);
        } else {
            return false;
        }
        return true;
    }
    bool number_unsigned(uint64_t value) override {
        const bool part = field == 4 && fields == 5 && value > 0;
        if (depth != 3 || (field > 1 && !part) || value > INT32_MAX) {
            return false;
        }
        passage & one = out.all.back();
        (field == 0 ? one.source : field == 1 ? one.page : one.parts) = (uint32_t)value;
        field++;
        return true;
    }

    bool null() override {
        return false;
    }
    bool boolean(bool) override {
        return false;
    }
    bool number_integer(int64_t) override {
        return false; // a negative one
    }
    bool number_float(double, const std::string &) override {
        return false;
    }
    bool binary(json::binary_t &) override {
        return false;
    }
    bool parse_error(size_t, const std::string &, const nlohmann::detail::exception &) override {
        return false;
    }

  private:
    passages & out;
    const int fields; // of a passage
    std::set<std::string> seen;
    std::string part;
    int depth = 0;
    int field = 0;
};

bool take_texts(const std::string & text, const header & head, passages & out) {
    texts_reader reader(out, head.parts > 0);
    return json::sax_parse(text, &reader) && reader.complete(head.count, rows_of(head));
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

std::string passages::found_by(const passage & one) const {
    const std::string & source = sources[one.source];
    const std::string name = source.substr(source.rfind('/') + 1);
    const size_t end = name.rfind('.');
    return (end == 0 ? name : name.substr(0, end)) + "\n" + one.heading + "\n" + one.text;
}

passages read_passages(const std::string & bytes) {
    header head = {};
    passages out;
    if (bytes.size() >= HEADER) {
        memcpy(&head, bytes.data(), sizeof(head)); // every target has the lowest byte first
    }
    if (bytes.size() < HEADER || !fits(head, bytes.size()) ||
        !take_texts(inflated(bytes.data() + HEADER, head.stored, head.size), head, out)) {
        throw std::runtime_error("holds no passages");
    }
    out.dimension = head.dimension;
    out.vectors.resize((size_t)rows_of(head) * head.dimension);
    if (head.dimension > 0) {
        memcpy(out.vectors.data(), bytes.data() + head.vectors,
               out.vectors.size() * sizeof(uint16_t));
    }
    return out;
}
