// In front of upstream's llama-vocab.cpp: a byte that the vocabulary has no token for.
#pragma once

#include <cstdint>
#include <cstdio>
#include <stdexcept>
#include <string>

// Throws std::runtime_error that says which.
template <typename Tokens>
static int32_t token_of_byte(const Tokens & tokens, uint8_t byte, const std::string & text) {
    const auto found = tokens.find(text);
    if (found == tokens.end()) {
        char name[8];
        snprintf(name, sizeof(name), "0x%02X", byte);
        throw std::runtime_error(
            "the vocabulary has no token for the byte " + std::string(name) +
            ", which is in a text: the GGUF is damaged, or was converted wrongly");
    }
    return found->second;
}
