// In place of upstream's transport.cpp, which speaks TCP: connections that are open already, and
// nothing that listens. What goes over one is in frames: four bytes that say how long it is, the
// lowest first, and so many bytes. An empty one is a sign of life, of which each side gives one in
// a second, whatever else it does.

#include "transport.h"

#include "connection.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <thread>
#include <unistd.h>

#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0 // there the socket itself is told
#endif

namespace {

std::vector<peer> peers;
std::atomic<uint64_t> sent_to_all{ 0 };

const size_t SMALL = 64 * 1024;       // bytes that wait for the end of their message
const size_t LONGEST_FRAME = 1 << 20; // bytes, so that a sign of life comes between two

const int SAYS_AFTER = 10;                // seconds
const uint64_t WORTH_SAYING = 50'000'000; // bytes in these

using moment = std::chrono::steady_clock::time_point;

moment now() {
    return std::chrono::steady_clock::now();
}

bool can(int descriptor, short what) {
    pollfd asked = { descriptor, what, 0 };
    return poll(&asked, 1, 0) > 0;
}

// ssh says why it ends. Of one that another process has started nobody here hears the end.
bool says_more(const peer & with) {
    const pid_t ended = waitpid(with.ssh, nullptr, WNOHANG);
    return ended == 0 || (ended < 0 && last_line(with.errors).empty());
}

// The worker has nobody left to work for. Elsewhere the answer can't be computed any more.
[[noreturn]] void lose(const peer & with, const std::string & why) {
    if (with.name.empty()) {
        _exit(0);
    }
    static std::mutex once; // the others wait for the end
    once.lock();
    if (with.lost != nullptr) {
        *with.lost = true;
    }
    for (int waited = 0; waited < 100 && says_more(with); waited++) {
        usleep(10000);
    }
    const std::string said = last_line(with.errors);
    fprintf(stderr, "error: %s is gone: %s\n", with.name.c_str(),
            said.empty() ? why.c_str() : said.c_str());
    fflush(nullptr);
    _Exit(1);
}

} // namespace

void connections_are(const std::vector<peer> & given) {
    peers = given;
}

uint64_t bytes_sent() {
    return sent_to_all;
}

void leave_connections() {
    for (const peer & each : peers) {
        close(each.in);
        close(each.errors);
    }
    peers.clear();
}

std::string last_line(int errors) {
    char text[4096];
    const off_t size = errors < 0 ? 0 : lseek(errors, 0, SEEK_END);
    const off_t start = size > (off_t)sizeof(text) ? size - (off_t)sizeof(text) : 0;
    const ssize_t count = size > 0 ? pread(errors, text, sizeof(text), start) : 0;
    std::string line, last;
    for (ssize_t i = 0; i < count; i++) {
        if (text[i] == '\n' || text[i] == '\r') {
            last = line.empty() ? last : line;
            line.clear();
        } else {
            line += (unsigned char)text[i] < ' ' || text[i] == '\x7f' ? ' ' : text[i];
        }
    }
    last = line.empty() ? last : line;
    const std::string mark = "error: "; // whoever shows it says so
    return last.rfind(mark, 0) == 0 ? last.substr(mark.size()) : last;
}

struct socket_t::impl {
    explicit impl(const peer & with) : with(with), heard(now()), thread([this] { live(); }) {}

    ~impl() {
        {
            const std::lock_guard<std::mutex> lock(ending);
            ended = true;
        }
        end.notify_all();
        thread.join();
    }

    bool send_data(const void * data, size_t size) {
        if (waiting.size() + size <= SMALL) {
            waiting.append((const char *)data, size);
            return true;
        }
        return flush() && send_frames((const char *)data, size);
    }

    bool flush() {
        std::string message;
        message.swap(waiting);
        return send_frames(message.data(), message.size());
    }

    bool recv_data(void * data, size_t size) {
        const std::lock_guard<std::mutex> lock(receiving);
        char * into = (char *)data;
        while (size > 0) {
            while (left == 0) {
                read_length();
            }
            const size_t part = std::min(size, left);
            read_all(into, part);
            into += part;
            size -= part;
            left -= part;
        }
        return true;
    }

  private:
    void read_all(char * into, size_t size) {
        while (size > 0) {
            const ssize_t count = read(with.in, into, size);
            if (count < 0 && errno == EINTR) {
                continue;
            }
            if (count <= 0) {
                lose(with, "the connection has ended");
            }
            heard = now();
            into += count;
            size -= (size_t)count;
        }
    }

