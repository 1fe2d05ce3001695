// What this file can look up, and what of it fits a question.
#pragma once

#include "documents/embedder.h"
#include "documents/passages.h"
#include "documents/ranking.h"

#include <future>
#include <memory>
#include <mutex>

class library {
  public:
    // Of passages that have vectors they are compared as well, if `embedder` names the model that
    // made them. What can't be used of it is said in the log.
    library(passages texts, const std::string & embedder);

    // The best first. Those that say word for word what a better one says come last.
    std::vector<ranked> find(const std::string & question, size_t most);

    const passages texts;

  private:
    std::future<word_index> words; // made while the server loads its model
    std::unique_ptr<word_index> index;
    std::unique_ptr<embedder> model;
    std::unique_ptr<vector_index> vectors;
    std::mutex mutex;
};

// Of this process's own file, which is read the first time; null if there is none, or it is not
// wanted. Throws std::runtime_error where the entry is damaged. It lives as long as somebody has
// it.
std::shared_ptr<library> open_library();

// The one that is open; null if none is.
std::shared_ptr<library> current_library();

// Passages that one question gets, unless it asks for more or less.
const size_t PASSAGES = 4;
const size_t MOST_PASSAGES = 20;

// No question gets more, because the context has no room.
void bound_passages(size_t most);
