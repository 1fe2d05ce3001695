#include "weights.h"

#include "arguments.h"
#include "ggml.h"

#include <algorithm>
#include <cerrno>
#include <cinttypes>
#include <cmath>
#include <cstring>

extern "C" FILE * ggml_fopen_upstream(const char * name, const char * mode);
extern container own_container; // main.cpp

namespace {

bool ends_with(const std::string & text, const std::string & end) {
    return text.size() >= end.size() &&
           text.compare(text.size() - end.size(), end.size(), end) == 0;
}

std::string list(const std::vector<const entry *> & found) {
    std::string out;
    for (const entry * member : found) {
        out += (out.empty() ? "" : ", ") + member->name;
    }
    return out.empty() ? "none" : out;
}

// `name` without `.gguf` will do, and so will the last part of a path inside the zip.
bool means(const std::string & given, const std::string & name) {
    const std::string base = name.substr(name.rfind('/') + 1);
    return given == name || given + ".gguf" == name || given == base || given + ".gguf" == base;
}

// Reads forwards through a range of a file; what lies beyond its end is never read.
class range_reader {
  public:
    range_reader(FILE * file, uint64_t size) : file(file), left(size) {}

    bool read(void * out, size_t size) {
        char * to = (char *)out;
        while (size > 0) {
            if (at == end && !fill()) {
                return false;
            }
            const size_t n = std::min(size, end - at);
            memcpy(to, buffer + at, n);
            to += n;
            at += n;
            size -= n;
        }
        return true;
    }

    template <typename T> bool read(T & out) {
        return read(&out, sizeof(T));
    }

    bool skip(uint64_t size) {
        const uint64_t buffered = std::min<uint64_t>(size, end - at);
        at += buffered;
        size -= buffered;
        if (size == 0) {
            return true;
        }
        if (size > left || !file_seek(file, (int64_t)size, SEEK_CUR)) {
            return false;
        }
        left -= size;
        return true;
    }

    uint64_t remaining() const {
        return left + (end - at);
    }

  private:
    bool fill() {
        const size_t n = fread(buffer, 1, (size_t)std::min<uint64_t>(sizeof(buffer), left), file);
        at = 0;
        end = n;
        left -= n;
        return n > 0;
    }

