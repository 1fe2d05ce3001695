// Models by name: FILE.gguf, FILE.llamafile, FILE.llamafile@MEMBER.gguf, or @MEMBER.gguf of this
// program's own llamafile.
#pragma once

#include "container.h"

#include <cstdint>
#include <string>
#include <vector>

// The entry that --prove computes with: a GGUF, and none of the models that a file is for.
const char PROOF[] = "proof.model";

// The one that makes vectors of questions about the file's documents; it is none of them, either.
const char EMBEDDER[] = "embedder.model";

// What a GGUF is for: to talk with, or to go with such a one. A projector turns images or sound
// into what a model reads.
enum class weights_kind { MODEL, ADAPTER, PROJECTOR };

struct weights {
    std::string path;   // the file that holds them
    std::string member; // the entry's name, empty when the file is a bare GGUF
    uint64_t offset;    // where the GGUF starts in the file
    uint64_t size;      // its bytes
    weights_kind kind;
    std::string architecture;
    bool embeds;        // a model that is made for embeddings
    bool chats;         // one that says how conversations are written for it
    bool looks_ahead;   // a token of it attends to those behind it, too
    uint32_t alignment; // of its tensors, bytes
    uint32_t context;   // that it was trained on, tokens; 0 if it doesn't say
    uint32_t layers;    // 0 if it doesn't say

    // ggml maps tensors only at multiples of this (ggml-impl.h).
    static const uint64_t TENSOR_ALIGNMENT = 32;
    bool mappable() const {
        return offset % TENSOR_ALIGNMENT == 0 && alignment % TENSOR_ALIGNMENT == 0;
    }

    // What to hand to llama.cpp so that it finds the same bytes, and the parts of a split
    // model beside them.
    std::string name() const {
        return member.empty() ? path : path + "@" + member;
    }
};

// The models of a zip, in its directory's order: stored `.gguf` entries, without the later parts of
// a split one, adapters, projectors, and the draft that its `.args` name for another.
std::vector<const entry *> models_in(const container & zip);

// One of the tensors of weights, as their header has them.
struct tensor_place {
    std::string name;
    uint32_t type;          // enum ggml_type
    uint64_t offset;        // in the file
    uint64_t size;          // bytes
    uint64_t columns, rows; // of each of its matrices; of a vector there is one row
};

// Finds the weights that a name means and walks through their header. Returns what is wrong,
// in one line, or an empty string; the header is checked so that a damaged file is refused
// here, with a reason, and not somewhere deep inside llama.cpp. `tensors` gets what the weights are
// made of, in the order of the header.
std::string find_weights(const std::string & name, weights & out,
                         std::vector<tensor_place> * tensors = nullptr);

// The file that holds what a name means, and nothing but its path where that is a file by itself:
// for those who open a GGUF again to read from places that they know.
std::string file_of_weights(const std::string & name);

// What tells weights from others without reading all of them: the digests that the manifest of
// their llamafile has of them and of their other parts, or else where they are, and the size and
// the date of that file. Empty if there are none.
std::string identity_of_weights(const std::string & name);
