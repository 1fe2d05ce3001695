// What the functions of runtime/system/atomics.cpp give back, and that no thread's step gets lost.
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <thread>
#include <vector>

template <class number> static int check() {
    const number all = (number)-1;
    std::atomic<number> value{ 5 };
    int wrong = value.fetch_add(3) != 5;
    wrong += value.fetch_and(12) != 8;
    wrong += value.fetch_or(3, std::memory_order_relaxed) != 8;
    wrong += value.fetch_xor(1, std::memory_order_acquire) != 11;
    wrong += value.exchange(all, std::memory_order_release) != 10;
    number expected = all;
    wrong += !value.compare_exchange_strong(expected, 7);
    expected = 9;
    wrong += value.compare_exchange_strong(expected, 1) || expected != 7;
    wrong += value.fetch_sub(8) != 7 || value.load() != all;

    std::atomic<number> counted{ 0 };
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++) {
        threads.emplace_back([&counted] {
            for (int step = 0; step < 1000; step++) {
                counted.fetch_add(1, std::memory_order_relaxed);
                number seen = counted.load();
                while (!counted.compare_exchange_weak(seen, (number)(seen + 1))) {
                }
            }
        });
    }
    for (std::thread & thread : threads) {
        thread.join();
    }
    wrong += counted.load() != (number)8000;
    printf("%zu bytes: %d wrong\n", sizeof(number), wrong);
    return wrong;
}

int main() {
    return check<uint8_t>() + check<uint16_t>() + check<uint32_t>() + check<uint64_t>();
}
