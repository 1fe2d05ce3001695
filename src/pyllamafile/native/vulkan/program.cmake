# Adds ggml-vulkan to the runtime, without its shaders: they are filled in when a GPU is used.
#
#   VULKAN           this folder
#   VULKAN_HEADERS   the folder of vulkan/vulkan.hpp and spirv/unified1/spirv.hpp
#   SHADER_TABLES    the folder of what shaders.py makes of upstream's tables
add_library(ggml-vulkan STATIC EXCLUDE_FROM_ALL
    ${LLAMA_SOURCE}/ggml/src/ggml-vulkan/ggml-vulkan.cpp
    ${LLAMA_SOURCE}/ggml/src/ggml-vulkan/ggml-vulkan-buffers.cpp
    ${LLAMA_SOURCE}/ggml/src/ggml-vulkan/ggml-vulkan-debug.cpp
    ${VULKAN}/number.cpp
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
include(${CMAKE_CURRENT_SOURCE_DIR}/gpu/gpu.cmake)
target_sources(runtime PRIVATE
    ${VULKAN}/backend.cpp
    ${VULKAN}/drivers.cpp
    ${VULKAN}/drivers_${STARTS}.cpp
    ${VULKAN}/loader.cpp
    ${VULKAN}/shaders.cpp)
if(CMAKE_SYSTEM_NAME STREQUAL Linux)
    target_sources(runtime PRIVATE ${VULKAN}/environment.c)
endif()
target_include_directories(runtime PRIVATE ${VULKAN} ${VULKAN_HEADERS} ${ZSTD})
target_link_libraries(runtime PRIVATE ggml-vulkan ${CMAKE_DL_LIBS})
