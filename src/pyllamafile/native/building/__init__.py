"""What makes runtimes and the web GUI: the driver of zig, CMake and Ninja, and what it takes."""
