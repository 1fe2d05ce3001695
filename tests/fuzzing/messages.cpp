// Messages to a worker, from whoever is at the other end of its connection: upstream's server with
// our checks (seams/worker-messages.h), and in the place of machines/transport.cpp what this has.
//
// An input is a list of messages. Each has its command and its length, of 4 bytes, and so many
// bytes, to a multiple of 4. Where a message names a buffer, 1 to 8 stand for those that the worker
// has made so far, and the address behind it counts from where that one begins.
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "seams/worker-messages.h"
#include "transport.h"
#include "ways.h"

#include <sanitizer/asan_interface.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <random>
#include <vector>

// of ggml-rpc.cpp, as in machines/worker.cpp
void rpc_serve_client(const std::vector<ggml_backend_t> & backends, const char * cache_dir,
                      socket_ptr sock);

namespace {

const uint8_t ALLOC = 0, BASE = 3, FREE = 4, CLEAR = 5, SET = 6, SET_HASH = 7, GET = 8, COPY = 9,
              GRAPH = 10, INIT = 12, ALLOC_SIZE = 13, HELLO = 14, MEMSET = 17; // of rpc_cmd
const size_t TENSOR = 296, BUFFER = 12, DATA = 220; // bytes of rpc_tensor, and places in it
const size_t SOURCES = 10, CAPABILITIES = 24;
const size_t MOST_BUFFERS = 8;
const uint64_t MOST_BYTES = 1 << 16; // of a buffer, unless it is too large for any machine

std::string input;
size_t at = 0;

// The buffers that the worker has named, also those that it has freed since.
struct known_buffer {
    uint64_t name, base, size;
};
std::vector<known_buffer> known;

template <typename T> T number(const std::string & from, size_t place) {
    T out = 0;
    memcpy(&out, from.data() + std::min(place, from.size()),
           std::min(sizeof(T), from.size() - std::min(place, from.size())));
    return out;
}

void put(std::string & into, size_t place, uint64_t what) {
    memcpy(&into[place], &what, sizeof(what));
}

uint64_t base_of(uint64_t buffer) {
    return (uint64_t)ggml_backend_buffer_get_base((ggml_backend_buffer_t)buffer);
}

bool is_known(uint64_t name) {
    return name > 0 && name <= known.size();
}

// Where in a message tensors are.
std::vector<size_t> tensors_in(uint8_t command, const std::string & body) {
    size_t start = 0, count = 0;
    switch (command) {
    case SET:
    case SET_HASH:
    case GET:
    case INIT:
    case MEMSET:
        count = 1;
        break;
    case COPY:
        count = 2;
        break;
    case ALLOC_SIZE:
        start = 4;
        count = 1 + SOURCES;
        break;
    case GRAPH:
        start = 12 + (size_t)number<uint32_t>(body, 4) * 8;
        count = body.size() / TENSOR;
        break;
    }
    std::vector<size_t> out;
    for (; count > 0 && start + TENSOR <= body.size(); count--, start += TENSOR) {
        out.push_back(start);
    }
    return out;
}

void put_addresses(uint8_t command, std::string & body) {
    for (const size_t place : tensors_in(command, body)) {
        const auto name = number<uint64_t>(body, place + BUFFER);
        if (is_known(name)) {
            put(body, place + BUFFER, known[name - 1].name);
            put(body, place + DATA, known[name - 1].base + number<uint64_t>(body, place + DATA));
        }
    }
    const auto name = number<uint64_t>(body, 0);
    if ((command == BASE || command == FREE || command == CLEAR) && body.size() >= 8 &&
        is_known(name)) {
        put(body, 0, known[name - 1].name);
    }
    if (command == ALLOC && body.size() >= 12 && number<uint64_t>(body, 4) < (uint64_t)1 << 40) {
        put(body, 4, number<uint64_t>(body, 4) % MOST_BYTES);
    }
}

std::string framed(uint8_t command, uint64_t length, const std::string & body) {
    return std::string(1, (char)command) + std::string((const char *)&length, sizeof(length)) +
           body;
}

// Whether all of these bytes are a buffer's.
bool is_in_a_buffer(const ggml_tensor * tensor) {
    const uint64_t start = (uint64_t)tensor->data, size = ggml_nbytes(tensor);
    return std::any_of(known.begin(), known.end(), [&](const known_buffer & each) {
        return start >= each.base && start - each.base <= each.size &&
               size <= each.size - (start - each.base);
    });
}

// In the place of kernels, which believe that shapes go with an operation: all that they may reach.
ggml_status look_at(ggml_backend_t, ggml_cgraph * graph) {
    for (int i = 0; i < graph->n_nodes; i++) {
        const ggml_tensor * node = graph->nodes[i];
        if (rpc_is_view(node)) {
            continue;
        }
        if (node->op >= GGML_OP_MAP_CUSTOM1 && node->op <= GGML_OP_CUSTOM) {
            wrong("an operation of an address that the message has");
        }
        for (int s = -1; s < GGML_MAX_SRC; s++) {
            const ggml_tensor * each = s < 0 ? node : node->src[s];
            if (each == nullptr || ggml_nbytes(each) == 0) {
                continue;
            }
            if (!is_in_a_buffer(each) ||
                __asan_region_is_poisoned(each->data, ggml_nbytes(each)) != nullptr) {
                wrong("a tensor of a graph reaches out of its buffer");
            }
        }
    }
    return GGML_STATUS_SUCCESS;
}

} // namespace

