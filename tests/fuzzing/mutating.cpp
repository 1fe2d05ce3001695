#include "mutating.h"

#include "ggml.h"

#include <algorithm>
#include <cstring>
#include <random>

extern "C" size_t LLVMFuzzerMutate(uint8_t * data, size_t size, size_t most);

namespace {

using bytes = std::string;

enum { UINT32 = 4, INT32 = 5, FLOAT32 = 6, BOOL = 7, STRING = 8, ARRAY = 9, TYPES = 13 };
const size_t SIZES[TYPES] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
const size_t MOST_ELEMENTS = 1 << 16;

// None of a type that there isn't.
size_t size_of(uint32_t type) {
    return type < TYPES ? SIZES[type] : 0;
}

struct value {
    bytes key;
    uint32_t type = 0;
    uint32_t element = 0;        // of an array
    std::vector<bytes> elements; // one, if it is no array; without a string's length
};

struct tensor {
    bytes name;
    std::vector<uint64_t> shape;
    uint32_t type = 0;
    uint64_t offset = 0;
};

struct model {
    uint32_t version = 3;
    std::vector<value> values;
    std::vector<tensor> tensors;
    bytes data;
};

class reader {
  public:
    reader(const uint8_t * data, size_t size) : data((const char *)data), size(size) {}

    bytes take(uint64_t count) {
        if (count > size - at) {
            failed = true;
            return {};
        }
        at += count;
        return bytes(data + at - count, count);
    }

    template <typename T> T number() {
        T out{};
        const bytes raw = take(sizeof(T));
        if (!failed) {
            memcpy(&out, raw.data(), sizeof(T));
        }
        return out;
    }

    bytes element(uint32_t type) {
        if (type == STRING) {
            return take(number<uint64_t>());
        }
        failed = failed || type >= TYPES || type == ARRAY;
        return failed ? bytes() : take(size_of(type));
    }

    const char * data;
    size_t size, at = 0;
    bool failed = false;
};

bool parse(const uint8_t * data, size_t size, model & out) {
    reader in(data, size);
    if (in.take(4) != "GGUF") {
        return false;
    }
    out.version = in.number<uint32_t>();
    const auto tensors = in.number<uint64_t>(), values = in.number<uint64_t>();
    for (uint64_t i = 0; i < values && !in.failed; i++) {
        value it;
        it.key = in.element(STRING);
        it.type = in.number<uint32_t>();
        uint64_t count = 1;
        if (it.type == ARRAY) {
            it.element = in.number<uint32_t>();
            count = in.number<uint64_t>();
        }
        for (uint64_t e = 0; e < count && !in.failed; e++) {
            it.elements.push_back(in.element(it.type == ARRAY ? it.element : it.type));
        }
        out.values.push_back(it);
    }
    for (uint64_t i = 0; i < tensors && !in.failed; i++) {
        tensor it;
        it.name = in.element(STRING);
        const auto dimensions = in.number<uint32_t>();
        for (uint32_t d = 0; d < dimensions && !in.failed; d++) {
            it.shape.push_back(in.number<uint64_t>());
        }
        it.type = in.number<uint32_t>();
        it.offset = in.number<uint64_t>();
        out.tensors.push_back(it);
    }
    const size_t start = (in.at + 31) / 32 * 32;
    out.data = start < size ? bytes((const char *)data + start, size - start) : bytes();
    return !in.failed;
}

template <typename T> void put(bytes & out, T number) {
    out.append((const char *)&number, sizeof(T));
}

void put_text(bytes & out, const bytes & text) {
    put<uint64_t>(out, text.size());
    out += text;
}

bytes written(const model & from) {
    bytes out = "GGUF";
    put(out, from.version);
    put<uint64_t>(out, from.tensors.size());
    put<uint64_t>(out, from.values.size());
    for (const value & it : from.values) {
        put_text(out, it.key);
        put(out, it.type);
        if (it.type == ARRAY) {
            put(out, it.element);
            put<uint64_t>(out, it.elements.size());
        }
        const uint32_t type = it.type == ARRAY ? it.element : it.type;
        for (const bytes & element : it.elements) {
            type == STRING ? put_text(out, element) : (void)(out += element);
        }
    }
    for (const tensor & it : from.tensors) {
        put_text(out, it.name);
        put<uint32_t>(out, it.shape.size());
        for (const uint64_t extent : it.shape) {
            put(out, extent);
        }
        put(out, it.type);
        put(out, it.offset);
    }
    out.resize((out.size() + 31) / 32 * 32);
    return out + from.data;
}

class mutator {
  public:
    mutator(model & it, unsigned seed, const dictionary & known)
        : it(it), known(known), chance(seed) {}

