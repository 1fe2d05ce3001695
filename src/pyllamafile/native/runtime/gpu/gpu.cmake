# What a program for GPUs has, whichever way it has to them: native/vulkan's and native/metal's
# CMake files include this when the runtime is known.
target_sources(runtime PRIVATE gpu/gpu.cpp gpu/report.cpp gpu/trial.cpp)
target_compile_definitions(runtime PRIVATE RUNTIME_HAS_GPU)