    FILE * file;
    uint64_t left; // not in the buffer yet
    size_t at = 0;
    size_t end = 0;
    char buffer[64 * 1024];
};

const char TRUNCATED[] = "damaged or cut off: its header ends too early";

// Sizes of the value types of GGUF, by number (ggml/include/gguf.h, enum gguf_type).
const int VALUE_SIZES[] = { 1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8 };
const uint32_t TYPE_UINT32 = 4, TYPE_FLOAT32 = 6, TYPE_BOOL = 7, TYPE_STRING = 8, TYPE_ARRAY = 9,
               TYPE_COUNT = 13;

// Tokens. A hundred times what any model was trained on; a default context of it would take all the
// memory that there is.
const uint32_t MOST_CONTEXT = 1 << 30;

bool skip_string(range_reader & in) {
    uint64_t length;
    return in.read(length) && in.skip(length);
}

bool skip_value(range_reader & in, uint32_t type) {
    if (type == TYPE_STRING) {
        return skip_string(in);
    }
    if (type != TYPE_ARRAY) {
        return type < TYPE_COUNT && in.skip(VALUE_SIZES[type]);
    }
    uint32_t element;
    uint64_t length;
    if (!in.read(element) || !in.read(length) || element >= TYPE_COUNT || element == TYPE_ARRAY ||
        length > in.remaining()) {
        return false;
    }
    if (element != TYPE_STRING) {
        return in.skip(length * VALUE_SIZES[element]);
    }
    for (uint64_t i = 0; i < length; i++) {
        if (!skip_string(in)) {
            return false;
        }
    }
    return true;
}

bool read_string(range_reader & in, std::string & out) {
    uint64_t length;
    if (!in.read(length) || length > std::min<uint64_t>(in.remaining(), 64 * 1024)) {
        return false;
    }
    out.resize(length);
    return in.read(out.data(), length);
}

weights_kind kind_of(const std::string & type, const std::string & architecture) {
    return type == "adapter"                            ? weights_kind::ADAPTER
           : type == "mmproj" || architecture == "clip" ? weights_kind::PROJECTOR
                                                        : weights_kind::MODEL;
}

// The kind alone. Those who write a GGUF begin with its general.* keys, so there is little to read;
// what is damaged passes for a model, and is refused when it is used.
weights_kind kind_at(const std::string & path, uint64_t offset, uint64_t size) {
    const file_ptr file = open_file(path);
    std::string type, architecture, key;
    if (file && file_seek(file.get(), (int64_t)offset)) {
        const auto in = std::make_unique<range_reader>(file.get(), size);
        char head[16]; // magic, version, number of tensors
        uint64_t values = 0;
        if (!in->read(head, sizeof(head)) || memcmp(head, "GGUF", 4) != 0 || !in->read(values)) {
            values = 0;
        }
        for (; values > 0; values--) {
            uint32_t value_type;
            if (!read_string(*in, key) || key.compare(0, 8, "general.") != 0 ||
                !in->read(value_type)) {
                break;
            }
            std::string * wanted = key == "general.type"           ? &type
                                   : key == "general.architecture" ? &architecture
                                                                   : nullptr;
            if (wanted != nullptr && value_type == TYPE_STRING ? !read_string(*in, *wanted)
                                                               : !skip_value(*in, value_type)) {
                break;
            }
        }
    }
    return kind_of(type, architecture);
}

// The name behind @ of the model that drafts for another one, as `.args` have it; else empty.
std::string draft_in(const container & zip) {
    const arguments args = arguments_in(zip);
    std::string out;
    for (size_t i = 0; i + 1 < args.size(); i++) {
        const std::string flag = spelled(args[i]);
        if (flag == "--model-draft" || flag == "--spec-draft-model" || flag == "-md") {
            out = args[i + 1].compare(0, 1, "@") == 0 ? args[i + 1].substr(1) : "";
        }
    }
    return out;
}

// Where the weights are, without a look at them.
std::string locate(const std::string & name, weights & out) {
    const bool own = name.compare(0, 1, "@") == 0 && !own_container.path.empty();
    std::string path = own ? own_container.path + name : name;
    std::string member;
    file_ptr file = open_file(path);
    if (!file) {
        const size_t at = path.rfind('@');
        if (at != std::string::npos) {
            member = path.substr(at + 1);
            path.resize(at);
            file = open_file(path);
        }
    }
    if (!file) {
        return path + ": " + strerror(errno);
    }
    char magic[4] = {};
    if (fread(magic, 1, 4, file.get()) == 0 && ferror(file.get())) {
        return path + ": " + strerror(errno);
    }
    out.path = path;
    if (memcmp(magic, "GGUF", 4) == 0 && member.empty()) {
        if (!file_seek(file.get(), 0, SEEK_END)) {
            return path + ": " + strerror(errno);
        }
        out.offset = 0;
        out.size = (uint64_t)file_tell(file.get());
        return {};
    }
    const bool is_read = path == own_container.path && !own_container.entries.empty();
    container read;
    if (!is_read && !read_container(path, read)) {
        return path + ": neither a GGUF nor a llamafile";
    }
    const container & zip = is_read ? own_container : read;
    std::vector<const entry *> models;
    const entry * chosen = nullptr;
    if (!member.empty()) {
        for (const entry & candidate : zip.entries) {
            const bool model = ends_with(candidate.name, ".gguf") || candidate.name == PROOF ||
                               candidate.name == EMBEDDER;
            if (!candidate.deflated && model && means(member, candidate.name)) {
                chosen = &candidate;
                break;
            }
        }
        if (chosen == nullptr) {
            return path + ": no weights called " + member + " inside; it has " +
                   list(zip.weights());
        }
    } else if ((models = models_in(zip)).empty()) {
        for (const entry & candidate : zip.entries) {
            if (candidate.deflated && ends_with(candidate.name, ".gguf")) {
                return path + ": " + candidate.name +
                       " is compressed inside, and must be stored: zip -0, or pyllamafile zipalign";
            }
        }
        return path + ": no weights inside; name some with -m FILE.gguf";
    } else if (models.size() > 1) {
        return path + ": several models inside; choose one with -m " +
               (path == own_container.path ? "" : path) + "@NAME, where NAME is one of " +
               list(models);
    } else {
        chosen = models[0];
    }
    out.member = chosen->name;
    out.offset = chosen->offset;
    out.size = chosen->size;
    return {};
}

// Architectures that llama.cpp computes that way whatever their header says: it gives them no
// memory (llama_model::create_memory).
const char * const LOOK_AHEAD[] = {
    "bert",     "jina-bert-v2", "jina-bert-v3",     "nomic-bert",  "nomic-bert-moe",
    "neo-bert", "eurobert",     "wavtokenizer-dec", "modern-bert", "gemma-embedding",
    "dream",    "llada",        "llada-moe",        "rnd1",        "t5encoder",
};

// Walks the header of a GGUF (docs/gguf.md of ggml): magic, version, counts, metadata, tensors.
// Leaves in `out` what kind it is, and in `places`, if given, its tensors.
std::string check_header(range_reader & in, weights & out, std::vector<tensor_place> * places) {
    const uint64_t size = in.remaining();
    char magic[4];
    uint32_t version;
    uint64_t tensors;
    uint64_t values;
    if (!in.read(magic, 4) || memcmp(magic, "GGUF", 4) != 0) {
        return "not a GGUF";
    }
    if (!in.read(version) || !in.read(tensors) || !in.read(values)) {
        return TRUNCATED;
    }
    if (version != 2 && version != 3) {
        return (version & 0xffff) == 0
                   ? "a big-endian GGUF, which this program can't read"
                   : "GGUF version " + std::to_string(version) + ", which this program can't read";
    }
    std::string kind;
    out.architecture.clear();
    out.embeds = false;
    out.chats = false;
    out.looks_ahead = false;
    out.alignment = 32;
    out.context = 0;
    out.layers = 0;
    for (uint64_t i = 0; i < values; i++) {
        std::string key;
        uint32_t type;
        if (!read_string(in, key) || !in.read(type)) {
            return TRUNCATED;
        }
        out.embeds = out.embeds || ends_with(key, ".pooling_type");
        out.chats = out.chats || key == "tokenizer.chat_template";
        if (key == "general.alignment" && type == TYPE_UINT32) {
            const uint32_t & given = out.alignment;
            if (!in.read(out.alignment) || given == 0 || (given & (given - 1)) != 0) {
                return "damaged: its alignment is no power of two";
            }
        } else if (key == "general.alignment") {
            return "damaged: its alignment is no uint32";
        } else if (ends_with(key, ".context_length") && type == TYPE_UINT32) {
            if (!in.read(out.context)) {
                return TRUNCATED;
            }
            if (out.context == 0 || out.context > MOST_CONTEXT) {
                return "damaged: " + key + " is " + std::to_string(out.context);
            }
        } else if (key == out.architecture + ".block_count" && type == TYPE_UINT32) {
            if (!in.read(out.layers)) {
                return TRUNCATED;
            }
        } else if (ends_with(key, ".attention.causal") && type == TYPE_BOOL) {
            uint8_t causal;
            if (!in.read(causal)) {
                return TRUNCATED;
            }
            out.looks_ahead = causal == 0;
        } else if (ends_with(key, "_epsilon") && type == TYPE_FLOAT32) {
            float epsilon;
            if (!in.read(epsilon)) {
                return TRUNCATED;
            }
            if (!(epsilon >= 0) || std::isinf(epsilon)) { // ggml aborts when it computes
                return "damaged: " + key + " is " + std::to_string(epsilon);
            }
        } else if (key == "general.type" && type == TYPE_STRING) {
            if (!read_string(in, kind)) {
                return TRUNCATED;
            }
        } else if (key == "general.architecture" && type == TYPE_STRING) {
            if (!read_string(in, out.architecture)) {
                return TRUNCATED;
            }
        } else if (!skip_value(in, type)) {
            return TRUNCATED;
        }
    }
    out.kind = kind_of(kind, out.architecture);
    for (const char * architecture : LOOK_AHEAD) {
        out.looks_ahead = out.looks_ahead || out.architecture == architecture;
    }
    uint64_t data = 0; // bytes of tensors, from the start of the data
    for (uint64_t i = 0; i < tensors; i++) {
        std::string name;
        uint32_t dimensions;
        uint64_t shape[GGML_MAX_DIMS] = { 1, 1, 1, 1 };
        uint32_t type;
        uint64_t offset;
        if (!read_string(in, name) || !in.read(dimensions) || dimensions > GGML_MAX_DIMS ||
            !in.read(shape, dimensions * sizeof(shape[0])) || !in.read(type) || !in.read(offset)) {
            return TRUNCATED;
        }
        if (type >= GGML_TYPE_COUNT || ggml_blck_size((ggml_type)type) == 0) {
            return "made for a newer llama.cpp: tensor " + name + " has type " +
                   std::to_string(type);
        }
        if (shape[0] % (uint64_t)ggml_blck_size((ggml_type)type) != 0) {
            return "damaged: the rows of tensor " + name + " are no whole blocks";
        }
        // ggml multiplies all sizes but zero, and aborts where that overflows.
        uint64_t rows = 1, extent = 1;
        bool fits = shape[0] <= size * 64; // 64 elements a byte is denser than any type
        for (int d = 1; d < GGML_MAX_DIMS; d++) {
            fits = fits && (shape[d] == 0 || extent <= size / shape[d]);
            extent *= fits && shape[d] != 0 ? shape[d] : 1;
            rows *= fits ? shape[d] : 1;
        }
        const uint64_t row = fits ? ggml_row_size((ggml_type)type, (int64_t)shape[0]) : 0;
        if (!fits || (row > 0 && rows > size / row) || offset > size) {
            return "damaged or cut off: tensor " + name + " reaches past its end";
        }
        data = std::max(data, offset + row * rows);
        if (places != nullptr) {
            places->push_back({ name, type, offset, row * rows, shape[0], shape[1] });
        }
    }
    const uint64_t header = size - in.remaining();
    const uint64_t start = (header + out.alignment - 1) / out.alignment * out.alignment;
    if (data > 0 && (start > size || data > size - start)) {
        return "cut off: " + std::to_string(data + start - size) +
               " bytes of its tensors are missing";
    }
    for (size_t i = 0; places != nullptr && i < places->size(); i++) {
        (*places)[i].offset += out.offset + start;
    }
    return {};
}

} // namespace