    void read_length() {
        unsigned char bytes[4];
        read_all((char *)bytes, sizeof(bytes));
        left = bytes[0] | bytes[1] << 8 | bytes[2] << 16 | (size_t)bytes[3] << 24;
    }

    bool send_frames(const char * data, size_t size) {
        while (size > 0) {
            const size_t part = std::min(size, LONGEST_FRAME);
            const std::lock_guard<std::mutex> lock(sending);
            send_frame(data, part);
            data += part;
            size -= part;
        }
        return true;
    }

    // A pipe that nobody reads is no reason to end by a signal.
    ssize_t put(iovec * parts, int count) const {
        if (with.in != with.out) {
            return writev(with.out, parts, count);
        }
        msghdr message = {};
        message.msg_iov = parts;
        message.msg_iovlen = (decltype(message.msg_iovlen))count;
        return sendmsg(with.out, &message, MSG_NOSIGNAL);
    }

    void send_frame(const char * data, size_t size) {
        sent += size;
        sent_to_all += size;
        unsigned char length[4];
        for (int i = 0; i < 4; i++) {
            length[i] = (unsigned char)(size >> (8 * i));
        }
        iovec parts[] = { { length, sizeof(length) }, { const_cast<char *>(data), size } };
        for (int at = 0; at < 2;) {
            const ssize_t count = put(parts + at, 2 - at);
            if (count < 0 && errno == EINTR) {
                continue;
            }
            if (count < 0) {
                lose(with, "the connection has ended");
            }
            for (size_t rest = (size_t)count; at < 2; at++) {
                const size_t taken = std::min(rest, parts[at].iov_len);
                parts[at].iov_base = (char *)parts[at].iov_base + taken;
                parts[at].iov_len -= taken;
                rest -= taken;
                if (parts[at].iov_len > 0) {
                    break;
                }
            }
        }
    }

    // Gives signs of life, and looks for the other side's while nobody waits for an answer of it.
    void live() {
        std::unique_lock<std::mutex> lock(ending);
        while (!end.wait_for(lock, std::chrono::seconds(1), [this] { return ended; })) {
            if (sending.try_lock()) {
                if (can(with.out, POLLOUT)) {
                    send_frame("", 0);
                }
                sending.unlock();
            }
            if (receiving.try_lock()) {
                while (left == 0 && can(with.in, POLLIN)) {
                    read_length();
                }
                receiving.unlock();
            }
            say_how_far();
            if (now() - heard.load() > std::chrono::seconds(with.patience)) {
                lose(with, "no sign of life for " + std::to_string(with.patience) + " seconds");
            }
        }
    }

    // The weights of a large model take their time; what is computed later is little beside them.
    void say_how_far() {
        const uint64_t so_far = sent;
        if (++seconds % SAYS_AFTER != 0 || with.name.empty()) {
            return;
        }
        if (so_far - said > WORTH_SAYING && isatty(STDERR_FILENO) == 0) { // machines.cpp has a bar
            fprintf(stderr, "%s: %.1f GB sent\n", with.name.c_str(), (double)so_far / 1e9);
        }
        said = so_far;
    }

    const peer with;
    std::atomic<uint64_t> sent{ 0 }; // bytes
    uint64_t said = 0;
    int seconds = 0;
    std::string waiting; // of a message that is not complete
    size_t left = 0;     // of the frame that is being read
    std::mutex sending, receiving, ending;
    std::condition_variable end;
    bool ended = false;
    std::atomic<moment> heard;
    std::thread thread; // last, so that all it uses is there
};

socket_t::socket_t(std::unique_ptr<impl> p) : pimpl(std::move(p)) {}

socket_t::~socket_t() = default;

bool socket_t::send_data(const void * data, size_t size) {
    return pimpl->send_data(data, size);
}

bool socket_t::recv_data(void * data, size_t size) {
    return pimpl->recv_data(data, size);
}

bool socket_t::flush() {
    return pimpl->flush();
}

void socket_t::get_caps(uint8_t * local_caps) {
    memset(local_caps, 0, RPC_CONN_CAPS_SIZE);
}

void socket_t::update_caps(const uint8_t *) {}

socket_ptr socket_t::connect(const char *, int port) {
    return port < 0 || port >= (int)peers.size()
               ? nullptr
               : socket_ptr(new socket_t(std::make_unique<impl>(peers[(size_t)port])));
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
