# CMake runs this where the runtime's project begins. With it, llama.cpp's own CMake files compile
# ggml-metal. These variables come before those that the runtime puts into CMake's cache.
#
#   METAL_SDK  the folder beside this file that stands for Apple's: declarations and linker's stubs
set(GGML_METAL ON)
set(GGML_METAL_EMBED_LIBRARY ON)

set(FOUNDATION_LIBRARY ${METAL_SDK}/Foundation.framework)
set(METAL_FRAMEWORK ${METAL_SDK}/Metal.framework)
# Upstream links with MetalKit, too, and names nothing of it.
set(METALKIT_FRAMEWORK ${METAL_SDK}/Metal.framework)

add_compile_options(-F${METAL_SDK})
# Where constant texts are, and what the compiler itself calls.
link_libraries(${METAL_SDK}/CoreFoundation.framework ${METAL_SDK}/libobjc.tbd)
