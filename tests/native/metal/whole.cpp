// What is in the whole runtime of Linux in place of what it has for Vulkan: it chooses Metal, and
// Objective-C is there before anything else.
#include "gpu/choice.h"
#include "system/system.h"

#include <cstdlib>
#include <string>

#define __APPLE__ // not before the C++ library, which would take it for true
#include "gpu/choice.cpp"

extern "C" void bridge_start(void);

[[gnu::constructor]] static void start() {
    bridge_start();
}