    void mutate() {
        do {
            any() < 3 && !it.tensors.empty() ? change_tensor() : change_value();
        } while (any() < 4);
        if (any() < 8) {
            lay_out();
        }
    }

  private:
    model & it;
    const dictionary & known;
    std::minstd_rand chance;

    unsigned any(size_t most = 10) {
        return most == 0 ? 0 : chance() % most;
    }

    template <typename T> T & one_of(std::vector<T> & from) {
        return from[any(from.size())];
    }
    template <typename T> const T & one_of(const std::vector<T> & from) {
        return from[any(from.size())];
    }

    bytes changed(bytes text) {
        const size_t size = text.size();
        text.resize(size + 16);
        text.resize(LLVMFuzzerMutate((uint8_t *)&text[0], size, text.size()));
        return text;
    }

    uint64_t number(uint64_t old) {
        static const uint64_t ODD[] = { 0,
                                        1,
                                        2,
                                        3,
                                        5,
                                        7,
                                        8,
                                        16,
                                        31,
                                        32,
                                        33,
                                        64,
                                        127,
                                        128,
                                        255,
                                        256,
                                        511,
                                        512,
                                        513,
                                        1024,
                                        4096,
                                        32767,
                                        65535,
                                        65536,
                                        0x7fffffff,
                                        0x80000000,
                                        0xffffffff,
                                        0x100000000,
                                        0x7fffffffffffffff,
                                        0x8000000000000000,
                                        0xffffffffffffffff };
        switch (any(6)) {
        case 0:
            return old + 1;
        case 1:
            return old - 1;
        case 2:
            return old * 2;
        case 3:
            return old / 2;
        case 4:
            return any(40);
        default:
            return ODD[any(std::size(ODD))];
        }
    }

    bytes scalar(uint32_t type, const bytes & old) {
        uint64_t was = 0;
        memcpy(&was, old.data(), std::min(old.size(), sizeof(was)));
        uint64_t now = number(was);
        if (type == FLOAT32) {
            static const float ODD[] = { 0,     1,     -1,     1e-5f,    0.5f,      2,   10000,
                                         1e30f, -1e9f, 1e-38f, INFINITY, -INFINITY, NAN, 16 };
            const float number = ODD[any(std::size(ODD))];
            now = 0;
            memcpy(&now, &number, sizeof(number));
        } else if (type == BOOL) {
            now = any(20) == 0 ? now : any(2);
        }
        return bytes((const char *)&now, size_of(type));
    }

    bytes element(uint32_t type, const bytes & old) {
        if (type != STRING) {
            return scalar(type, old);
        }
        switch (any(5)) {
        case 0:
            return one_of(known.words);
        case 1:
            return "";
        default:
            return changed(old);
        }
    }

    uint32_t other_type() {
        static const uint32_t USUAL[] = { UINT32, INT32, FLOAT32, BOOL, STRING };
        if (any() < 7) {
            return USUAL[any(std::size(USUAL))];
        }
        const uint32_t type = any(TYPES);
        return type == ARRAY ? (uint32_t)STRING : type;
    }

    // Elements of one type as those of another, as far as they have something in common.
    void retype(value & what, uint32_t type) {
        for (bytes & text : what.elements) {
            if (type != STRING) {
                text.resize(size_of(type));
            }
        }
        (what.type == ARRAY ? what.element : what.type) = type;
    }

    bytes architecture() {
        for (const value & each : it.values) {
            if (each.key == "general.architecture" && each.type == STRING) {
                return each.elements[0];
            }
        }
        return "llama";
    }

    // With all keys that are named after it.
    void change_architecture() {
        const bytes old = architecture(), now = one_of(known.architectures);
        for (value & each : it.values) {
            if (each.key == "general.architecture") {
                each = { each.key, STRING, 0, { now } };
            } else if (each.key.compare(0, old.size() + 1, old + ".") == 0) {
                each.key = now + each.key.substr(old.size());
            }
        }
    }

    void add_value() {
        bytes key = one_of(known.keys);
        const size_t place = key.find("%s");
        if (place != bytes::npos) {
            key.replace(place, 2, architecture());
        }
        value added{ key, other_type(), 0, { "" } };
        retype(added, added.type);
        added.elements[0] = element(added.type, added.elements[0]);
        for (value & each : it.values) {
            if (each.key == key) {
                each = added;
                return;
            }
        }
        it.values.push_back(added);
    }