std::vector<const entry *> models_in(const container & zip) {
    const std::string draft = draft_in(zip);
    std::vector<const entry *> out;
    for (const entry * member : zip.weights()) {
        if ((draft.empty() || !means(draft, member->name)) &&
            kind_at(zip.path, member->offset, member->size) == weights_kind::MODEL) {
            out.push_back(member);
        }
    }
    return out;
}

std::string find_weights(const std::string & name, weights & out,
                         std::vector<tensor_place> * tensors) {
    std::string problem = locate(name, out);
    if (!problem.empty()) {
        return problem;
    }
    const file_ptr file = open_file(out.path);
    if (!file || !file_seek(file.get(), (int64_t)out.offset)) {
        return out.path + ": " + strerror(errno);
    }
    const auto in = std::make_unique<range_reader>(file.get(), out.size);
    problem = check_header(*in, out, tensors);
    return problem.empty() ? problem : out.name() + ": " + problem;
}

// Takes the place of ggml's function of this name (CMakeLists.txt renames that one). llama.cpp
// reads a GGUF from wherever the FILE stands, so weights inside a llamafile are a matter of
// standing at their first byte.
extern "C" FILE * ggml_fopen(const char * name, const char * mode) {
    if (strcmp(mode, "rb") != 0) {
        return ggml_fopen_upstream(name, mode);
    }
    weights found;
    if (!locate(name, found).empty()) {
        return ggml_fopen_upstream(name, mode); // other files are read as they are
    }
    file_ptr file = open_file(found.path);
    if (!file || !file_seek(file.get(), (int64_t)found.offset)) {
        return nullptr;
    }
    return file.release();
}

std::string file_of_weights(const std::string & name) {
    weights found;
    return locate(name, found).empty() ? found.path : name;
}
