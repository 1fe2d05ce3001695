// Vectors of texts, by a model for embeddings.
#pragma once

#include "llama-cpp.h"

#include <string>
#include <vector>

class embedder {
  public:
    // `name` is one for find_weights. Throws std::runtime_error where the model can't be loaded, or
    // makes no vectors.
    embedder(const std::string & name, int threads);

    size_t dimension() const;

    // Of the length 1. Of a text too long for the model its beginning counts. Not to be called by
    // two threads at once.
    std::vector<float> vector_of(const std::string & text);

  private:
    const std::string name;
    llama_model_ptr model;
    llama_context_ptr context;
};

// Writes to standard output the vectors of texts, which stand in a file as lines of JSON: their
// dimension in 4 bytes, and their numbers in 4 bytes each. `build` asks for it.
int embed_texts(const std::string & name, const std::string & file);
