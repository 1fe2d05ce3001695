# Adds ggml-vulkan to the runtime, without its shaders: they are filled in when a GPU is used.
#
#   VULKAN           this folder
#   VULKAN_HEADERS   the folder of vulkan/vulkan.hpp and spirv/unified1/spirv.hpp
#   SHADER_TABLES    the folder of what shaders.py makes of upstream's tables
#   ZSTD             the folder of zstd.c; of what it has, the linker keeps the decoder
add_library(ggml-vulkan STATIC EXCLUDE_FROM_ALL
    ${LLAMA_SOURCE}/ggml/src/ggml-vulkan/ggml-vulkan.cpp
    ${LLAMA_SOURCE}/ggml/src/ggml-vulkan/ggml-vulkan-buffers.cpp
    ${LLAMA_SOURCE}/ggml/src/ggml-vulkan/ggml-vulkan-debug.cpp
    ${SHADER_TABLES}/shader-table.cpp)
target_compile_features(ggml-vulkan PUBLIC cxx_std_17)
target_include_directories(ggml-vulkan
    PUBLIC ${SHADER_TABLES}
    PRIVATE ${LLAMA_SOURCE}/ggml/src ${VULKAN_HEADERS})
target_link_libraries(ggml-vulkan PUBLIC ggml-base)
# The same as shaders/CMakeLists.txt has.
set(FEATURES
    COOPMAT COOPMAT2 COOPMAT2_DECODE_VECTOR INTEGER_DOT BFLOAT16 FLOAT_E2M1 FLOAT_E4M3)
list(TRANSFORM FEATURES REPLACE "(.+)" "GGML_VULKAN_\\1_GLSLC_SUPPORT")
target_compile_definitions(ggml-vulkan PRIVATE ${FEATURES})

# ggml's registry knows nothing of it: no driver is to come into the process before gpu.cpp says so.
target_sources(runtime PRIVATE
    ${VULKAN}/loader.cpp
    ${VULKAN}/gpu.cpp
    ${VULKAN}/shaders.cpp
    ${VULKAN}/trial.cpp
    ${ZSTD}/zstd.c)
set_source_files_properties(${ZSTD}/zstd.c PROPERTIES
    COMPILE_OPTIONS "-DZSTD_DISABLE_ASM;-DZSTD_LEGACY_SUPPORT=0;-w")
target_include_directories(runtime PRIVATE ${VULKAN} ${VULKAN_HEADERS} ${ZSTD})
target_compile_definitions(runtime PRIVATE RUNTIME_HAS_GPU)
target_link_libraries(runtime PRIVATE ggml-vulkan ${CMAKE_DL_LIBS})
