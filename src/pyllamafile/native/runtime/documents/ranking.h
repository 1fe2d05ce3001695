// Which passages fit a question: by its words, by its vector, and by both.
#pragma once

#include "ggml-cpp.h"

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

// A text's words as they are compared: in lower case, without accents, in the singular as far as
// English has one. A letter of a script without spaces is a word.
std::vector<std::string> words_of(const std::string & text);

// Numbers of passages, the best first.
using ranking = std::vector<uint32_t>;

// BM25 (Robertson and Zaragoza, 2009) over texts.
class word_index {
  public:
    explicit word_index(const std::vector<std::string> & texts);

    // Those that share a word with the question.
    ranking find(const std::string & question, size_t most) const;

  private:
    struct posting {
        uint32_t text, times;
    };
    std::unordered_map<std::string, uint32_t> numbers; // of words
    std::vector<std::vector<posting>> postings;
    std::vector<float> weights; // of texts, by their lengths
};

// A matrix with a vector in each row, and its product with a vector: exact, by ggml's kernels.
class vector_index {
  public:
    // `rows` are halves of floats.
    vector_index(const std::vector<uint16_t> & rows, uint32_t dimension, int threads);

    // By the cosine of the angle, as all have the length 1.
    ranking find(const std::vector<float> & question, size_t most);

  private:
    ggml_backend_ptr backend;
    ggml_context_ptr context;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor * question = nullptr;
    ggml_tensor * product = nullptr;
    ggml_cgraph * graph = nullptr;
};

struct ranked {
    uint32_t number;
    double score;
};

// Reciprocal rank fusion (Cormack, Clarke and Büttcher, 2009).
std::vector<ranked> merged(const std::vector<ranking> & rankings, size_t most);
