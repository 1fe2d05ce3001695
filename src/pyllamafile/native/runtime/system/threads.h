// How many threads compute, where upstream's answer is not the best one.
#pragma once

// Takes upstream's answer, the machine's physical cores as far as it can tell, and returns a
// better one: never more than the affinity of this process and its control groups (a container's
// limit) allow, and the cores that upstream does not count on Windows and on the BSDs.
int threads_to_use(int upstreams);

// The processors that the machine has, whatever part of them this process may use; 0 if nobody
// knows.
int processors();
