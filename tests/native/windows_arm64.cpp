// What the runtime takes from Windows' C library and from libc++, in a program of a second.
// argv: a word that is printed; exits with the number of bytes in standard input.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {
thread_local int mine = 7;

std::exception_ptr thrown() {
    std::exception_ptr error;
    std::thread([&] {
        try {
            throw std::runtime_error("in a thread");
        } catch (...) {
            error = std::current_exception();
        }
    }).join();
    return error;
}
} // namespace

int main(int argc, char ** argv) {
    std::printf("%d %s %.3f %" PRId64 " %c\n", argc, argv[1], std::sin(0.5), int64_t(1) << 40, 'x');

    std::vector<int> seen(4);
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++) {
        threads.emplace_back([&seen, i] { seen[i] = mine += i; });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    std::printf("%d %d %d %d, %d\n", seen[0], seen[1], seen[2], seen[3], mine);

    try {
        std::rethrow_exception(thrown());
    } catch (const std::exception & error) {
        std::fprintf(stderr, "caught: %s\n", error.what());
    }

    std::fflush(stdout);
    int count = 0;
    while (std::getchar() != EOF) {
        count++;
    }
    return count;
}
