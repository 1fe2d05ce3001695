// Changes a GGUF as one that is still read: a key's value or type, a tensor's shape, an array's
// length. Bytes changed anywhere are mostly refused by the first reader.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

struct dictionary {
    std::vector<std::string> keys;          // "%s" stands for the architecture
    std::vector<std::string> architectures; // values of general.architecture
    std::vector<std::string> words;         // other strings that mean something
};

// As LLVMFuzzerCustomMutator. What is no GGUF is changed as bytes.
size_t mutate_gguf(uint8_t * data, size_t size, size_t most, unsigned seed,
                   const dictionary & known);
