// How many threads may compute at once, where that is less than there are cores.
#pragma once

// What the affinity of this process and its control groups (a container's limit) allow, or 0 if
// nothing is known to limit it. More threads than that would wait for each other.
int threads_allowed();
