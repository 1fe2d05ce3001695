// Weights that a worker has kept from before are not sent again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

// Bytes of a tensor that is worth asking for.
const size_t RPC_WORTH_A_DIGEST = 64 * 1024;

// What tells tensors from others; upstream's has 64 bits that anybody can make the same.
struct rpc_digest {
    char hex[64];

    uint64_t number() const { // for messages
        uint64_t out = 0;
        for (int i = 0; i < 16; i++) {
            out = out << 4 | (uint64_t)(hex[i] <= '9' ? hex[i] - '0' : hex[i] - 'a' + 10);
        }
        return out;
    }
};

rpc_digest rpc_digest_of(const void * data, size_t size);

// Gives the bytes that have this digest, if they are kept here, or are those of the tensor of this
// name in a file of this machine's own.
bool rpc_kept(const rpc_digest & digest, const std::string & name, std::vector<uint8_t> & data);

void rpc_keep(const void * data, size_t size);
