# Read by runtime/CMakeLists.txt's project(), as CMAKE_PROJECT_runtime_INCLUDE, for a program that has
# ggml-vulkan: what it changes is done when all of the runtime's own targets are known.
cmake_language(DEFER CALL include "${VULKAN}/program.cmake")
