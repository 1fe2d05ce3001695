// The passages that a file can look up: its entry .documents (launcher/FORMAT.md, section 11).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

struct passage {
    uint32_t source = 0; // which of the documents
    uint32_t page = 0;   // from 1; 0 where there are none
    uint32_t parts = 1;  // that have a vector each, where there are vectors
    std::string heading; // those above it, the outermost first
    std::string text;
};

struct passages {
    std::vector<std::string> sources; // the names of the documents
    std::string query;                // in front of a question that becomes a vector
    std::vector<passage> all;
    uint32_t dimension = 0;        // of their vectors; 0: there are none
    std::vector<uint16_t> vectors; // of each part a row, in halves of floats

    // How an answer names a passage: "handbook.md, p. 12", or by the heading next to it.
    std::string label(const passage & of) const;

    // What a passage is found by: the name of its document, its headings, and its text.
    std::string found_by(const passage & one) const;
};

// Throws std::runtime_error where the bytes are no such entry; nothing in it is believed before.
passages read_passages(const std::string & bytes);
