// How much memory there is for what is loaded.
#pragma once

// Bytes that this process can have without swapping, where the system says so (proc_meminfo(5)):
// no more than `most`.
double available_memory(double most);

// The same, and no more than the machine and the control groups of this process have.
double free_memory();