// The other end.
struct socket_t::impl {
    std::string sent = framed(HELLO, CAPABILITIES, std::string(CAPABILITIES, '\0'));
    size_t read = 0;
    uint8_t command = HELLO;
    std::string answer;

    bool has_more() {
        if (at + 8 > input.size()) {
            return false;
        }
        command = (uint8_t)input[at];
        const uint64_t length = number<uint32_t>(input, at + 4);
        const uint64_t more = (uint64_t)number<uint16_t>(input, at + 2) << 48; // mostly 0
        std::string body = input.substr(at + 8, length);
        at = std::min(input.size(), at + 8 + (length + 3) / 4 * 4);
        put_addresses(command, body);
        sent = framed(command, length | more, body);
        read = 0;
        return true;
    }
};

socket_t::socket_t(std::unique_ptr<impl> p) : pimpl(std::move(p)) {}

socket_t::~socket_t() = default;

bool socket_t::recv_data(void * data, size_t size) {
    char * into = (char *)data;
    while (size > 0) {
        if (pimpl->read == pimpl->sent.size() && !pimpl->has_more()) {
            return false;
        }
        const size_t part = std::min(size, pimpl->sent.size() - pimpl->read);
        memcpy(into, pimpl->sent.data() + pimpl->read, part);
        pimpl->read += part;
        into += part;
        size -= part;
    }
    return true;
}

bool socket_t::send_data(const void * data, size_t size) {
    pimpl->answer.append((const char *)data, size);
    return true;
}

bool socket_t::flush() {
    const auto name = number<uint64_t>(pimpl->answer, 8);
    if (pimpl->command == ALLOC && name != 0 && known.size() < MOST_BUFFERS) {
        known.push_back({ name, base_of(name), number<uint64_t>(pimpl->answer, 16) });
    }
    pimpl->answer.clear();
    return true;
}

void socket_t::get_caps(uint8_t * caps) {
    memset(caps, 0, CAPABILITIES);
}

void socket_t::update_caps(const uint8_t *) {}

socket_ptr socket_t::connect(const char *, int) {
    return socket_ptr(new socket_t(std::make_unique<impl>()));
}

socket_ptr socket_t::accept() {
    return nullptr;
}

socket_ptr socket_t::create_server(const char *, int) {
    return nullptr;
}

bool rpc_transport_init() {
    return true;
}

void rpc_transport_shutdown() {}

void take_messages(const std::string & bytes) {
    static const ggml_backend_t processor = [] {
        const ggml_backend_t out =
            ggml_backend_dev_init(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), nullptr);
        out->iface.graph_compute = look_at;
        return out;
    }();
    static const uint64_t longest = rpc_longest_message;
    rpc_longest_message = longest;
    rpc_depth::depth = 0;
    input = bytes;
    at = 0;
    known.clear();
    rpc_serve_client({ processor }, nullptr, socket_t::connect("", 0));
}

// Changes one of the numbers, which nearly all of it is.
size_t mutate_messages(uint8_t * data, size_t size, size_t most, unsigned seed) {
    std::minstd_rand chance(seed);
    const size_t words = size / 4;
    if (words == 0 || chance() % 4 == 0) {
        return mutate_bytes(data, size, most, seed);
    }
    static const uint32_t ODD[] = { 0x7f,       0xff,       0x7fff,     0xffff,    0x10000,
                                    0x7fffffff, 0x80000000, 0xfffffff0, 0xffffffff };
    do {
        const size_t place = chance() % words * 4;
        uint32_t word = 0;
        memcpy(&word, data + place, sizeof(word));
        switch (chance() % 6) {
        case 0:
            word = chance() % 128;
            break;
        case 1:
            word += chance() % 2 == 0 ? 1 : (uint32_t)-1;
            break;
        case 2:
            word = chance() % 2 == 0 ? word * 2 : word / 2;
            break;
        case 3:
            word = ODD[chance() % std::size(ODD)];
            break;
        default:
            memcpy(&word, data + chance() % words * 4, sizeof(word));
        }
        memcpy(data + place, &word, sizeof(word));
    } while (chance() % 3 == 0);
    return size;
}
