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

// Of each passage how well it fits; NO_SCORE where that is not known.
using scores = std::vector<float>;
const float NO_SCORE = -2; // less than any cosine

// BM25 (Robertson and Zaragoza, 2009) over texts, as a share of what the question's words weigh: a
// text of the mean length that has each of them once has 1, and one that has none 0.
class word_index {
  public:
    explicit word_index(const std::vector<std::string> & texts);

    scores fit(const std::string & question) const;

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
    // `rows` are halves of floats; `owners` has of each row the number of its passage.
    vector_index(const std::vector<uint16_t> & rows, std::vector<uint32_t> owners,
                 uint32_t dimension, int threads);

    // By the cosine of the angle, as all have the length 1. Of a passage's vectors the best counts.
    scores fit(const std::vector<float> & question);

  private:
    const std::vector<uint32_t> owners;
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

// The best by both: those that share a word with the question, and those whose vector is known.
// There may be no scores by vectors.
std::vector<ranked> merged(const scores & by_words, const scores & by_vectors, size_t most);
