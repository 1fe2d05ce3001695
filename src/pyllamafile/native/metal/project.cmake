# Read by runtime/CMakeLists.txt's project(), as CMAKE_PROJECT_runtime_INCLUDE, for a program that has
# ggml-metal: what it changes is done when all of the runtime's own targets are known.
enable_language(ASM)
cmake_language(DEFER CALL include "${METAL}/program.cmake")
