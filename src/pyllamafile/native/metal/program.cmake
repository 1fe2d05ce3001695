# Adds ggml-metal to the runtime, without its kernels' text: it is unpacked when a GPU is used.
#
#   METAL        this folder
#   METAL_TEXTS  the folder of what metal.py makes of the kernels' text
file(GLOB sources ${LLAMA_SOURCE}/ggml/src/ggml-metal/*.cpp ${LLAMA_SOURCE}/ggml/src/ggml-metal/*.m)
add_library(ggml-metal STATIC EXCLUDE_FROM_ALL ${sources} ${METAL_TEXTS}/texts.S)
target_compile_features(ggml-metal PRIVATE cxx_std_17)
target_compile_definitions(ggml-metal PRIVATE GGML_METAL_EMBED_LIBRARY)
target_include_directories(ggml-metal PRIVATE ${LLAMA_SOURCE}/ggml/src)
# In place of Apple's: declarations, and what the linker is told. CoreFoundation is where constant
# texts are; the compiler itself calls libobjc.
target_compile_options(ggml-metal PRIVATE -F${METAL}/sdk)
target_link_libraries(ggml-metal
    PUBLIC ggml-base
    PRIVATE
        ${METAL}/sdk/Foundation.framework
        ${METAL}/sdk/Metal.framework
        ${METAL}/sdk/CoreFoundation.framework
        ${METAL}/sdk/libobjc.tbd)

# ggml's registry knows nothing of it: no driver is to come into the process before gpu.cpp says so.
include(${CMAKE_CURRENT_SOURCE_DIR}/gpu/gpu.cmake)
target_sources(runtime PRIVATE
    ${METAL}/backend.cpp
    ${METAL}/identity.S
    ${METAL}/texts.cpp)
set_source_files_properties(${METAL}/identity.S PROPERTIES OBJECT_DEPENDS ${METAL}/Info.plist)
target_include_directories(runtime PRIVATE ${METAL} ${ZSTD})
target_link_libraries(runtime PRIVATE ggml-metal)
