// Which of the builds of the kernels this processor gets.
#pragma once

// The name of the level in use, for example "v3".
const char * cpu_level();