    void change_array(value & what) {
        std::vector<bytes> & all = what.elements;
        switch (any(6)) {
        case 0:
            all.resize(any(all.size() + 1));
            break;
        case 1:
            for (size_t more = 1 + any(40); more > 0 && all.size() < MOST_ELEMENTS; more--) {
                all.push_back(all.empty()
                                  ? element(what.element, bytes(size_of(what.element), '\0'))
                                  : bytes(all[any(all.size())]));
            }
            break;
        case 2:
            retype(what, other_type());
            break;
        default:
            if (!all.empty()) {
                bytes & chosen = one_of(all);
                chosen = any(3) == 0 ? bytes(one_of(all)) : element(what.element, chosen);
            }
        }
    }

    void change_value() {
        if (it.values.empty() || any(12) == 0) {
            add_value();
            return;
        }
        const size_t which = any(it.values.size());
        value & what = it.values[which];
        switch (any(24)) {
        case 0:
            it.values.erase(it.values.begin() + (long)which);
            return;
        case 1:
            change_architecture();
            return;
        case 2:
            what.key = any(4) == 0 ? changed(what.key) : it.values[any(it.values.size())].key;
            return;
        case 3: // a number for all layers becomes one for each, and the other way round
            if (what.type == ARRAY) {
                what.type = what.element;
                what.elements.resize(1);
                retype(what, what.type);
            } else {
                what.element = what.type;
                what.type = ARRAY;
                what.elements.resize(any(6), what.elements[0]);
            }
            return;
        case 4:
            retype(what, other_type());
            return;
        case 5:
            add_value();
            return;
        default:
            if (what.type == ARRAY) {
                change_array(what);
            } else {
                what.elements[0] = element(what.type, what.elements[0]);
            }
        }
    }

    void change_tensor() {
        const size_t which = any(it.tensors.size());
        tensor & what = it.tensors[which];
        switch (any(9)) {
        case 0:
            it.tensors.erase(it.tensors.begin() + (long)which);
            return;
        case 1:
            what.name = it.tensors[any(it.tensors.size())].name;
            return;
        case 2:
            what.name = changed(what.name).substr(0, 70);
            return;
        case 3:
            what.type = any(GGML_TYPE_COUNT);
            return;
        case 4:
            what.offset =
                any(2) == 0 ? it.tensors[any(it.tensors.size())].offset : number(what.offset);
            return;
        case 5:
            what.shape.resize(any(6), 1);
            return;
        case 6:
            std::reverse(what.shape.begin(), what.shape.end());
            return;
        case 7:
            it.tensors.push_back(what);
            it.tensors.back().name = changed(what.name).substr(0, 63);
            return;
        default:
            if (!what.shape.empty()) {
                uint64_t & extent = one_of(what.shape);
                extent = number(extent);
            }
        }
    }

    // Gives every tensor a place of its size, as the readers want it.
    void lay_out() {
        size_t at = 0;
        for (tensor & what : it.tensors) {
            const bool known_type = what.type < GGML_TYPE_COUNT && what.shape.size() <= 4 &&
                                    ggml_blck_size((ggml_type)what.type) > 0;
            size_t rows = 1;
            for (size_t d = 1; d < what.shape.size(); d++) {
                rows *= std::min<uint64_t>(what.shape[d], 1 << 16);
            }
            const size_t row = what.shape.empty() ? 1 : std::min<uint64_t>(what.shape[0], 1 << 20);
            what.offset = at;
            at += known_type ? ggml_row_size((ggml_type)what.type, (int64_t)row) * rows : 0;
            at = (at + 31) / 32 * 32;
        }
        const size_t old = it.data.size();
        it.data.resize(std::min<size_t>(at, 256 * 1024), '\x3c'); // a small number in every type
        if (any(20) == 0 && old > 0) {
            it.data[any(it.data.size())] ^= (char)(1 << any(8));
        }
    }
};

} // namespace

size_t mutate_gguf(uint8_t * data, size_t size, size_t most, unsigned seed,
                   const dictionary & known) {
    model parsed;
    if (seed % 16 == 0 || !parse(data, size, parsed)) {
        return LLVMFuzzerMutate(data, size, most);
    }
    mutator(parsed, seed, known).mutate();
    const bytes out = written(parsed);
    if (out.size() > most) {
        return LLVMFuzzerMutate(data, size, most);
    }
    memcpy(data, out.data(), out.size());
    return out.size();
}
