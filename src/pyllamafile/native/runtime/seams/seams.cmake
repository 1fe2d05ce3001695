# What the commands that seams.py makes of seams.toml call. Each stops if no library compiles the
# file: a property of a source that nobody compiles does nothing, and says nothing.

# Sets `out` to the path of a file of llama.cpp's as `target` compiles it, its own or the edited copy,
# and `out`_place to where it stands among the target's sources.
function(seam_source out name target file)
    get_target_property(sources ${target} SOURCES)
    get_target_property(folder ${target} SOURCE_DIR)
    set(place 0)
    foreach(path ${sources})
        cmake_path(ABSOLUTE_PATH path BASE_DIRECTORY ${folder} NORMALIZE)
        if(path STREQUAL "${LLAMA_SOURCE}/${file}" OR path STREQUAL "${EDITED}/${file}")
            set(${out} ${path} PARENT_SCOPE)
            set(${out}_place ${place} PARENT_SCOPE)
            return()
        endif()
        math(EXPR place "${place} + 1")
    endforeach()
    message(FATAL_ERROR "seam ${name}: ${target} doesn't compile ${file}")
endfunction()

# A source that has such a property CMake compiles alone, and not together with others.
function(seam_set name target file property value)
    seam_source(source ${name} ${target} ${file})
    set_property(SOURCE ${source} TARGET_DIRECTORY ${target} APPEND PROPERTY ${property} "${value}")
endfunction()

# Compiles the edited copy, which finds the headers beside the original.
function(seam_copy name target file)
    seam_source(source ${name} ${target} ${file})
    get_target_property(sources ${target} SOURCES)
    list(REMOVE_AT sources ${source_place})
    list(INSERT sources ${source_place} ${EDITED}/${file})
    set_property(TARGET ${target} PROPERTY SOURCES ${sources})
    cmake_path(GET file PARENT_PATH folder)
    # -iquote, for jinja has a string.h
    seam_set(${name} ${target} ${file} COMPILE_OPTIONS "-iquote;${LLAMA_SOURCE}/${folder}")
endfunction()

function(seam_rename name target file pair)
    seam_set(${name} ${target} ${file} COMPILE_DEFINITIONS ${pair})
endfunction()

function(seam_header name target file header)
    seam_set(${name} ${target} ${file} COMPILE_OPTIONS "-include;${SEAMS}/${header}")
endfunction()

# Ours is found because CMakeLists.txt has a library of the same name; nothing of upstream's may lie
# in its way.
function(seam_replaced name target file header)
    seam_source(source ${name} ${target} ${file})
    cmake_path(GET file PARENT_PATH folder)
    if(EXISTS ${LLAMA_SOURCE}/${folder}/${header})
        message(FATAL_ERROR "seam ${name}: upstream has a ${header} beside ${file}")
    endif()
endfunction()
