// Included before upstream's server-context.cpp and server-queue.cpp. With --sleep-idle-seconds the
// server frees its model when nobody has asked for anything that long. Upstream counts from the
// last task, and a request is none yet while its text is cut into tokens: the model was freed under
// it.
#pragma once

#include <atomic>

// A request that is being answered. It counts before it looks whether the server sleeps, and the
// server looks at the count before it falls asleep, so that one of the two sees the other.
struct stay_awake {
    static inline std::atomic<int> requests = 0;

    bool counted = false;

    void count() {
        counted = true;
        requests++;
    }

    ~stay_awake() {
        requests -= counted;
    }
};
